"""Keys, their versions and states, and which action a state permits (contract section 3)."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hsmkms.domain.importing import Passage
from hsmkms.domain.key_policies import KeyPolicy, KeyPolicyKind
from hsmkms.errors import KeyDeleted, KeyIncomplete, KeyRootRequired, KeyStateConflict

NAME_CHARS: Final = (2, 90)
DESCRIPTION_CHARS: Final = (2, 240)
MAX_TAGS: Final = 30
TAG_CHARS: Final = 30
TAG_FORBIDDEN: Final = frozenset("<>,:&|")
MAX_ALIASES: Final = 5
STANDARD_KEY_BYTES: Final = 32


class KeyState(enum.IntEnum):
    """States as the wire numbers them; 0 (pre-activation) is never seen on a key, 4 does not exist."""

    PRE_ACTIVATION = 0
    ACTIVE = 1
    SUSPENDED = 2
    DEACTIVATED = 3
    DESTROYED = 5


class KeyAction(enum.Enum):
    """Actions that the state of a root key decides about."""

    # Enum's own is a function of Python, and members are the same objects everywhere.
    __hash__ = object.__hash__

    WRAP = "wrap"
    UNWRAP = "unwrap"
    REWRAP = "rewrap"
    ROTATE = "rotate"
    DISABLE = "disable"
    ENABLE = "enable"


_ACTIVE: Final = (KeyState.ACTIVE,)
_ACTIVE_OR_DEACTIVATED: Final = (KeyState.ACTIVE, KeyState.DEACTIVATED)
PERMITTED: Final[dict[KeyAction, tuple[KeyState, ...]]] = {
    KeyAction.WRAP: _ACTIVE,
    KeyAction.UNWRAP: _ACTIVE_OR_DEACTIVATED,
    KeyAction.REWRAP: _ACTIVE_OR_DEACTIVATED,
    KeyAction.ROTATE: _ACTIVE_OR_DEACTIVATED,
    KeyAction.DISABLE: _ACTIVE,
    KeyAction.ENABLE: (KeyState.SUSPENDED,),
}


def key_owner(instance_id: str, key_id: str) -> str:
    """Whose a version of a root key is."""
    return f"{instance_id} {key_id}"


def sealing_owner(instance_id: str) -> str:
    """Whose the key is under which an instance's standard keys are sealed."""
    return f"{instance_id} sealing"


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """One AES object in the token.

    `id` is its CKA_ID; `check_value` tells the object apart from an impostor; `owner` is the instance and key that its
    label names, so that a row moved to another owner finds no object; `passage` is how it came into the token.
    """

    id: str
    created_at: datetime
    check_value: bytes
    owner: str
    passage: Passage = Passage.GENERATED


@dataclass(frozen=True, slots=True)
class Key:
    """A root key (versions, newest first) or a standard key (no versions; its sealed payload stays in the store)."""

    id: str
    instance_id: str
    key_ring_id: str
    name: str
    description: str | None
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    extractable: bool
    imported: bool
    state: KeyState
    created_at: datetime
    created_by: str
    updated_at: datetime | None
    rotated_at: datetime | None
    expires_at: datetime | None
    deleted_at: datetime | None
    deleted_by: str | None
    versions: tuple[KeyVersion, ...]
    disabled_at: datetime | None = None
    deletion_set_at: datetime | None = None
    deletion_set_by: str | None = None
    noticed_at: datetime | None = None
    policies: tuple[KeyPolicy, ...] = ()

    @property
    def is_root(self) -> bool:
        """Root keys never leave the token."""
        return not self.extractable

    @property
    def current(self) -> KeyVersion:
        """The version that wraps. Only root keys have one, which `require_usable` made sure of."""
        return self.versions[0]

    def policy(self, kind: KeyPolicyKind) -> KeyPolicy | None:
        """The policy of a kind, if one was ever set."""
        return next((policy for policy in self.policies if policy.kind is kind), None)

    @property
    def needs_two_to_delete(self) -> bool:
        """Whether deleting it takes two people."""
        policy = self.policy(KeyPolicyKind.DUAL_AUTH_DELETE)
        return policy is not None and policy.enabled

    def version(self, version_id: str) -> KeyVersion | None:
        """The version with that id, if it is this key's."""
        for version in self.versions:
            if version.id == version_id:
                return version
        return None


def effective_state(key: Key, now: datetime) -> KeyState:
    """The state that counts: an Active key is Deactivated from its expiration date on, job or no job."""
    if key.state is KeyState.ACTIVE and key.expires_at is not None and now >= key.expires_at:
        return KeyState.DEACTIVATED
    return key.state


def require_usable(key: Key, action: KeyAction, now: datetime) -> None:
    """Raise unless `action` may be done with `key` at `now`.

    Raises KeyDeleted, KeyRootRequired, KeyStateConflict (additions section 4 and 5) or KeyIncomplete.
    """
    state = effective_state(key, now)
    if state is KeyState.DESTROYED:
        raise KeyDeleted
    if key.extractable:
        raise KeyRootRequired
    if state not in PERMITTED[action]:
        raise KeyStateConflict("suspended" if action is KeyAction.ENABLE else "active")
    if not key.versions:
        raise KeyIncomplete
