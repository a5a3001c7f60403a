"""Wakes the requests that wait for events, so that they need not ask the database again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from hsmkms.errors import TooManyWaiting

MAX_WAITING: Final = 16
"""Waiting requests of one identity in one process."""


class EventBell:
    """Rings for those who wait for events of an instance. The snapshot's thread rings, when the change feed says so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[object, tuple[str, str, Callable[[], None]]] = {}

    @contextmanager
    def heard(self, instance_id: str, iam_id: str, wake: Callable[[], None]) -> Iterator[None]:
        """Call `wake`, from any thread, at each ring for an instance while the block runs. Raises TooManyWaiting."""
        place = object()
        with self._lock:
            if sum(waiter == iam_id for _, waiter, _ in self._waiting.values()) >= MAX_WAITING:
                raise TooManyWaiting
            self._waiting[place] = (instance_id, iam_id, wake)
        try:
            yield
        finally:
            with self._lock:
                del self._waiting[place]

    def ring(self, instance_ids: Iterable[str] | None) -> None:
        """Wake who waits for these instances, or with None everybody."""
        with self._lock:
            waiting = list(self._waiting.values())
        wanted = None if instance_ids is None else set(instance_ids)
        for instance_id, _, wake in waiting:
            if wanted is None or instance_id in wanted:
                wake()
