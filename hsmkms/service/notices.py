"""What the services of a key are told about a change of it."""

from __future__ import annotations

from datetime import datetime

from hsmkms.correlation import current
from hsmkms.domain.events import EventType
from hsmkms.domain.waits import Waits
from hsmkms.store.events import Notice


def notice_of(type: EventType, waits: Waits, now: datetime) -> Notice:
    """A notice under the correlation id of the call that is being served."""
    return Notice(type, current(), now, now + waits.acknowledgement)
