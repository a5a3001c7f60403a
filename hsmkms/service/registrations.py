"""Registrations: written by the service that owns the resource, read by everybody who may see the key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from hsmkms.clock import Clock
from hsmkms.domain.access import Action, Caller
from hsmkms.domain.keys import Key
from hsmkms.domain.registrations import (
    Registration,
    RegistrationQuery,
    RegistrationWish,
    ResourceCrn,
    changed_registration,
    new_registration,
    require_owner,
    require_registrable,
    require_valid_wish,
)
from hsmkms.errors import RegistrationExists, RegistrationNotFound, VersionStale
from hsmkms.service.key_access import KeyAccess
from hsmkms.store.registrations import RegistrationStore, StaleRegistration
from hsmkms.store.seen import StaleKey

Precondition = Callable[[Registration], bool]
"""Whether a registration is still the one that its service read (If-Match)."""


class RegistrationService:
    """Each method authorizes its caller on the key first and raises Unauthorized or KeyNotFound. Those that write raise
    ResourceOwner for a resource of somebody else."""

    def __init__(self, registrations: RegistrationStore, access: KeyAccess, clock: Clock) -> None:
        self._registrations = registrations
        self._access = access
        self._clock = clock

    def list_of_key(
        self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None, query: RegistrationQuery
    ) -> tuple[Sequence[Registration], int]:
        """A page of a key's registrations, and how many there are. A service sees its own."""
        key = self._access.key(caller, Action.REGISTRATION_LIST, instance_id, reference, key_ring_id)
        return self._registrations.page(
            instance_id, query, key_id=key.id, ring_ids=None, sources=caller.sources or None
        )

    def list_all(
        self, caller: Caller, instance_id: str, key_ring_id: str | None, query: RegistrationQuery
    ) -> tuple[Sequence[Registration], int]:
        """The same over all keys that the caller's lists of keys show. Raises KeyRingNotFound."""
        rings = self._access.rings(caller, Action.REGISTRATION_LIST, instance_id, key_ring_id)
        return self._registrations.page(instance_id, query, key_id=None, ring_ids=rings, sources=caller.sources or None)

    def read(
        self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None, crn: ResourceCrn
    ) -> Registration:
        """One registration. Raises RegistrationNotFound."""
        key = self._access.key(caller, Action.REGISTRATION_LIST, instance_id, reference, key_ring_id)
        if caller.sources:
            require_owner(caller, crn)
        return self._get(key, crn)

    def create(
        self,
        caller: Caller,
        instance_id: str,
        reference: str,
        key_ring_id: str | None,
        crn: ResourceCrn,
        wish: RegistrationWish,
    ) -> Registration:
        """Register a resource. The same wish again gives the same registration, since a lost answer is asked for twice.

        Raises RegistrationKeyNotRoot, RegistrationKeyState, InvalidField, RegistrationExists.
        """

        def insert(key: Key, now: datetime) -> None:
            require_owner(caller, crn)
            require_registrable(key, now)
            require_valid_wish(wish)
            registration = new_registration(key, crn, wish, caller.iam_id, now)
            try:
                self._registrations.insert(key, registration)
            except RegistrationExists:
                there = self._registrations.get(key, crn)
                if there is None:
                    raise StaleKey from None
                if not _same(there, registration):
                    raise

        key = self._access.begin(caller, Action.REGISTRATION_CREATE, instance_id, reference, key_ring_id, insert)
        return self._get(key, crn)

    def replace(
        self,
        caller: Caller,
        instance_id: str,
        reference: str,
        key_ring_id: str | None,
        crn: ResourceCrn,
        wish: RegistrationWish,
        expected: Precondition,
    ) -> Registration:
        """Give a registration other values and a newer key version. Raises RegistrationNotFound, RegistrationVersion,
        VersionStale, RegistrationKeyNotRoot, RegistrationKeyState, InvalidField."""
        action = Action.REGISTRATION_REPLACE
        return self._change(caller, action, instance_id, reference, key_ring_id, crn, wish, expected)

    def update(
        self,
        caller: Caller,
        instance_id: str,
        reference: str,
        key_ring_id: str | None,
        crn: ResourceCrn,
        wish: RegistrationWish,
        expected: Precondition,
    ) -> Registration:
        """Change what the wish names of a registration. Raises as `replace`."""
        action = Action.REGISTRATION_UPDATE
        return self._change(caller, action, instance_id, reference, key_ring_id, crn, wish, expected)

    def delete(
        self, caller: Caller, instance_id: str, reference: str, key_ring_id: str | None, crn: ResourceCrn
    ) -> Registration:
        """End a registration, whatever the key's state: a service that erased its data need not wait for the purge. The
        registration as it was. Raises RegistrationNotFound."""
        key = self._access.key(caller, Action.REGISTRATION_DELETE, instance_id, reference, key_ring_id)
        require_owner(caller, crn)
        registration = self._get(key, crn)
        self._registrations.delete(registration)
        return registration

    def _change(
        self,
        caller: Caller,
        action: Action,
        instance_id: str,
        reference: str,
        key_ring_id: str | None,
        crn: ResourceCrn,
        wish: RegistrationWish,
        expected: Precondition,
    ) -> Registration:
        newer = action is Action.REGISTRATION_REPLACE

        def change(key: Key, now: datetime) -> None:
            require_owner(caller, crn)
            require_registrable(key, now)
            require_valid_wish(wish)
            there = self._get(key, crn)
            if not expected(there):
                raise VersionStale
            changed = changed_registration(there, key, wish, caller.iam_id, now, newer=newer)
            try:
                self._registrations.replace(key, there, changed)
            except StaleRegistration as error:
                raise StaleKey from error

        key = self._access.begin(caller, action, instance_id, reference, key_ring_id, change)
        return self._get(key, crn)

    def _get(self, key: Key, crn: ResourceCrn) -> Registration:
        registration = self._registrations.get(key, crn)
        if registration is None:
            raise RegistrationNotFound
        return registration


def _same(one: Registration, other: Registration) -> bool:
    """Whether two registrations were asked for with the same words and neither was changed since."""
    shared: Final = ("description", "metadata", "prevents_deletion", "version_id", "created_by", "revision")
    return all(getattr(one, name) == getattr(other, name) for name in shared)
