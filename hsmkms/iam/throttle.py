"""Failed log-ins slow down further ones of the same API key from the same address, with growing delay.

What is no API key at all counts as one key without an id. In memory, in each process. The right secret is never asked
to wait, so that nobody can lock out another (see `service.tokens`).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hsmkms.errors import TooManyAttempts

FREE_FAILURES: Final = 5
FIRST_DELAY_S: Final = 1.0
MAX_DELAY_S: Final = 900.0
FORGOTTEN_AFTER_S: Final = 3_600.0
_REMEMBERED: Final = 20_000


@dataclass(slots=True)
class _Failures:
    count: int
    last_at: float
    refused_until: float


class Throttle:
    """`monotonic` is seconds of a clock that never goes back."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._now = monotonic
        self._lock = threading.Lock()
        self._failures: OrderedDict[tuple[str, str], _Failures] = OrderedDict()

    def require(self, key_id: str, address: str) -> None:
        """Raise TooManyAttempts while an earlier failure's delay runs."""
        with self._lock:
            known = self._failures.get((key_id, address))
        wait_s = 0.0 if known is None else known.refused_until - self._now()
        if wait_s > 0:
            raise TooManyAttempts(wait_s)

    def failed(self, key_id: str, address: str) -> None:
        """Count a failure: the first FREE_FAILURES cost nothing, each further one twice the delay of the last."""
        now, place = self._now(), (key_id, address)
        with self._lock:
            known = self._failures.pop(place, None)
            if known is None or now - known.last_at > FORGOTTEN_AFTER_S:
                known = _Failures(0, now, now)
            known.count += 1
            known.last_at = now
            over = known.count - FREE_FAILURES
            if over > 0:
                known.refused_until = now + min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(over - 1, 20))
            self._failures[place] = known
            while len(self._failures) > _REMEMBERED:
                self._failures.popitem(last=False)

    def succeeded(self, key_id: str, address: str) -> None:
        """Forget the pair's failures."""
        with self._lock:
            self._failures.pop((key_id, address), None)
