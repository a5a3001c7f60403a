"""When a key may be rotated again, enabled, restored, deleted by two, purged (contract section 3, additions 5)."""

from __future__ import annotations

from datetime import datetime

from hsmkms.domain.keys import Key, KeyAction, KeyState, effective_state, require_usable
from hsmkms.domain.waits import Waits
from hsmkms.errors import (
    AuthorizationsNotMet,
    KeyDeleted,
    KeyExpired,
    KeyRestoreExpired,
    KeyRootRequired,
    KeyStateConflict,
    NotDualAuth,
    RotationTooEarly,
    TooEarly,
)


def require_rotation_due(key: Key, waits: Waits, now: datetime) -> None:
    """Raise RotationTooEarly within an hour of the last rotation; creation does not count."""
    if key.rotated_at is not None and now - key.rotated_at < waits.rotation:
        raise RotationTooEarly(key.rotated_at + waits.rotation)


def require_enable(key: Key, waits: Waits, now: datetime) -> None:
    """Raise unless a suspended root key may be active again: TooEarly within 30 s, and as `require_usable`."""
    require_usable(key, KeyAction.ENABLE, now)
    if key.disabled_at is not None and now < key.disabled_at + waits.reversal:
        raise TooEarly("Enable", key.disabled_at + waits.reversal)


def require_restore(key: Key, waits: Waits, now: datetime) -> None:
    """Raise unless a deleted key may come back: KeyStateConflict, TooEarly, KeyExpired, KeyRestoreExpired."""
    if key.state is not KeyState.DESTROYED or key.deleted_at is None:
        raise KeyStateConflict("destroyed")
    if now < key.deleted_at + waits.reversal:
        raise TooEarly("Restore", key.deleted_at + waits.reversal)
    if key.expires_at is not None and now >= key.expires_at:
        raise KeyExpired(key.expires_at)
    if now >= key.deleted_at + waits.restore:
        raise KeyRestoreExpired


def require_deletion(key: Key, by: str, waits: Waits, now: datetime) -> None:
    """Raise KeyDeleted, or AuthorizationsNotMet unless another person set a key that needs two within seven days."""
    if key.state is KeyState.DESTROYED:
        raise KeyDeleted
    if key.needs_two_to_delete and (not is_set_for_deletion(key, waits, now) or key.deletion_set_by == by):
        raise AuthorizationsNotMet


def require_set_for_deletion(key: Key, now: datetime) -> None:
    """Raise KeyDeleted, NotDualAuth or KeyStateConflict unless somebody may give the first of two words."""
    if key.state is KeyState.DESTROYED:
        raise KeyDeleted
    if not key.needs_two_to_delete:
        raise NotDualAuth
    if effective_state(key, now) is not KeyState.ACTIVE:
        raise KeyStateConflict("active")


def is_set_for_deletion(key: Key, waits: Waits, now: datetime) -> bool:
    """Whether the first of two words was given and still counts."""
    return key.deletion_set_at is not None and now < key.deletion_set_at + waits.deletion_authorization


def require_sync(key: Key, waits: Waits, now: datetime) -> None:
    """Raise KeyRootRequired, or TooEarly within an hour of what the key's services were told last."""
    if key.extractable:
        raise KeyRootRequired
    if key.noticed_at is not None and now < key.noticed_at + waits.sync:
        raise TooEarly("Sync", key.noticed_at + waits.sync)


def require_purge(key: Key, waits: Waits, now: datetime) -> None:
    """Raise KeyStateConflict unless deleted, TooEarly within four hours of that."""
    if key.state is not KeyState.DESTROYED or key.deleted_at is None:
        raise KeyStateConflict("destroyed")
    if now < key.deleted_at + waits.purge_allowed:
        raise TooEarly("Purge", key.deleted_at + waits.purge_allowed)
