"""Policies of an instance: read, set, and what they demand of requests and new keys (contract section 1.4)."""

from __future__ import annotations

from collections.abc import Sequence

from hsmkms.clock import Clock
from hsmkms.domain.access import Action, Caller
from hsmkms.domain.instance_policies import (
    CreateAccess,
    InstancePolicy,
    InstancePolicyKind,
    InstancePolicyWish,
    policy_id,
    require_possible,
)
from hsmkms.domain.key_policies import KeyPolicyKind, KeyPolicyWish
from hsmkms.errors import KeyCreationForbidden
from hsmkms.iam.grants import Grants
from hsmkms.service.key_access import KeyAccess
from hsmkms.service.rights import Change, Delete, Insert, Replace, RightsWriter
from hsmkms.service.snapshot import Snapshot


class InstancePolicyService:
    """Each method authorizes its caller on the instance first and raises Unauthorized."""

    def __init__(
        self, grants: Grants, rights: RightsWriter, access: KeyAccess, snapshot: Snapshot, clock: Clock
    ) -> None:
        self._grants = grants
        self._rights = rights
        self._access = access
        self._snapshot = snapshot
        self._clock = clock

    def read(self, caller: Caller, instance_id: str) -> Sequence[InstancePolicy]:
        """Every policy that was ever set, by kind."""
        self._access.instance(caller, Action.INSTANCE_POLICY_READ, instance_id, None)
        self._snapshot.refresh()
        return sorted(self._grants.about(InstancePolicy, instance_id), key=lambda policy: policy.kind.value)

    def put(self, caller: Caller, instance_id: str, wishes: Sequence[InstancePolicyWish]) -> None:
        """Set policies, all or none; each write says all of its policy. Raises InvalidField, VersionStale."""
        instance = self._access.instance(caller, Action.INSTANCE_POLICY_WRITE, instance_id, None)
        self._snapshot.refresh()
        now, changes = self._clock(), list[Change]()
        for wish in wishes:
            require_possible(wish)
            held = self._grants.record(InstancePolicy, policy_id(instance_id, wish.kind))
            created_at, created_by = (now, caller.iam_id) if held is None else (held[1].created_at, held[1].created_by)
            policy = InstancePolicy(
                id=policy_id(instance_id, wish.kind),
                account=instance.account,
                instance_id=instance_id,
                kind=wish.kind,
                enabled=wish.enabled,
                allowed_network=wish.allowed_network if wish.enabled else None,
                allowed_ip=(wish.allowed_ip or ()) if wish.enabled else (),
                create_access=wish.create_access if wish.enabled else None,
                interval_month=wish.interval_month if wish.enabled else None,
                created_at=created_at,
                created_by=created_by,
                updated_at=now,
                updated_by=caller.iam_id,
            )
            changes.append(Insert(policy) if held is None else Replace(held[0], policy))
        self._rights.commit(instance.account, changes)

    def limits_ips(self, caller: Caller, instance_id: str) -> bool:
        """Whether an allowedIP policy is enabled."""
        self._access.instance(caller, Action.ALLOWED_IP_PORT_READ, instance_id, None)
        self._snapshot.refresh()
        return self._enabled(instance_id, InstancePolicyKind.ALLOWED_IP) is not None

    def open_network(self, caller: Caller, instance_id: str) -> None:
        """Take away what says from where the instance may be called: for who locked himself out."""
        instance = self._access.instance(caller, Action.INSTANCE_POLICY_WRITE, instance_id, None)
        self._snapshot.refresh()
        kinds = (InstancePolicyKind.ALLOWED_IP, InstancePolicyKind.ALLOWED_NETWORK)
        held = [self._grants.record(InstancePolicy, policy_id(instance_id, kind)) for kind in kinds]
        self._rights.commit(instance.account, [Delete(found[0]) for found in held if found is not None])

    def inherited(self, instance_id: str, *, extractable: bool, imported: bool) -> list[KeyPolicyWish]:
        """The policies that a new key takes over. Raises KeyCreationForbidden when it may not be made at all."""
        access = self._enabled(instance_id, InstancePolicyKind.KEY_CREATE_IMPORT_ACCESS)
        allowed = CreateAccess() if access is None or access.create_access is None else access.create_access
        may = {
            (False, False): allowed.create_root_key,
            (True, False): allowed.create_standard_key,
            (False, True): allowed.import_root_key,
            (True, True): allowed.import_standard_key,
        }
        if not may[(extractable, imported)]:
            raise KeyCreationForbidden
        wishes = []
        if self._enabled(instance_id, InstancePolicyKind.DUAL_AUTH_DELETE) is not None:
            wishes.append(KeyPolicyWish(KeyPolicyKind.DUAL_AUTH_DELETE, True, None))
        rotation = self._enabled(instance_id, InstancePolicyKind.ROTATION)
        if rotation is not None and not extractable and not imported:
            wishes.append(KeyPolicyWish(KeyPolicyKind.ROTATION, True, rotation.interval_month))
        return wishes

    def require_clear(self, instance_id: str) -> None:
        """Raise KeyCreationForbidden when keys may be brought under an import token only."""
        access = self._enabled(instance_id, InstancePolicyKind.KEY_CREATE_IMPORT_ACCESS)
        if access is not None and access.create_access is not None and access.create_access.enforce_token:
            raise KeyCreationForbidden

    def _enabled(self, instance_id: str, kind: InstancePolicyKind) -> InstancePolicy | None:
        policy = self._grants.get(InstancePolicy, policy_id(instance_id, kind))
        return policy if policy is not None and policy.enabled else None
