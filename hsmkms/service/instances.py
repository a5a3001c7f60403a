"""Instances: the tenants of a deployment."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Final

from hsmkms.clock import Clock
from hsmkms.domain.access import Action, Caller, Target
from hsmkms.domain.ids import new_id
from hsmkms.domain.keys import KeyVersion, sealing_owner
from hsmkms.domain.tenants import Instance, SealedInstance
from hsmkms.errors import Conflict, Invalid, NotFound, VersionStale
from hsmkms.iam import integrity
from hsmkms.service.acts import current
from hsmkms.service.authorize import authorize
from hsmkms.service.material import Material
from hsmkms.service.snapshot import Snapshot
from hsmkms.store.keys import KeyStore
from hsmkms.store.tenants import TenantStore

_NAME: Final = re.compile(r"[\w .:-]{1,180}")
_REGION: Final = re.compile(r"[a-z][a-z0-9-]{1,31}", re.ASCII)
_LABEL: Final = re.compile(r"[A-Za-z0-9_:/.-]{1,256}", re.ASCII)


class InstanceService:
    """Each method authorizes its caller first. An instance of another account, and one that the caller may not read,
    are NotFound, as if they did not exist."""

    def __init__(
        self,
        tenants: TenantStore,
        keys: KeyStore,
        material: Material,
        mac: integrity.Mac,
        snapshot: Snapshot,
        clock: Clock,
    ) -> None:
        self._tenants = tenants
        self._keys = keys
        self._material = material
        self._mac = mac
        self._snapshot = snapshot
        self._clock = clock

    def list(self, caller: Caller) -> Sequence[Instance]:
        """The instances that the caller may read, oldest first."""
        self._snapshot.refresh()
        return [
            instance
            for instance in self._snapshot.instances(caller.account)
            if caller.rights.permit(Action.INSTANCE_READ, Target(caller.account, instance.id))
        ]

    def get(self, caller: Caller, instance_id: str) -> Instance:
        """One instance. Raises NotFound."""
        self._snapshot.refresh()
        return self._require(caller, Action.INSTANCE_READ, instance_id)

    def create(
        self,
        caller: Caller,
        name: str,
        region: str,
        resource_group: str | None = None,
        plan_id: str | None = None,
    ) -> Instance:
        """A new, empty instance with a sealing key of its own in the token. Raises Unauthorized, Invalid."""
        authorize(caller, Action.INSTANCE_CREATE, Target(caller.account))
        _require_name(name)
        if not _REGION.fullmatch(region):
            raise Invalid("A region has 2 to 32 lower-case letters, digits and hyphens, such as us-south.")
        if any(text is not None and not _LABEL.fullmatch(text) for text in (resource_group, plan_id)):
            raise Invalid("resource_group and resource_plan_id are ids of 1 to 256 characters.")
        instance_id = new_id()

        def commit(sealing_key: KeyVersion) -> Instance:
            instance = Instance(
                id=instance_id,
                name=name,
                region=region,
                account=caller.account,
                created_at=self._clock(),
                sealing_key=sealing_key,
                resource_group=resource_group,
                plan_id=plan_id,
                created_by=caller.iam_id,
            )
            current().instance_id = instance_id
            self._tenants.add_instance(integrity.seal_instance(self._mac, instance))
            return instance

        created = self._material.make(sealing_owner(instance_id), commit)
        self._snapshot.refresh()
        return created

    def rename(self, caller: Caller, instance_id: str, name: str) -> Instance:
        """Raises NotFound, Invalid."""
        self._snapshot.refresh()
        instance = self._require(caller, Action.INSTANCE_UPDATE, instance_id)
        _require_name(name)
        return self._replace(instance, dataclasses.replace(instance, name=name, updated_at=self._clock()))

    def delete(self, caller: Caller, instance_id: str, *, force: bool, confirmation: str | None) -> None:
        """Delete an instance. One that holds keys needs `force` and its own GUID as `confirmation`.

        Nobody reaches a deleted instance, its material stays in the token, and the operator can bring it back.
        Raises NotFound, Conflict.
        """
        self._snapshot.refresh()
        instance = self._require(caller, Action.INSTANCE_DELETE, instance_id)
        held = self._keys.count_live(instance.id)
        if held and not (force and confirmation == instance.id):
            raise Conflict(
                f"The instance holds {held} keys. Delete them first; or repeat with recursive=true and the header "
                "Hsmkms-Confirm with the instance's GUID, and all data under these keys is out of reach."
            )
        self._replace(instance, dataclasses.replace(instance, deleted_at=self._clock(), deleted_by=caller.iam_id))

    def restore(self, caller: Caller, instance_id: str) -> Instance:
        """Bring a deleted instance back. Raises NotFound."""
        authorize(caller, Action.INSTANCE_CREATE, Target(caller.account))
        seen = self._sealed(instance_id)
        if seen is None or seen.instance.deleted_at is None or seen.instance.account != caller.account:
            raise NotFound("deleted instance")
        if not integrity.is_sealed_instance(self._mac, seen):
            raise Conflict("The instance's row was not written by this deployment. Run `hsmkms doctor`.")
        return self._replace(seen.instance, dataclasses.replace(seen.instance, deleted_at=None, deleted_by=None))

    def _require(self, caller: Caller, action: Action, instance_id: str) -> Instance:
        instance = self._snapshot.instance(instance_id)
        target = Target(caller.account, instance_id)
        if not caller.rights.permit(Action.INSTANCE_READ, target) or instance is None:
            raise NotFound("instance")
        if instance.account != caller.account:
            raise NotFound("instance")
        current().instance_id = instance_id
        authorize(caller, action, target)
        return instance

    def _replace(self, read: Instance, changed: Instance) -> Instance:
        current().instance_id = changed.id
        seen = self._sealed(changed.id)
        replaced = (
            seen is not None
            and seen.instance == read
            and self._tenants.replace_instance(seen, integrity.seal_instance(self._mac, changed))
        )
        self._snapshot.refresh()
        if not replaced:
            raise VersionStale
        return changed

    def _sealed(self, instance_id: str) -> SealedInstance | None:
        found = [sealed for sealed in self._tenants.instances() if sealed.instance.id == instance_id]
        return found[0] if found else None


def _require_name(name: str) -> None:
    if not _NAME.fullmatch(name) or not name.strip():
        raise Invalid("A name has 1 to 180 letters, digits, spaces and - . _ :")
