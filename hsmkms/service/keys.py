"""Keys: create, list, read, rotate, move, delete."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hsmkms.clock import Clock
from hsmkms.domain.access import Action, Caller, Target
from hsmkms.domain.ids import DEFAULT_KEY_RING, new_id
from hsmkms.domain.keys import (
    STANDARD_KEY_BYTES,
    Key,
    KeyAction,
    KeyState,
    KeyVersion,
    effective_state,
    key_owner,
    require_rotation_due,
    require_usable,
)
from hsmkms.domain.new_key import NewKey, require_valid
from hsmkms.domain.query import KeyQuery, VersionQuery
from hsmkms.domain.secrets import SecretBytes
from hsmkms.domain.tenants import Instance
from hsmkms.errors import KeyDeleted, KeyNotFound, KeyRingNotFound, KeySearchTooBroad, KeyStateConflict, Unauthorized
from hsmkms.service.authorize import authorize, authorize_within
from hsmkms.service.material import Material
from hsmkms.service.snapshot import Snapshot
from hsmkms.store.keys import KeyStore, StaleKey
from hsmkms.store.tenants import TenantStore
from hsmkms.token.room import Token

MAX_SEARCHED_KEYS: Final = 5_000
_ATTEMPTS: Final = 4


@dataclass(frozen=True, slots=True)
class KeyPage:
    """One page of a list. `incomplete` says that only the direct hit of a too broad search is in it."""

    keys: Sequence[Key]
    total: int
    incomplete: bool


@dataclass(frozen=True, slots=True)
class KeyWithPayload:
    """A key; `payload` only for a standard key that is not deleted."""

    key: Key
    payload: SecretBytes | None


class KeyService:
    """The life of keys. Each method authorizes its caller first and raises Unauthorized."""

    def __init__(
        self, token: Token, keys: KeyStore, tenants: TenantStore, snapshot: Snapshot, material: Material, clock: Clock
    ) -> None:
        self._token = token
        self._keys = keys
        self._tenants = tenants
        self._snapshot = snapshot
        self._material = material
        self._clock = clock

    def create(self, caller: Caller, instance_id: str, key_ring_id: str | None, wish: NewKey) -> KeyWithPayload:
        """Create a root key in the token or a standard key sealed by it. Raises InvalidField, KeyRingNotFound,
        AliasNotUnique."""
        ring = key_ring_id or DEFAULT_KEY_RING
        instance = self._instance(caller, Action.KEY_CREATE, instance_id, ring)
        now = self._clock()
        require_valid(wish, now)
        self._require_ring(instance_id, ring)
        key = _new_key(wish, instance_id, ring, caller, now)
        if wish.extractable:
            payload = self._token.random(STANDARD_KEY_BYTES)
            sealed = self._token.seal(instance.sealing_key, payload.reveal(), _payload_context(key.id))
            self._keys.insert(key, sealed)
            return KeyWithPayload(key, payload)

        def commit(version: KeyVersion) -> Key:
            whole = dataclasses.replace(key, versions=(version,))
            self._keys.insert(whole, None)
            return whole

        return KeyWithPayload(self._material.make(key_owner(instance_id, key.id), commit), None)

    def list(self, caller: Caller, instance_id: str, key_ring_id: str | None, query: KeyQuery) -> KeyPage:
        """One page of keys. Raises KeyRingNotFound, KeySearchTooBroad."""
        rings = self._rings(caller, Action.KEY_LIST, instance_id, key_ring_id)
        now = self._clock()
        if query.search is not None:
            candidates = self._keys.count(instance_id, dataclasses.replace(query, search=None), now, rings)
            if candidates > MAX_SEARCHED_KEYS:
                hit = self._keys.get(instance_id, query.search.query)
                if hit is None or query.search.negated or (rings is not None and hit.key_ring_id not in rings):
                    raise KeySearchTooBroad(MAX_SEARCHED_KEYS)
                return KeyPage([hit], 1, incomplete=True)
        keys, total = self._keys.page(instance_id, query, now, rings)
        return KeyPage(keys, total, incomplete=False)

    def count(self, caller: Caller, instance_id: str, key_ring_id: str | None, query: KeyQuery) -> int:
        """How many keys match. Raises KeyRingNotFound."""
        rings = self._rings(caller, Action.KEY_HEAD, instance_id, key_ring_id)
        return self._keys.count(instance_id, query, self._clock(), rings)

    def read(self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None) -> KeyWithPayload:
        """A key with the payload of a standard key. Raises KeyNotFound."""
        key = self._key(caller, Action.KEY_READ, instance_id, reference, key_ring_id)
        if key.is_root or key.state is KeyState.DESTROYED:
            return KeyWithPayload(key, None)
        sealed = self._keys.sealed_payload(key.id)
        if sealed is None:
            raise KeyNotFound
        version = self._known_instance(instance_id).sealing_key
        return KeyWithPayload(key, self._token.open(version, version.id, sealed, _payload_context(key.id)))

    def read_metadata(self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None) -> Key:
        """A key without payload. Raises KeyNotFound."""
        return self._key(caller, Action.KEY_READ_METADATA, instance_id, reference, key_ring_id)

    def list_versions(
        self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None, query: VersionQuery
    ) -> tuple[Sequence[KeyVersion], int]:
        """A page of a key's versions, newest first, and how many there are. Raises KeyNotFound, KeyStateConflict."""
        key = self._key(caller, Action.KEY_LIST_VERSIONS, instance_id, reference, key_ring_id)
        if not query.all_key_states and effective_state(key, self._clock()) is not KeyState.ACTIVE:
            raise KeyStateConflict("active")
        return key.versions[query.offset : query.offset + query.limit], len(key.versions)

    def rotate(self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None) -> Key:
        """Give a root key a new version. Raises KeyNotFound, KeyDeleted, KeyRootRequired, KeyStateConflict,
        RotationTooEarly."""

        def rotate(key: Key, now: datetime) -> None:
            require_usable(key, KeyAction.ROTATE, now)
            require_rotation_due(key, now)
            self._material.make(
                key_owner(instance_id, key.id), lambda version: self._keys.rotate(key, version, version.created_at)
            )

        return self._change(caller, Action.KEY_ROTATE, instance_id, reference, key_ring_id, rotate)

    def delete(self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None) -> Key:
        """Delete a key; its material stays until it is purged. Raises KeyNotFound, KeyDeleted."""

        def delete(key: Key, now: datetime) -> None:
            if key.state is KeyState.DESTROYED:
                raise KeyDeleted
            self._keys.mark_deleted(key, now, caller.iam_id)

        return self._change(caller, Action.KEY_DELETE, instance_id, reference, key_ring_id, delete)

    def move(self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None, new_ring_id: str) -> Key:
        """Move a key to another ring; the caller needs the right on both. Raises KeyNotFound, KeyRingNotFound."""
        self._instance(caller, Action.KEY_PATCH, instance_id, new_ring_id)
        # The key before the ring: who may not touch the key is not told whether the ring exists.
        self._key(caller, Action.KEY_PATCH, instance_id, reference, key_ring_id)
        self._require_ring(instance_id, new_ring_id)

        def move(key: Key, now: datetime) -> None:
            if key.key_ring_id != new_ring_id:
                self._keys.move(key, new_ring_id, now)

        return self._change(caller, Action.KEY_PATCH, instance_id, reference, key_ring_id, move)

    def _change(
        self,
        caller: Caller,
        action: Action,
        instance_id: str,
        reference: str,
        key_ring_id: str | None,
        act: Callable[[Key, datetime], None],
    ) -> Key:
        """Read, decide, commit; again when another request changed the key in between. The key as it is afterwards."""
        for _ in range(_ATTEMPTS):
            key = self._key(caller, action, instance_id, reference, key_ring_id)
            try:
                act(key, self._clock())
            except StaleKey:
                continue
            self._snapshot.forget(key.id)
            return self._key(caller, action, instance_id, key.id, None)
        raise KeyStateConflict("a settled")

    def _instance(self, caller: Caller, action: Action, instance_id: str, key_ring_id: str | None) -> Instance:
        instance = self._known_instance(instance_id)
        authorize(caller, action, Target(instance.account, instance_id, key_ring_id))
        return instance

    def _known_instance(self, instance_id: str) -> Instance:
        instance = self._snapshot.instance(instance_id)
        if instance is None:
            raise Unauthorized
        return instance

    def _key(self, caller: Caller, action: Action, instance_id: str, reference: str, key_ring_id: str | None) -> Key:
        """The key from the database. A key in another ring than the one named is not found (contract section 1).

        Only who has the right on the instance or ring hears that a key is not there; to anybody else a key that does
        not exist and one that he may not touch are the same.
        """
        account = self._known_instance(instance_id).account
        may_hear = authorize_within(caller, action, Target(account, instance_id, key_ring_id))
        key = self._keys.get(instance_id, reference)
        if key is None or key_ring_id not in (None, key.key_ring_id):
            raise KeyNotFound if may_hear else Unauthorized
        authorize(caller, action, Target(account, instance_id, key.key_ring_id, key.id))
        return key

    def _rings(
        self, caller: Caller, action: Action, instance_id: str, key_ring_id: str | None
    ) -> tuple[str, ...] | None:
        """The rings to list: the one named, all (None), or those that the caller's grants of whole rings reach."""
        if key_ring_id is not None:
            self._instance(caller, action, instance_id, key_ring_id)
            self._require_ring(instance_id, key_ring_id)
            return (key_ring_id,)
        account = self._known_instance(instance_id).account
        if authorize_within(caller, action, Target(account, instance_id)):
            return None
        rings = caller.rights.key_rings(action, instance_id)
        if not rings:
            raise Unauthorized
        return tuple(sorted(rings))

    def _require_ring(self, instance_id: str, ring_id: str) -> None:
        if ring_id == DEFAULT_KEY_RING:
            return
        if all(ring.id != ring_id for ring in self._tenants.key_rings(instance_id)):
            raise KeyRingNotFound


def _payload_context(key_id: str) -> tuple[str, str]:
    """What a standard key's payload is bound to under the instance's sealing key, so that rows cannot be swapped."""
    return ("standard key payload", key_id)


def _new_key(wish: NewKey, instance_id: str, ring: str, caller: Caller, now: datetime) -> Key:
    return Key(
        id=new_id(),
        instance_id=instance_id,
        key_ring_id=ring,
        name=wish.name,
        description=wish.description,
        tags=wish.tags,
        aliases=wish.aliases,
        extractable=wish.extractable,
        imported=False,
        state=KeyState.ACTIVE,
        created_at=now,
        created_by=caller.iam_id,
        updated_at=None,
        rotated_at=None,
        expires_at=wish.expires_at,
        deleted_at=None,
        deleted_by=None,
        versions=(),
    )
