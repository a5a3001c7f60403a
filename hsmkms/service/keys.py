"""Keys: create, list, read, rotate, move, delete."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hsmkms.clock import Clock
from hsmkms.domain.access import Action, Caller
from hsmkms.domain.ids import DEFAULT_KEY_RING, new_id
from hsmkms.domain.importing import BroughtMaterial, PlainMaterial, require_material
from hsmkms.domain.key_policies import KeyPolicyWish
from hsmkms.domain.keys import (
    STANDARD_KEY_BYTES,
    Key,
    KeyAction,
    KeyState,
    KeyVersion,
    effective_state,
    key_owner,
    require_usable,
)
from hsmkms.domain.lifecycle import require_rotation_due
from hsmkms.domain.new_key import NewKey, require_valid
from hsmkms.domain.query import KeyQuery, VersionQuery
from hsmkms.domain.secrets import SecretBytes
from hsmkms.domain.waits import Waits
from hsmkms.errors import (
    InvalidQueryParam,
    KeyIncomplete,
    KeyNotFound,
    KeyPayloadRequired,
    KeySearchTooBroad,
    KeyStateConflict,
    UnprocessableCiphertext,
)
from hsmkms.service.acts import current
from hsmkms.service.imports import ImportService
from hsmkms.service.instance_policies import InstancePolicyService
from hsmkms.service.key_access import KeyAccess
from hsmkms.service.key_policies import policy_of
from hsmkms.service.material import Bring, Material
from hsmkms.store.keys import KeyStore
from hsmkms.token.room import Token

MAX_SEARCHED_KEYS: Final = 5_000


@dataclass(frozen=True, slots=True)
class KeyPage:
    """One page of a list; `total` counts all pages, at least if that was asked for. `incomplete` says that only the
    direct hit of a too broad search is in it."""

    keys: Sequence[Key]
    total: int | None
    incomplete: bool


@dataclass(frozen=True, slots=True)
class KeyWithPayload:
    """A key; `payload` only for a standard key that is not deleted."""

    key: Key
    payload: SecretBytes | None


class KeyService:
    """The life of keys. Each method authorizes its caller first and raises Unauthorized."""

    def __init__(
        self,
        token: Token,
        keys: KeyStore,
        access: KeyAccess,
        instance_policies: InstancePolicyService,
        imports: ImportService,
        material: Material,
        waits: Waits,
        clock: Clock,
    ) -> None:
        self._token = token
        self._keys = keys
        self._access = access
        self._instance_policies = instance_policies
        self._imports = imports
        self._material = material
        self._waits = waits
        self._clock = clock

    def create(
        self,
        caller: Caller,
        instance_id: str,
        key_ring_id: str | None,
        wish: NewKey,
        policies: Sequence[KeyPolicyWish] | None = None,
    ) -> KeyWithPayload:
        """Create a root key in the token or a standard key sealed by it, or take one from outside; with `policies` of
        its own, which takes a right of its own. Raises InvalidField, KeyRingNotFound, KeyRootRequired,
        KeyCreationForbidden, AliasNotUnique; for a key from outside also FeatureRestricted, IncorrectNonce,
        IncorrectNonceIv, ImportTokenExpired."""
        ring = key_ring_id or DEFAULT_KEY_RING
        action = Action.KEY_CREATE if policies is None else Action.KEY_CREATE_WITH_POLICIES
        instance = self._access.instance(caller, action, instance_id, ring)
        now = self._clock()
        require_valid(wish, now)
        self._access.require_ring(instance_id, ring)
        bare = _new_key(wish, instance_id, ring, caller, now)
        inherited = self._instance_policies.inherited(
            instance_id, extractable=wish.extractable, imported=wish.material is not None
        )
        if wish.material is not None:
            self._imports.require_way(instance_id, wish.material)
        wanted = inherited if policies is None else policies
        held = tuple(policy_of(one, bare, caller.iam_id, now) for one in wanted)
        key = dataclasses.replace(bare, policies=held)
        if wish.extractable:
            brought = wish.material
            payload = brought.value if isinstance(brought, PlainMaterial) else self._token.random(STANDARD_KEY_BYTES)
            sealed = self._token.seal(instance.sealing_key, payload.reveal(), _payload_context(key.id))
            self._keys.insert(key, sealed)
            current().key = key
            return KeyWithPayload(key, payload)

        def commit(version: KeyVersion) -> Key:
            whole = dataclasses.replace(key, versions=(version,))
            self._keys.insert(whole, None)
            current().key = whole
            return whole

        bring = None if wish.material is None else self._imports.way_of(instance_id, wish.material)
        return KeyWithPayload(self._material.make(key_owner(instance_id, key.id), commit, bring), None)

    def list(
        self, caller: Caller, instance_id: str, key_ring_id: str | None, query: KeyQuery, *, total: bool
    ) -> KeyPage:
        """One page of keys, and how many there are on all pages if `total` asks. Raises KeyRingNotFound,
        KeySearchTooBroad."""
        rings = self._access.rings(caller, Action.KEY_LIST, instance_id, key_ring_id)
        now = self._clock()
        if query.search is not None:
            wider = dataclasses.replace(query, search=None)
            if self._keys.count(instance_id, wider, now, rings, most=MAX_SEARCHED_KEYS + 1) > MAX_SEARCHED_KEYS:
                hit = self._keys.get(instance_id, query.search.query)
                if hit is None or query.search.negated or (rings is not None and hit.key_ring_id not in rings):
                    raise KeySearchTooBroad(MAX_SEARCHED_KEYS)
                return KeyPage([hit], 1, incomplete=True)
        keys, counted = self._keys.page(instance_id, query, now, rings, total=total)
        return KeyPage(keys, counted, incomplete=False)

    def count(self, caller: Caller, instance_id: str, key_ring_id: str | None, query: KeyQuery) -> int:
        """How many keys match. Raises KeyRingNotFound."""
        rings = self._access.rings(caller, Action.KEY_HEAD, instance_id, key_ring_id)
        return self._keys.count(instance_id, query, self._clock(), rings)

    def read(self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None) -> KeyWithPayload:
        """A key with the payload of a standard key. Raises KeyNotFound, KeyIncomplete."""
        key = self._access.key(caller, Action.KEY_READ, instance_id, reference, key_ring_id)
        if key.is_root or key.state is KeyState.DESTROYED:
            return KeyWithPayload(key, None)
        sealed = self._keys.sealed_payload(key.id)
        if sealed is None:
            # Somebody may have purged it since it was looked up.
            raise KeyNotFound if self._keys.get(instance_id, key.id) is None else KeyIncomplete
        version = self._access.known_instance(instance_id).sealing_key
        try:
            return KeyWithPayload(key, self._token.open(version, version.id, sealed, _payload_context(key.id)))
        except UnprocessableCiphertext as error:
            raise KeyIncomplete from error

    def read_metadata(self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None) -> Key:
        """A key without payload. Raises KeyNotFound."""
        return self._access.key(caller, Action.KEY_READ_METADATA, instance_id, reference, key_ring_id)

    def list_versions(
        self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None, query: VersionQuery
    ) -> tuple[Sequence[KeyVersion], int]:
        """A page of a key's versions, newest first, and how many there are. Raises KeyNotFound, KeyStateConflict."""
        key = self._access.key(caller, Action.KEY_LIST_VERSIONS, instance_id, reference, key_ring_id)
        if not query.all_key_states and effective_state(key, self._clock()) is not KeyState.ACTIVE:
            raise KeyStateConflict("active")
        return key.versions[query.offset : query.offset + query.limit], len(key.versions)

    def rotate(
        self,
        caller: Caller,
        instance_id: str,
        reference: str,
        key_ring_id: str | None,
        material: BroughtMaterial | None = None,
    ) -> Key:
        """Give a root key a new version; one that was brought takes `material` again. Raises KeyNotFound, KeyDeleted,
        KeyRootRequired, KeyStateConflict, RotationTooEarly, KeyPayloadRequired, InvalidQueryParam, and as `create` what
        concerns a key from outside."""

        def rotate(key: Key, now: datetime) -> None:
            require_usable(key, KeyAction.ROTATE, now)
            bring = self._rotation_of(key, material)
            require_rotation_due(key, self._waits, now)
            self._material.rotate(key, bring)

        return self._access.change(caller, Action.KEY_ROTATE, instance_id, reference, key_ring_id, rotate)

    def _rotation_of(self, key: Key, material: BroughtMaterial | None) -> Bring | None:
        if material is None:
            if key.imported:
                raise KeyPayloadRequired
            return None
        if not key.imported:
            raise InvalidQueryParam("payload", "A key that was generated rotates without payload. Send no body.")
        require_material(material, extractable=False)
        self._imports.require_way(key.instance_id, material)
        return self._imports.way_of(key.instance_id, material)

    def move(self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None, new_ring_id: str) -> Key:
        """Move a key to another ring; the caller needs the right on both. Raises KeyNotFound, KeyRingNotFound."""
        self._access.instance(caller, Action.KEY_PATCH, instance_id, new_ring_id)
        # The key before the ring: who may not touch the key is not told whether the ring exists.
        self._access.key(caller, Action.KEY_PATCH, instance_id, reference, key_ring_id)
        self._access.require_ring(instance_id, new_ring_id)

        def move(key: Key, now: datetime) -> None:
            if key.key_ring_id != new_ring_id:
                self._keys.move(key, new_ring_id, now)

        return self._access.change(caller, Action.KEY_PATCH, instance_id, reference, key_ring_id, move)


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
        imported=wish.material is not None,
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
