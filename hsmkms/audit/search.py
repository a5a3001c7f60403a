"""Read events back from the logs, in the order of their time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from hsmkms.audit import chain
from hsmkms.audit.event import Event
from hsmkms.audit.logfile import lines_of, logs_in


class _Record(msgspec.Struct):
    event: Event | None = None


_decode = msgspec.json.Decoder(_Record).decode


@dataclass(frozen=True, slots=True)
class Filter:
    """What is wanted; None takes all. `key` is a key's id, `actor` an IAM id; times are UTC, without the end."""

    key: str | None = None
    actor: str | None = None
    action: str | None = None
    outcome: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def takes(self, event: Event) -> bool:
        """True if the event is wanted. An action that ends with a full stop takes all that begin so."""
        return (
            (self.key is None or self.key in (event.target.name, event.response_data.key_id))
            and (self.actor is None or self.actor in (event.initiator.id, event.initiator.name))
            and (self.action is None or event.action == self.action or _is_under(event.action, self.action))
            and (self.outcome is None or event.outcome == self.outcome)
            and (self.since is None or event.event_time >= self.since)
            and (self.until is None or event.event_time < self.until)
        )


def _is_under(action: str, group: str) -> bool:
    return group.endswith(".") and action.startswith(group)


def search(directories: Sequence[Path], wanted: Filter) -> Iterator[Event]:
    """Events that are wanted. A line that is no record is passed over: `verify` is what tells of it. Raises OSError."""
    logs = [_events(path, wanted) for path in logs_in(directories)]
    return heapq.merge(*logs, key=lambda event: event.event_time)


def _events(path: Path, wanted: Filter) -> Iterator[Event]:
    for text in lines_of(path):
        parts = chain.split(text.rstrip(b"\n"))
        if parts is None:
            continue
        try:
            event = _decode(b"{" + parts[1]).event
        except msgspec.MsgspecError:
            continue
        if event is not None and wanted.takes(event):
            yield event
