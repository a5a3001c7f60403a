"""Webhooks: where the events of a source service's instance are pushed to (RFC 8935), beside being read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from hsmkms.domain.events import KeyEvent

MAX_URL_CHARS: Final = 2_000
_FIRST_PAUSE: Final = timedelta(seconds=5)
_LONGEST_PAUSE: Final = timedelta(minutes=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Events of the resources whose CRNs begin with `source` (eight segments) go to `url`; `ca_file` is trusted there
    instead of the system's certificates."""

    id: str
    account: str
    source: str
    url: str
    ca_file: str | None = None
    created_at: datetime
    created_by: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """How far a webhook is: all events up to `cursor` are delivered or given up; the next one was tried `attempts`
    times and is not tried again before `next_at`."""

    cursor: int
    attempts: int = 0
    next_at: datetime | None = None
    last_error: str | None = None


def delivered(event: KeyEvent) -> Delivery:
    """After an event was taken, or need not be delivered."""
    return Delivery(event.sequence)


def failed(before: Delivery, event: KeyEvent, error: str, now: datetime) -> Delivery:
    """After a try that failed: the next one comes after twice the pause, until the time to acknowledge is over."""
    pause = min(_FIRST_PAUSE * 2 ** min(before.attempts, 16), _LONGEST_PAUSE)
    if now + pause >= event.due_at:
        return Delivery(event.sequence, last_error=error)
    return Delivery(before.cursor, before.attempts + 1, now + pause, error)
