"""The id that ties together what one call causes: its log lines, its answer, the notices that it sends to services."""

from __future__ import annotations

import contextlib
import contextvars
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_CURRENT: Final[ContextVar[str | None]] = ContextVar("correlation_id", default=None)


def current() -> str:
    """The id of the call that is being served, or a new one outside of any."""
    return _CURRENT.get() or str(uuid.uuid4())


def known() -> str | None:
    """The id of the call that is being served; None outside of any."""
    return _CURRENT.get()


def adopt(correlation_id: str) -> None:
    """Make an id the current one for the rest of the task: of each request the server makes one."""
    _CURRENT.set(correlation_id)


class ContextThreads(ThreadPoolExecutor):
    """Threads that know for which call they work: its log lines and spans are made there too."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As ThreadPoolExecutor's."""
        return super().submit(partial(contextvars.copy_context().run, fn, *args, **kwargs))


@contextlib.contextmanager
def correlated(correlation_id: str) -> Iterator[str]:
    """Make an id the current one for the block and the threads that it hands work to."""
    before = _CURRENT.set(correlation_id)
    try:
        yield correlation_id
    finally:
        _CURRENT.reset(before)
