"""Aliases: further names of a key, unique in their instance (contract section 1.5)."""

from __future__ import annotations

from datetime import datetime

from hsmkms.clock import Clock
from hsmkms.domain.access import Action, Caller
from hsmkms.domain.ids import is_alias
from hsmkms.domain.keys import MAX_ALIASES, Key, KeyState
from hsmkms.errors import AliasNotFound, AliasQuota, InvalidField, KeyDeleted
from hsmkms.service.key_access import KeyAccess
from hsmkms.store.keys import KeyStore


class AliasService:
    """Each method authorizes its caller on the key first and raises Unauthorized or KeyNotFound."""

    def __init__(self, keys: KeyStore, access: KeyAccess, clock: Clock) -> None:
        self._keys = keys
        self._access = access
        self._clock = clock

    def create(
        self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None, alias: str
    ) -> tuple[Key, datetime]:
        """Give a key another name; the key, and when. Raises KeyDeleted, InvalidField, AliasNotUnique, AliasQuota."""

        def create(key: Key, now: datetime) -> None:
            if key.state is KeyState.DESTROYED:
                raise KeyDeleted
            if not is_alias(alias):
                raise InvalidField("alias", "An alias has 2 to 90 letters, digits, - or _, and is no UUID.")
            if not self._keys.add_alias(key, alias, now, caller.iam_id, MAX_ALIASES):
                raise AliasQuota(MAX_ALIASES)

        created_at = self._clock()
        return self._access.change(caller, Action.ALIAS_CREATE, instance_id, reference, key_ring_id, create), created_at

    def delete(self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None, alias: str) -> None:
        """Take a name from a key, also from a deleted one. Raises AliasNotFound."""

        def delete(key: Key, _: datetime) -> None:
            if not self._keys.remove_alias(key, alias):
                raise AliasNotFound

        self._access.begin(caller, Action.ALIAS_DELETE, instance_id, reference, key_ring_id, delete)
