"""How often and how long an event is pushed to a webhook that does not take it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hsmkms.domain.events import EventType, KeyEvent
from hsmkms.domain.keys import KeyState
from hsmkms.domain.webhooks import Delivery, delivered, failed

BEGAN = datetime(2030, 1, 1, tzinfo=UTC)
EVENT = KeyEvent(
    sequence=7,
    id="event",
    type=EventType.DISABLE,
    instance_id="instance",
    key_id="key",
    key_ring_id="default",
    resource_crn="crn",
    key_state=KeyState.SUSPENDED,
    version_id="version",
    correlation_id="call",
    created_at=BEGAN,
    due_at=BEGAN + timedelta(hours=4),
    acknowledged_at=None,
    adopter_key_state=None,
)


def test_tries_end_before_the_time_to_acknowledge_does() -> None:
    """Pauses double from 5 s to 15 min; some 24 tries in four hours, then the next event has its turn."""
    delivery, now, pauses = Delivery(6), BEGAN, []
    while delivery.cursor < EVENT.sequence:
        delivery = failed(delivery, EVENT, "refused", now)
        if delivery.next_at is not None:
            pauses.append((delivery.next_at - now).total_seconds())
            now = delivery.next_at
    assert pauses[:9] == [5, 10, 20, 40, 80, 160, 320, 640, 900]
    assert set(pauses[9:]) == {900}
    assert now < EVENT.due_at <= now + timedelta(minutes=15)
    assert delivery == Delivery(7, last_error="refused")


def test_what_was_taken_leaves_nothing_behind() -> None:
    assert delivered(EVENT) == Delivery(7)
