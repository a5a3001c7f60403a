"""The way of every use case to an instance and a key: authorize, look up, and say no more than the caller may hear."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from hsmkms.clock import Clock
from hsmkms.domain.access import Action, Caller, Target
from hsmkms.domain.ids import DEFAULT_KEY_RING
from hsmkms.domain.keys import Key
from hsmkms.domain.tenants import Instance
from hsmkms.errors import KeyNotFound, KeyRingNotFound, KeyStateConflict, Unauthorized
from hsmkms.service.acts import current
from hsmkms.service.authorize import authorize, authorize_within
from hsmkms.service.snapshot import Snapshot
from hsmkms.store.keys import KeyStore
from hsmkms.store.seen import StaleKey
from hsmkms.store.tenants import TenantStore

_ATTEMPTS: Final = 4


class KeyAccess:
    """Shared by the services of keys."""

    def __init__(self, keys: KeyStore, tenants: TenantStore, snapshot: Snapshot, clock: Clock) -> None:
        self._keys = keys
        self._tenants = tenants
        self._snapshot = snapshot
        self._clock = clock

    def instance(self, caller: Caller, action: Action, instance_id: str, key_ring_id: str | None) -> Instance:
        """An instance on which, or on a ring of which, the caller may do `action`. Raises Unauthorized."""
        instance = self.known_instance(instance_id)
        authorize(caller, action, Target(instance.account, instance_id, key_ring_id))
        return instance

    def known_instance(self, instance_id: str) -> Instance:
        """An instance, whoever asks. Raises Unauthorized when there is none."""
        instance = self._snapshot.instance(instance_id)
        if instance is None:
            raise Unauthorized
        return instance

    def key(self, caller: Caller, action: Action, instance_id: str, reference: str, key_ring_id: str | None) -> Key:
        """The key from the database. A key in another ring than the one named is not found (contract section 1).

        Only who has the right on the instance or ring hears that a key is not there; to anybody else a key that does
        not exist and one that he may not touch are the same. Raises Unauthorized, KeyNotFound.
        """
        account = self.known_instance(instance_id).account
        may_hear = authorize_within(caller, action, Target(account, instance_id, key_ring_id))
        key = self._keys.get(instance_id, reference)
        if key is None or key_ring_id not in (None, key.key_ring_id):
            raise KeyNotFound if may_hear else Unauthorized
        current().key = key
        authorize(caller, action, Target(account, instance_id, key.key_ring_id, key.id))
        return key

    def change(
        self,
        caller: Caller,
        action: Action,
        instance_id: str,
        reference: str,
        key_ring_id: str | None,
        act: Callable[[Key, datetime], None],
    ) -> Key:
        """Read, decide, commit; again when another request changed the key in between. The key as it is afterwards.

        `act` raises what it refuses, or StaleKey. Raises Unauthorized, KeyNotFound, KeyStateConflict.
        """
        key = self.begin(caller, action, instance_id, reference, key_ring_id, act)
        changed = self._keys.get(instance_id, key.id)
        if changed is None:
            raise KeyNotFound
        current().key = changed
        return changed

    def begin(
        self,
        caller: Caller,
        action: Action,
        instance_id: str,
        reference: str,
        key_ring_id: str | None,
        act: Callable[[Key, datetime], None],
    ) -> Key:
        """The same for what leaves no key that could be read again; the key as it was."""
        for _ in range(_ATTEMPTS):
            key = self.key(caller, action, instance_id, reference, key_ring_id)
            current().before = key
            try:
                act(key, self._clock())
            except StaleKey:
                continue
            self._snapshot.forget(key.id)
            return key
        raise KeyStateConflict("a settled")

    def require_ring(self, instance_id: str, ring_id: str) -> None:
        """Raise KeyRingNotFound unless the ring is there."""
        if ring_id == DEFAULT_KEY_RING:
            return
        if all(ring.id != ring_id for ring in self._tenants.key_rings(instance_id)):
            raise KeyRingNotFound

    def rings(
        self, caller: Caller, action: Action, instance_id: str, key_ring_id: str | None
    ) -> tuple[str, ...] | None:
        """The rings to list: the one named, all (None), or those that the caller's grants of whole rings reach.

        Raises Unauthorized, KeyRingNotFound.
        """
        if key_ring_id is not None:
            self.instance(caller, action, instance_id, key_ring_id)
            self.require_ring(instance_id, key_ring_id)
            return (key_ring_id,)
        account = self.known_instance(instance_id).account
        if authorize_within(caller, action, Target(account, instance_id)):
            return None
        rings = caller.rights.key_rings(action, instance_id)
        if not rings:
            raise Unauthorized
        # Policies may name more rings than there are, by thousands.
        there = {DEFAULT_KEY_RING, *(ring.id for ring in self._tenants.key_rings(instance_id))}
        return tuple(sorted(rings & there))
