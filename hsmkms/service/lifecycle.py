"""The turns of a key's life: disable, enable, delete, restore, purge; and deletion by two."""

from __future__ import annotations

from datetime import datetime

from hsmkms.clock import Clock
from hsmkms.domain.access import Action, Caller
from hsmkms.domain.events import EventType, event_of_state
from hsmkms.domain.keys import Key, KeyAction, require_usable
from hsmkms.domain.lifecycle import (
    require_deletion,
    require_enable,
    require_purge,
    require_restore,
    require_set_for_deletion,
    require_sync,
)
from hsmkms.domain.waits import Waits
from hsmkms.service.key_access import KeyAccess
from hsmkms.service.notices import notice_of
from hsmkms.store.keys import KeyStore
from hsmkms.token.room import Token


class LifecycleService:
    """Each method authorizes its caller on the key first and raises Unauthorized or KeyNotFound; each gives the key as
    it is afterwards."""

    def __init__(self, token: Token, keys: KeyStore, access: KeyAccess, waits: Waits, clock: Clock) -> None:
        self._token = token
        self._keys = keys
        self._access = access
        self._waits = waits
        self._clock = clock

    def disable(self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None) -> Key:
        """Suspend a root key. Raises KeyDeleted, KeyRootRequired, KeyStateConflict."""

        def disable(key: Key, now: datetime) -> None:
            require_usable(key, KeyAction.DISABLE, now)
            self._keys.suspend(key, notice_of(EventType.DISABLE, self._waits, now))

        return self._access.change(caller, Action.KEY_DISABLE, instance_id, reference, key_ring_id, disable)

    def enable(self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None) -> Key:
        """Make a suspended root key active. Raises KeyDeleted, KeyRootRequired, KeyStateConflict, TooEarly."""

        def enable(key: Key, now: datetime) -> None:
            require_enable(key, self._waits, now)
            self._keys.activate(key, notice_of(EventType.ENABLE, self._waits, now))

        return self._access.change(caller, Action.KEY_ENABLE, instance_id, reference, key_ring_id, enable)

    def delete(
        self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None, *, force: bool = False
    ) -> Key:
        """Delete a key; its material stays until it is purged. One that protects resources takes `force`.

        Raises KeyDeleted, AuthorizationsNotMet, DeletionPrevented, ProtectedResource.
        """

        def delete(key: Key, now: datetime) -> None:
            require_deletion(key, caller.iam_id, self._waits, now)
            notice = notice_of(EventType.DELETE, self._waits, now)
            self._keys.mark_deleted(key, caller.iam_id, notice, force=force)

        return self._access.change(caller, Action.KEY_DELETE, instance_id, reference, key_ring_id, delete)

    def restore(self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None) -> Key:
        """Bring a deleted key back. Raises KeyStateConflict, TooEarly, KeyExpired, KeyRestoreExpired."""

        def restore(key: Key, now: datetime) -> None:
            require_restore(key, self._waits, now)
            self._keys.activate(key, notice_of(EventType.RESTORE, self._waits, now))

        return self._access.change(caller, Action.KEY_RESTORE, instance_id, reference, key_ring_id, restore)

    def sync(self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None) -> Key:
        """Tell the services of a root key again how it is, whatever its state. Raises KeyRootRequired, TooEarly."""

        def repeat(key: Key, now: datetime) -> None:
            require_sync(key, self._waits, now)
            self._keys.repeat(key, notice_of(event_of_state(key), self._waits, now))

        return self._access.change(caller, Action.KEY_SYNC, instance_id, reference, key_ring_id, repeat)

    def set_for_deletion(self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None) -> Key:
        """Give the first of two words. Raises KeyDeleted, NotDualAuth, KeyStateConflict."""

        def give(key: Key, now: datetime) -> None:
            require_set_for_deletion(key, now)
            self._keys.set_for_deletion(key, now, caller.iam_id)

        return self._access.change(caller, Action.KEY_SET_FOR_DELETION, instance_id, reference, key_ring_id, give)

    def unset_for_deletion(self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None) -> Key:
        """Take the first word back, whoever gave it. Raises KeyDeleted, NotDualAuth, KeyStateConflict."""

        def take_back(key: Key, now: datetime) -> None:
            require_set_for_deletion(key, now)
            self._keys.set_for_deletion(key, None, None)

        return self._access.change(
            caller, Action.KEY_UNSET_FOR_DELETION, instance_id, reference, key_ring_id, take_back
        )

    def purge(self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None) -> Key:
        """Destroy a deleted key: its material in the token, verified there, then every row. The key as it was.

        From the first commit on nobody sees the key; what a crash interrupts `finish_purge` ends.
        Raises KeyStateConflict, TooEarly.
        """

        def begin(key: Key, now: datetime) -> None:
            require_purge(key, self._waits, now)
            self._keys.begin_purge(key, now)

        key = self._access.begin(caller, Action.KEY_PURGE, instance_id, reference, key_ring_id, begin)
        self.finish_purge(key)
        return key

    def purge_without_caller(self, key: Key) -> None:
        """The same for the job, 90 days after the deletion. Raises StaleKey."""
        self._keys.begin_purge(key, self._clock())
        self.finish_purge(key)

    def finish_purge(self, key: Key) -> None:
        """Do what is left of a purge that began, also of one that was interrupted."""
        for version in key.versions:
            self._token.destroy_key(version.id)
        self._keys.end_purge(key.id)
