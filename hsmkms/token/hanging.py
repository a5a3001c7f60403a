"""A library that never returns cannot be interrupted, only left behind: the process ends and another takes its place.

Whoever supervises (uvicorn with two workers or more, systemd with one) starts it again. Nothing that a caller was told
is lost by that: it is what `kill -9` does, and every answer was committed before it was given.
"""

from __future__ import annotations

import os
import threading
from typing import Final

import structlog

from hsmkms.token.sessions import SessionPool

EXIT_CODE: Final = 75
"""EX_TEMPFAIL of sysexits.h."""
_LOOKS_PER_TIMEOUT: Final = 10

_log = structlog.get_logger(__name__)


class HangWatch:
    """Ends this process when a call of the PKCS#11 library takes longer than it may."""

    def __init__(self, pool: SessionPool, timeout_s: float) -> None:
        """Start to watch."""
        self._pool, self._timeout_s = pool, timeout_s
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
            late = self._pool.longest_call_s() > self._timeout_s
            # Seen twice: a process that was itself stopped (SIGSTOP, a paused machine) finds late what goes on at once.
            if late and late_before:
                _log.critical("the token hangs; this process ends and has to be started again", after_s=self._timeout_s)
                os._exit(EXIT_CODE)
            late_before = late
