"""Events: what happened to a root key, told to every service with a registration of it (additions 3.9, 3.10 and 11)."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

from hsmkms.domain.keys import Key, KeyState, KeyVersion
from hsmkms.errors import InvalidField, KeyStateConflict, RegistrationVersion


class EventType(enum.Enum):
    """What services are told."""

    ROTATE = "rotate"
    DISABLE = "disable"
    ENABLE = "enable"
    RESTORE = "restore"
    DELETE = "delete"


class AdopterKeyState(enum.Enum):
    """What a service did with the DEKs under the key. Only the first is seen in IBM's sources (additions 3.10)."""

    DEK_ENABLED = "DEK_ENABLED"
    DEK_DISABLED = "DEK_DISABLED"
    DEK_DELETED = "DEK_DELETED"


class EventStatus(enum.Enum):
    """Pending until it is acknowledged; failed when that takes more than four hours."""

    PENDING = "pending"
    ACKNOWLEDGED = "acknowledged"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEvent:
    """One event for one registration. `sequence` orders all events of a deployment as they were committed; `key_state`
    and `version` are those after what happened."""

    sequence: int
    id: str
    type: EventType
    instance_id: str
    key_id: str
    key_ring_id: str
    resource_crn: str
    key_state: KeyState
    version_id: str
    correlation_id: str
    created_at: datetime
    due_at: datetime
    acknowledged_at: datetime | None
    adopter_key_state: AdopterKeyState | None

    def status(self, now: datetime) -> EventStatus:
        """How its service took it."""
        if self.acknowledged_at is not None:
            return EventStatus.ACKNOWLEDGED
        return EventStatus.FAILED if now >= self.due_at else EventStatus.PENDING


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """What a service says of an event: `done_at` is its own clock's; `version_id` the version that its DEK is wrapped
    with now."""

    event_id: str
    adopter_key_state: AdopterKeyState
    done_at: datetime
    version_id: str | None
    delete_registration: bool


def event_of_state(key: Key) -> EventType:
    """The event that would bring a service to where the key is now: what `sync` sends."""
    if key.state is KeyState.DESTROYED:
        return EventType.DELETE
    if key.state is KeyState.SUSPENDED:
        return EventType.DISABLE
    return EventType.ENABLE if len(key.versions) == 1 else EventType.ROTATE


def require_acknowledgement(event: KeyEvent, key: Key, acknowledgement: Acknowledgement) -> KeyVersion | None:
    """The version that an acknowledgement names, if it fits the event or, as a service may have looked later, the key.

    Raises InvalidField, RegistrationVersion, KeyStateConflict.
    """
    enabled = acknowledgement.adopter_key_state is AdopterKeyState.DEK_ENABLED
    usable = {state in (KeyState.ACTIVE, KeyState.DEACTIVATED) for state in (event.key_state, key.state)}
    if enabled not in usable:
        raise KeyStateConflict("active" if enabled else "suspended or destroyed")
    if acknowledgement.version_id is None:
        if enabled:
            raise InvalidField("rewrappedKeyVersion", "DEK_ENABLED needs keyStateData.rewrappedKeyVersion.")
        return None
    version = key.version(acknowledgement.version_id)
    if version is None:
        raise RegistrationVersion("The key has no such version. Give the id of one of its versions.")
    ids = [one.id for one in key.versions]
    if event.type is EventType.ROTATE and ids.index(version.id) > ids.index(event.version_id):
        raise RegistrationVersion("The DEK is not wrapped with the version of the event, or a newer one.")
    return version
