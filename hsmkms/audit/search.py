"""Read events back from the logs, in the order of their time."""

from __future__ import annotations

import heapq
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec

from hsmkms.audit import chain
from hsmkms.audit.event import PENDING, Event
from hsmkms.audit.logfile import lines_of, logs_in
from hsmkms.errors import AuditUnreadable

_TAIL_BLOCK: Final = 1 << 16
_SLACK: Final = timedelta(seconds=10)
"""An event is dated before it is written, so that a log may hold one that is older than the log's name."""


class _Record(msgspec.Struct):
    event: msgspec.Raw = msgspec.Raw(b"")


_decode = msgspec.json.Decoder(_Record).decode
_decode_event = msgspec.json.Decoder(Event).decode


@dataclass(frozen=True, slots=True)
class Found:
    """An event, and its JSON as it stands in the log."""

    event: Event
    text: bytes


@dataclass(frozen=True, slots=True)
class Filter:
    """What is wanted; None takes all. `key` is a key's id, `actor` an IAM id, `correlation` what an answer's header
    Correlation-Id said; times are UTC, without the end."""

    key: str | None = None
    actor: str | None = None
    action: str | None = None
    outcome: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    correlation: str | None = None

    def takes(self, event: Event) -> bool:
        """True if the event is wanted. An action that ends with a full stop takes all that begin so."""
        return (
            (self.key is None or self.key in (event.target.name, event.response_data.key_id))
            and (self.actor is None or self.actor in (event.initiator.id, event.initiator.name))
            and (self.action is None or event.action == self.action or _is_under(event.action, self.action))
            and (self.outcome is None or event.outcome == self.outcome)
            and (self.since is None or event.event_time >= self.since)
            and (self.until is None or event.event_time < self.until)
            and (self.correlation is None or event.correlation_id == self.correlation)
        )


def _is_under(action: str, group: str) -> bool:
    return group.endswith(".") and action.startswith(group)


def search(directories: Sequence[Path], wanted: Filter) -> Iterator[Found]:
    """Events that are wanted. A line that is no record, and what is named like a log and is no file, is passed over:
    `verify` is what tells of it. Raises AuditUnreadable.

    A log is opened when the events before its first record have been given: there may be more logs than a process can
    open files.
    """
    waiting = deque(_files_in(directories))
    running: list[tuple[datetime, int, Found, Iterator[Found]]] = []
    number = 0
    while waiting or running:
        while waiting and (not running or _began(waiting[0]) <= f"{running[0][0] + _SLACK:%Y%m%dT%H%M%S}"):
            events = _events(waiting.popleft(), wanted)
            first = next(events, None)
            if first is not None:
                number += 1
                heapq.heappush(running, (first.event.event_time, number, first, events))
        if not running:
            continue
        _, place, found, events = running[0]
        yield found
        following = next(events, None)
        if following is None:
            heapq.heappop(running)
        else:
            heapq.heapreplace(running, (following.event.event_time, place, following, events))


def last(directories: Sequence[Path], most: int) -> list[Found]:
    """The last events, from the ends of the logs alone. Raises AuditUnreadable."""
    newest = (found for path in _files_in(directories) for found in _found(_last_lines(path, most)))
    return sorted(heapq.nlargest(most, newest, key=_time), key=_time)


def unfinished(events: Iterable[Found]) -> list[Found]:
    """Intents without an outcome: of a process that died, or one that is about to write it."""
    begun: dict[str, Found] = {}
    for found in events:
        if found.event.outcome == PENDING:
            begun[found.event.id] = found
        elif found.event.intent is not None:
            begun.pop(found.event.intent, None)
    return list(begun.values())


class Follower:
    """Gives what is added to the logs, those to come as well, from now on."""

    def __init__(self, directories: Sequence[Path], wanted: Filter) -> None:
        self._directories = directories
        self._wanted = wanted
        self._read: dict[Path, int] = {}
        for path in _files_in(directories):
            with _reading(path):
                self._read[path] = path.stat().st_size

    def news(self) -> list[Found]:
        """Events since the last time, in their order. Raises AuditUnreadable."""
        events: list[Found] = []
        for path in _files_in(self._directories):
            text = b""
            with _reading(path), path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                text = file.read()
            end = text.rfind(b"\n") + 1
            self._read[path] = self._read.get(path, 0) + end
            events += [found for found in _found(text[:end].splitlines()) if self._wanted.takes(found.event)]
        return sorted(events, key=_time)


def _files_in(directories: Sequence[Path]) -> list[Path]:
    return [path for path in logs_in(directories) if path.is_file()]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Nothing is read of a log that was retired since it was listed. Raises AuditUnreadable."""
    try:
        yield
    except FileNotFoundError:
        return
    except OSError as error:
        raise AuditUnreadable(f"The audit log {str(path)!r} cannot be read: {error.strerror}.") from error


def _time(found: Found) -> datetime:
    return found.event.event_time


def _began(path: Path) -> str:
    """When a log was opened, as its name says to the second."""
    return path.name.partition("-")[0]


def _events(path: Path, wanted: Filter) -> Iterator[Found]:
    return (found for found in _found(_lines(path)) if wanted.takes(found.event))


def _lines(path: Path) -> Iterator[bytes]:
    with _reading(path):
        yield from lines_of(path)


def _found(lines: Iterable[bytes]) -> Iterator[Found]:
    for text in lines:
        parts = chain.split(text.rstrip(b"\n"))
        if parts is None:
            continue
        try:
            raw = bytes(_decode(b"{" + parts[1]).event)
            if raw:
                yield Found(_decode_event(raw), raw)
        except (msgspec.MsgspecError, RecursionError):
            continue


def _last_lines(path: Path, most: int) -> list[bytes]:
    text, start = b"", 0
    with _reading(path), path.open("rb") as file:
        start = file.seek(0, os.SEEK_END)
        # Checkpoints stand between events: twice as many lines are enough, or the log is read to its beginning.
        while start and text.count(b"\n") <= 2 * most:
            begin = max(0, start - _TAIL_BLOCK)
            file.seek(begin)
            text = file.read(start - begin) + text
            start = begin
    lines = text.splitlines()
    return lines[1:] if start else lines
