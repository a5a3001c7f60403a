"""While the token is away callers are told at once; a thread tries it four times a second."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import structlog

from hsmkms.errors import HsmkmsError, TokenAway
from hsmkms.telemetry import metrics

_PROBE_EVERY_S: Final = 0.25

_log = structlog.get_logger(__name__)


class Breaker:
    """Closed while the token answers. Safe for threads."""

    def __init__(self, probe: Callable[[], None], token: str, part: str, ended: threading.Event) -> None:
        """`probe` wraps and unwraps a canary and raises HsmkmsError when the token cannot, however long it takes to say
        so; `token` names it in logs, `part` in metrics; nobody tries it any more once `ended` is set."""
        self._probe = probe
        self._token = token
        self._away = metrics.TOKEN_AWAY.labels(part)
        self._ended = ended
        self._lock = threading.Lock()
        self._held = False
        self._trips = 0
        self.is_refused = False
        self.is_open = False

    def hold(self) -> None:
        """Nobody may touch the token, not even to try it, before `admit`: it was not proved yet."""
        with self._lock:
            self._held = self.is_open = True

    def admit(self) -> None:
        """It was proved; one that was refused stays so."""
        with self._lock:
            self._held = self.is_open = self.is_refused

    def refuse(self) -> None:
        """It is not the right one, and is not used for as long as this process lives."""
        with self._lock:
            self.is_refused = self._held = self.is_open = True

    def require_not_held(self) -> None:
        """Raise TokenAway while nobody may touch the token."""
        if self._held:
            raise TokenAway

    def require_closed(self) -> None:
        """Raise TokenAway while the token is away."""
        if self.is_open:
            raise TokenAway

    def trip(self) -> None:
        """The token does not answer."""
        with self._lock:
            if self.is_open:
                return
            self.is_open = True
            self._trips += 1
            trip = self._trips
        self._away.inc()
        _log.error("the token does not answer", token=self._token)
        threading.Thread(target=self._try, args=(trip,), name="token probe", daemon=True).start()

    def close(self) -> None:
        """It does."""
        with self._lock:
            if not self.is_open or self._held:
                return
            self.is_open = False
        self._away.dec()
        _log.warning("the token answers again", token=self._token)

    def renew_after_fork(self) -> None:
        """In the child: another thread of the parent may have held the lock, and none tries the token."""
        self._lock = threading.Lock()
        self.is_open = self._held

    def _try(self, trip: int) -> None:
        """Until it answers, or another thread has taken this one's place."""
        while not self._ended.wait(_PROBE_EVERY_S) and self.is_open and not self._held and self._trips == trip:
            try:
                self._probe()
            except HsmkmsError:
                continue
            self.close()
