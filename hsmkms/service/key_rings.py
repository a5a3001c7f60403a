"""Key rings: create, list, delete (contract section 1.5, additions section 3.8)."""

from __future__ import annotations

from collections.abc import Sequence

from hsmkms.clock import Clock
from hsmkms.domain.access import Action, Caller, Target
from hsmkms.domain.ids import DEFAULT_KEY_RING, MAX_KEY_RINGS, is_key_ring_id
from hsmkms.domain.keys import KeyState
from hsmkms.domain.tenants import KeyRing
from hsmkms.errors import (
    InvalidField,
    KeyRingNotEmpty,
    KeyRingNotFound,
    KeyRingQuota,
    KeyRingReserved,
    Unauthorized,
)
from hsmkms.service.authorize import authorize
from hsmkms.service.snapshot import Snapshot
from hsmkms.store.tenants import TenantStore


class KeyRingService:
    """Each method authorizes its caller on the whole instance first."""

    def __init__(self, tenants: TenantStore, snapshot: Snapshot, clock: Clock) -> None:
        self._tenants = tenants
        self._snapshot = snapshot
        self._clock = clock

    def list(self, caller: Caller, instance_id: str) -> Sequence[KeyRing]:
        """All rings, `default` first."""
        self._authorize(caller, Action.KEY_RING_LIST, instance_id)
        return [KeyRing(DEFAULT_KEY_RING, None, None), *self._tenants.key_rings(instance_id)]

    def create(self, caller: Caller, instance_id: str, ring_id: str) -> None:
        """Create a ring. Raises InvalidField, KeyRingReserved, KeyRingExists, KeyRingQuota."""
        self._authorize(caller, Action.KEY_RING_CREATE, instance_id)
        if ring_id == DEFAULT_KEY_RING:
            raise KeyRingReserved
        if not is_key_ring_id(ring_id):
            raise InvalidField("keyRingID", "A key ring id has 2 to 100 letters, digits and hyphens.")
        ring = KeyRing(ring_id, self._clock(), caller.iam_id)
        if not self._tenants.add_key_ring(instance_id, ring, MAX_KEY_RINGS):
            raise KeyRingQuota(MAX_KEY_RINGS)

    def delete(self, caller: Caller, instance_id: str, ring_id: str, *, force: bool) -> None:
        """Delete a ring without keys; with `force` deleted keys in it move to `default` first.

        Raises KeyRingReserved, KeyRingNotFound, KeyRingNotEmpty.
        """
        self._authorize(caller, Action.KEY_RING_DELETE, instance_id)
        if ring_id == DEFAULT_KEY_RING:
            raise KeyRingReserved
        if all(ring.id != ring_id for ring in self._tenants.key_rings(instance_id)):
            raise KeyRingNotFound
        moved = int(KeyState.DESTROYED) if force else None
        if not self._tenants.delete_key_ring(instance_id, ring_id, move_in_state=moved):
            raise KeyRingNotEmpty("The key ring holds keys. Move each by PATCH, or add force=true if all are deleted.")

    def _authorize(self, caller: Caller, action: Action, instance_id: str) -> None:
        instance = self._snapshot.instance(instance_id)
        if instance is None:
            raise Unauthorized
        authorize(caller, action, Target(instance.account, instance_id))
