"""Policies of a single key: read and set (contract section 1.3)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from hsmkms.clock import Clock
from hsmkms.domain.access import Action, Caller
from hsmkms.domain.ids import new_id
from hsmkms.domain.key_policies import KeyPolicy, KeyPolicyKind, KeyPolicyWish, merged
from hsmkms.domain.keys import Key, KeyState
from hsmkms.errors import InvalidField, KeyDeleted, KeyRootRequired
from hsmkms.service.key_access import KeyAccess
from hsmkms.store.keys import KeyStore


class KeyPolicyService:
    """Each method authorizes its caller on the key first and raises Unauthorized or KeyNotFound."""

    def __init__(self, keys: KeyStore, access: KeyAccess, clock: Clock) -> None:
        self._keys = keys
        self._access = access
        self._clock = clock

    def read(self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None) -> Key:
        """The key with its policies."""
        return self._access.key(caller, Action.KEY_POLICY_READ, instance_id, reference, key_ring_id)

    def put(
        self,
        caller: Caller,
        instance_id: str,
        reference: str,
        key_ring_id: str | None,
        wishes: Sequence[KeyPolicyWish],
    ) -> Key:
        """Set policies. Raises KeyDeleted, KeyRootRequired (rotation of a standard key), InvalidField."""

        def put(key: Key, now: datetime) -> None:
            if key.state is KeyState.DESTROYED:
                raise KeyDeleted
            self._keys.put_policies(key, [policy_of(wish, key, caller.iam_id, now) for wish in wishes])

        return self._access.change(caller, Action.KEY_POLICY_WRITE, instance_id, reference, key_ring_id, put)


def policy_of(wish: KeyPolicyWish, key: Key, by: str, now: datetime) -> KeyPolicy:
    """The policy that a wish makes of what the key has. Raises KeyRootRequired, InvalidField."""
    if wish.kind is KeyPolicyKind.ROTATION:
        if not key.is_root:
            raise KeyRootRequired
        if key.imported:
            raise InvalidField("rotation", "Only keys that were generated here rotate by themselves.")
    held = key.policy(wish.kind)
    enabled, interval_month = merged(wish, held)
    return KeyPolicy(
        id=new_id() if held is None else held.id,
        kind=wish.kind,
        enabled=enabled,
        interval_month=interval_month,
        created_at=now if held is None else held.created_at,
        created_by=by if held is None else held.created_by,
        updated_at=now,
        updated_by=by,
    )
