"""What the key service tells adopters: keys, DEKs, events."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

from hsmkms.domain.secrets import SecretBytes


class KeyState(enum.IntEnum):
    """States of a key (contract section 3)."""

    ACTIVE = 1
    SUSPENDED = 2
    DEACTIVATED = 3
    DESTROYED = 5


class AdopterKeyState(enum.Enum):
    """What an adopter says that it did with the DEKs."""

    DEK_ENABLED = "DEK_ENABLED"
    DEK_DISABLED = "DEK_DISABLED"
    DEK_DELETED = "DEK_DELETED"


@dataclass(frozen=True, slots=True)
class Key:
    """A root key's metadata; `version` is the id of its newest version, None once it is deleted."""

    id: str
    crn: str
    name: str
    state: KeyState
    version: str | None

    @property
    def opens(self) -> bool:
        """Whether DEKs under it can be unwrapped."""
        return self.state in (KeyState.ACTIVE, KeyState.DEACTIVATED)


@dataclass(frozen=True, slots=True)
class WrappedDek:
    """A DEK in clear and as it may be stored, and the id of the key version that wrapped it."""

    plaintext: SecretBytes
    ciphertext: str
    key_version: str


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """The same DEK under the newest key version, whose id `key_version` is."""

    ciphertext: str
    key_version: str


@dataclass(frozen=True, slots=True)
class Unwrapped:
    """A DEK; `key_version` is the id of the version that had wrapped it. If that is not the newest one, `rewrapped` is
    what to store from now on."""

    plaintext: SecretBytes
    key_version: str
    rewrapped: Rewrapped | None


@dataclass(frozen=True, slots=True)
class Registration:
    """A resource that a key protects, as its service told the key service; `key_version` is the id of the version that
    its DEK was last said to be under."""

    key_id: str
    resource_crn: str
    key_version: str
    created_at: datetime
    prevents_deletion: bool


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a key that protects a resource (docs/events.md). `type` is rotate, disable, enable, restore or
    delete; `key_state` and `key_version` are those after it, which may be past by now."""

    id: str
    type: str
    key_id: str
    key_crn: str
    resource_crn: str
    key_state: KeyState
    key_version: str
    correlation_id: str
    acknowledged: bool


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events in order, and where the next page begins."""

    events: tuple[Event, ...]
    cursor: int


def parse_key_crn(crn: str) -> tuple[str, str] | None:
    """Instance GUID and key id in `crn:v1:bluemix:public:kms:<region>:a/<account>:<instance>:key:<id>`, or None."""
    parts = crn.split(":")
    if len(parts) != 10 or parts[:5] != ["crn", "v1", "bluemix", "public", "kms"] or parts[8] != "key":
        return None
    return (parts[7], parts[9]) if parts[7] and parts[9] else None
