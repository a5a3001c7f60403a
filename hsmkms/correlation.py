"""The id that ties together what one call causes: its log lines, its answer, the notices that it sends to services."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final

_CURRENT: Final[ContextVar[str | None]] = ContextVar("correlation_id", default=None)


def current() -> str:
    """The id of the call that is being served, or a new one outside of any."""
    return _CURRENT.get() or str(uuid.uuid4())


@contextlib.contextmanager
def correlated(correlation_id: str) -> Iterator[str]:
    """Make an id the current one for the block and the threads that it hands work to."""
    before = _CURRENT.set(correlation_id)
    try:
        yield correlation_id
    finally:
        _CURRENT.reset(before)
