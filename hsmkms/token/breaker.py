"""While the token is away callers are told at once, and one of them in a quarter of a second tries it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from hsmkms.errors import TokenAway
from hsmkms.telemetry import metrics

_PROBE_EVERY_S: Final = 0.25

_log = structlog.get_logger(__name__)


class Breaker:
    """Closed while the token answers. Safe for threads."""

    def __init__(self, probe: Callable[[], None], token: str) -> None:
        """`probe` wraps and unwraps a canary and raises Unavailable when the token cannot; `token` names it in logs."""
        self._probe = probe
        self._token = token
        self._lock = threading.Lock()
        self._probe_at = 0.0
        self._held = False
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
        """Raise TokenAway while the token is away; whose turn it is to try it also raises what it says."""
        if not self.is_open:
            return
        with self._lock:
            now = time.monotonic()
            if self._held or now < self._probe_at:
                raise TokenAway
            self._probe_at = now + _PROBE_EVERY_S
        self._probe()
        self.close()

    def trip(self) -> None:
        """The token does not answer."""
        with self._lock:
            if self.is_open:
                return
            self._probe_at = time.monotonic() + _PROBE_EVERY_S
            self.is_open = True
        metrics.TOKEN_AWAY.inc()
        _log.error("the token does not answer", token=self._token)

    def close(self) -> None:
        """It does."""
        with self._lock:
            if not self.is_open or self._held:
                return
            self.is_open = False
        metrics.TOKEN_AWAY.dec()
        _log.warning("the token answers again", token=self._token)

    def renew_after_fork(self) -> None:
        """In the child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()
