"""A library that never returns cannot be interrupted, only left behind: the process ends and another takes its place.

Whoever supervises (uvicorn with two workers or more, systemd with one) starts it again. Nothing that a caller was told
is lost by that: it is what `kill -9` does, and every answer was committed before it was given.

A process that hangs while it opens the token is another matter: the next one would hang there too, and the one after
it. It stays if it has somebody to answer or a standby to work with, says that it lives, and ends when a child finds
that the token answers others (`probing`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final

import structlog

from hsmkms.token import probing
from hsmkms.token.recovery import RecoveringToken
from hsmkms.token.sessions import SessionPool

EXIT_CODE: Final = 75
"""EX_TEMPFAIL of sysexits.h."""
_LOOKS_PER_TIMEOUT: Final = 10
_PROBE_PAUSE_S: Final = 1.0
_HANGS: Final = "the token hangs; this process ends and has to be started again"

_log = structlog.get_logger(__name__)


class HangWatch:
    """Deals with calls of one token's PKCS#11 library that take longer than they may."""

    def __init__(self, pool: SessionPool, token: RecoveringToken, timeout_s: float, stays: Callable[[], bool]) -> None:
        """Start to watch. `stays` says whether the process has a use while this token hangs as it is opened."""
        self._pool, self._token, self._timeout_s, self._stays = pool, token, timeout_s, stays
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hang watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop to watch."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        late_before = False
        while not self._stopped.wait(self._timeout_s / _LOOKS_PER_TIMEOUT):
            late = self._is_late()
            # Seen twice: a process that was itself stopped (SIGSTOP, a paused machine) finds late what goes on at once.
            if late and late_before:
                if self._token.is_proved:
                    self._end(_HANGS)
                self._stay()
                late = False
            late_before = late

    def _is_late(self) -> bool:
        return self._pool.longest_call_s() > self._timeout_s

    def _stay(self) -> None:
        """Return when the call has returned after all, or the watch ends; the process may end before."""
        if self._stays():
            _log.critical("the token hangs while it is opened", token=str(self._pool.address))
        while self._is_late() and not self._stopped.is_set():
            if not self._stays():
                self._end(_HANGS)
            if probing.answers(self._pool, self._timeout_s):
                self._end("the token hangs here and answers others; this process ends and has to be started again")
            self._stopped.wait(_PROBE_PAUSE_S)

    def _end(self, message: str) -> None:
        _log.critical(message, token=str(self._pool.address), after_s=self._timeout_s)
        os._exit(EXIT_CODE)
