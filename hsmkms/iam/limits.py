"""How many requests an instance or an identity may send: token buckets in memory, in each process on its own.

A bucket is one number, the time at which it is full again. A full one is the same as none, so idle buckets are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from hsmkms.errors import TooManyRequests

_SECOND_NS: Final = 1_000_000_000
_FEW: Final = 1_024


class RequestLimit:
    """Buckets of `burst` requests that fill at `per_s` requests a second, by the id of whom they belong to; `per_s` 0
    is no limit. `monotonic_ns` is nanoseconds of a clock that never goes back: whole numbers, so that nothing rounds.

    For the event loop alone, where nothing comes between reading a bucket and writing it.
    """

    def __init__(
        self, whose: str, per_s: float, burst: int, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._whose = whose
        self._each_ns = round(_SECOND_NS / per_s) if per_s else 0
        self._burst_ns = burst * self._each_ns
        self._now = monotonic_ns
        self._full_at: dict[str, int] = {}
        self._most = _FEW

    def take(self, owner: str, count: int = 1) -> None:
        """Take `count` requests, or as many as fit in, out of the bucket of `owner`, or raise TooManyRequests and take
        none."""
        if not self._each_ns:
            return
        now = self._now()
        full_at = self._full_at.get(owner)
        if full_at is None and len(self._full_at) >= self._most:
            self._drop_full(now)
        full_at = (now if full_at is None or full_at < now else full_at) + min(count * self._each_ns, self._burst_ns)
        over_ns = full_at - now - self._burst_ns
        if over_ns > 0:
            raise TooManyRequests(self._whose, -(-over_ns // _SECOND_NS))
        self._full_at[owner] = full_at

    def __len__(self) -> int:
        """How many buckets are held."""
        return len(self._full_at)

    def _drop_full(self, now: int) -> None:
        self._full_at = {owner: full_at for owner, full_at in self._full_at.items() if full_at > now}
        # Twice what is in use, so that looking through all of them is paid by as many new ones.
        self._most = max(_FEW, 2 * len(self._full_at))
