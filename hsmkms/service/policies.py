"""Access policies and authorizations: who is granted what."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from hsmkms.clock import Clock
from hsmkms.domain.access import KEY_ROLES, Action, Caller, Scope
from hsmkms.domain.crn import SOURCE_SERVICES
from hsmkms.domain.identities import AccessGroup, Identity
from hsmkms.domain.ids import is_key_ring_id, new_id
from hsmkms.domain.policies import PLATFORM_SERVICES, Policy, PolicyKind, PolicyState, PolicyWish, same_region
from hsmkms.domain.records import Record
from hsmkms.domain.tenants import Instance
from hsmkms.errors import Invalid, PolicyConflict, PolicyNotFound
from hsmkms.iam.grants import Grants
from hsmkms.service.account_records import AccountRecords
from hsmkms.service.rights import Delete, Insert, Replace, RightsWriter, require_version
from hsmkms.service.snapshot import Snapshot

MAX_DESCRIPTION: int = 1_000


class PolicyService:
    """Each method authorizes its caller on the account first and raises Unauthorized; a policy of another account is
    NotFound, as if it did not exist."""

    def __init__(
        self,
        grants: Grants,
        account: AccountRecords,
        rights: RightsWriter,
        snapshot: Snapshot,
        clock: Clock,
        *,
        any_region: bool,
    ) -> None:
        self._grants = grants
        self._account = account
        self._rights = rights
        self._snapshot = snapshot
        self._clock = clock
        self._any_region = any_region

    def list(self, caller: Caller, wanted: Callable[[Policy], bool]) -> Sequence[tuple[Record, Policy]]:
        """The policies of the caller's account that are `wanted`, oldest first."""
        self._account.enter(caller, Action.POLICY_READ)
        return [entry for entry in self._account.all(Policy, caller.account) if wanted(entry[1])]

    def get(self, caller: Caller, policy_id: str) -> tuple[Record, Policy]:
        """One policy."""
        self._account.enter(caller, Action.POLICY_READ)
        return self._require(policy_id, caller.account)

    def create(self, caller: Caller, wish: PolicyWish) -> tuple[Record, Policy]:
        """Grant. Raises Invalid, PolicyConflict."""
        self._account.enter(caller, Action.POLICY_WRITE)
        self._require_valid(caller, wish)
        now = self._clock()
        policy = Policy(
            id=new_id(),
            account=caller.account,
            kind=wish.kind,
            subject=wish.subject,
            roles=wish.roles,
            scope=wish.scope,
            service_type=wish.service_type,
            description=wish.description,
            created_at=now,
            created_by=caller.iam_id,
            modified_at=now,
            modified_by=caller.iam_id,
        )
        self._require_new(policy)
        self._rights.commit(caller.account, [Insert(policy)])
        return self._require(policy.id, caller.account)

    def replace(self, caller: Caller, policy_id: str, if_match: str | None, wish: PolicyWish) -> tuple[Record, Policy]:
        """Grant something else instead. Raises NotFound, VersionRequired, VersionStale, Invalid, PolicyConflict,
        LastAdministrator."""
        self._account.enter(caller, Action.POLICY_WRITE)
        record, policy = self._require(policy_id, caller.account)
        require_version(record, if_match)
        if wish.kind is not policy.kind:
            raise Invalid("The type of a policy cannot be changed. Create another one.")
        self._require_valid(caller, wish)
        changed = dataclasses.replace(
            policy,
            subject=wish.subject,
            roles=wish.roles,
            scope=wish.scope,
            service_type=wish.service_type,
            description=wish.description,
            modified_at=self._clock(),
            modified_by=caller.iam_id,
        )
        self._require_new(changed)
        self._rights.commit(caller.account, [Replace(record, changed)])
        return self._require(policy_id, caller.account)

    def set_state(
        self, caller: Caller, policy_id: str, if_match: str | None, state: PolicyState
    ) -> tuple[Record, Policy]:
        """Take a policy's effect away or give it back. Raises NotFound, VersionRequired, VersionStale, PolicyConflict,
        LastAdministrator."""
        self._account.enter(caller, Action.POLICY_WRITE)
        record, policy = self._require(policy_id, caller.account)
        require_version(record, if_match)
        changed = dataclasses.replace(policy, state=state, modified_at=self._clock(), modified_by=caller.iam_id)
        if state is PolicyState.ACTIVE:
            self._require_new(changed)
        self._rights.commit(caller.account, [Replace(record, changed)])
        return self._require(policy_id, caller.account)

    def delete(self, caller: Caller, policy_id: str) -> None:
        """Raises NotFound, LastAdministrator."""
        self._account.enter(caller, Action.POLICY_WRITE)
        record, _ = self._require(policy_id, caller.account)
        self._rights.commit(caller.account, [Delete(record)])

    def _require(self, policy_id: str, account: str) -> tuple[Record, Policy]:
        return self._account.one(Policy, account, policy_id, PolicyNotFound())

    def _require_valid(self, caller: Caller, wish: PolicyWish) -> None:
        if not wish.roles:
            raise Invalid("A policy needs one role at least.")
        if len(wish.description or "") > MAX_DESCRIPTION:
            raise Invalid(f"A description has at most {MAX_DESCRIPTION} characters.")
        if wish.service_type == PLATFORM_SERVICES and not KEY_ROLES.isdisjoint(wish.roles):
            raise Invalid("Roles of keys need the serviceName kms or the serviceType service.")
        if wish.account != caller.account:
            raise Invalid("The attribute accountId must be your own account.")
        instance = self._require_scope(caller.account, wish.scope)
        if wish.kind is PolicyKind.ACCESS:
            self._require_subject(caller.account, wish)
        else:
            self._require_source(wish, instance)

    def _require_scope(self, account: str, scope: Scope) -> Instance | None:
        if scope.key_ring_id is not None and not is_key_ring_id(scope.key_ring_id):
            raise Invalid("The attribute keyRing must be the id of a key ring.")
        if scope.instance_id is None:
            return None
        instance = self._snapshot.instance(scope.instance_id)
        if instance is None or instance.account != account:
            raise Invalid("The attribute serviceInstance must be the GUID of an instance of your account.")
        return instance

    def _require_subject(self, account: str, wish: PolicyWish) -> None:
        subject = wish.subject
        if (subject.iam_id is None) == (subject.access_group_id is None) or subject.service is not None:
            raise Invalid("The subject of an access policy is one iam_id or one access_group_id.")
        if subject.access_group_id is not None:
            group = self._grants.get(AccessGroup, subject.access_group_id)
            if group is None or group.account != account:
                raise Invalid("The access_group_id is not that of a group of your account.")
            return
        identity: Identity | None = self._grants.identity(subject.iam_id or "")
        if identity is None or identity.account != account:
            raise Invalid("The iam_id is not that of an identity of your account.")
        if identity.source_crns:
            raise Invalid(
                "This service id acts for a source service and has what authorizations grant, no more. "
                "Create a policy of type authorization instead."
            )

    def _require_source(self, wish: PolicyWish, target: Instance | None) -> None:
        subject = wish.subject
        if subject.iam_id is not None or subject.access_group_id is not None:
            raise Invalid("The subject of an authorization is a source service, not an identity.")
        if subject.service not in SOURCE_SERVICES:
            raise Invalid(f"The subject's serviceName must be one of {', '.join(sorted(SOURCE_SERVICES))}.")
        if not KEY_ROLES.issuperset(wish.roles) or wish.service_type is not None:
            raise Invalid("An authorization grants roles of the service kms, Reader in the normal case.")
        if target is None or self._any_region:
            return
        if any(not same_region(region, target.region) for region in self._source_regions(wish)):
            raise Invalid(
                f"Source and target must be in one region, and the target is in {target.region}. Choose an instance "
                "there, or let the operator set allow_authorizations_across_regions."
            )

    def _source_regions(self, wish: PolicyWish) -> set[str]:
        """Where the source is, as far as it is known: from the policy, and from service ids of that instance."""
        regions = set() if wish.subject.region is None else {wish.subject.region}
        if wish.subject.service_instance_id is not None:
            regions |= {
                source.region
                for identity in self._grants.about(Identity)
                for source in identity.sources
                if identity.account == wish.account and wish.subject.covers(source)
            }
        return regions

    def _require_new(self, policy: Policy) -> None:
        subject = policy.subject
        named = subject.iam_id or subject.access_group_id or f"service:{subject.service}"
        for known in self._grants.about(Policy, named):
            same = (known.subject, set(known.roles), known.scope) == (subject, set(policy.roles), policy.scope)
            alive = known.state is PolicyState.ACTIVE and known.account == policy.account
            if same and alive and known.id != policy.id and known.kind is policy.kind:
                raise PolicyConflict(known.id)
