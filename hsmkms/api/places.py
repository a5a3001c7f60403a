"""Threads are kept for those who read while changes wait: for a lock of the database, or for its standby."""

from __future__ import annotations

import asyncio
from typing import Final

from hsmkms.errors import StoreUnavailable

_CHANGES: Final = 30
"""Of the 40 threads that anyio has for the routes of a process."""
_WAIT_S: Final = 5.0


class ChangePlaces:
    """How many changes may be under way at once in one process."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_CHANGES)

    async def __aenter__(self) -> None:
        """Take a place. Raises StoreUnavailable when none gets free."""
        try:
            async with asyncio.timeout(_WAIT_S):
                await self._free.acquire()
        except TimeoutError:
            raise StoreUnavailable("Too many changes wait for the database. Try again.") from None

    async def __aexit__(self, *_: object) -> None:
        self._free.release()
