"""Access policies and service-to-service authorizations, in one shape whatever version of the wire wrote them."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hsmkms.domain.access import Role, Scope, SourceCrn
from hsmkms.domain.crn import REGIONLESS
from hsmkms.domain.tenants import Instance

PLATFORM_SERVICES: Final = "platform_service"
SERVICE_TYPES: Final = frozenset({"service", PLATFORM_SERVICES})
"""What a policy may name instead of one service: all that have roles, or those that manage the account."""


class PolicyKind(enum.Enum):
    """Whether a policy is for identities or for the service ids of a source service."""

    ACCESS = "access"
    AUTHORIZATION = "authorization"


class PolicyState(enum.Enum):
    """A deleted policy grants nothing and can be made active again (PATCH of `state`)."""

    ACTIVE = "active"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Who is granted: exactly one of an identity, an access group and a source service."""

    iam_id: str | None = None
    access_group_id: str | None = None
    service: str | None = None
    service_instance_id: str | None = None
    region: str | None = None

    def covers(self, source: SourceCrn) -> bool:
        """Whether an authorization's subject names this instance of a source service."""
        return (
            self.service == source.service
            and self.service_instance_id in (None, source.instance_id)
            and self.region in (None, source.region)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Roles of a subject in a scope of `account`. `service_type` is what was named instead of the service `kms`; such
    a policy reaches the whole account."""

    id: str
    account: str
    kind: PolicyKind
    subject: Subject
    roles: tuple[Role, ...]
    scope: Scope
    service_type: str | None = None
    description: str | None = None
    state: PolicyState = PolicyState.ACTIVE
    created_at: datetime
    created_by: str
    modified_at: datetime
    modified_by: str

    @property
    def administers(self) -> bool:
        """Whether it makes its subject an administrator of the account."""
        return (
            self.state is PolicyState.ACTIVE
            and self.kind is PolicyKind.ACCESS
            and Role.ADMINISTRATOR in self.roles
            and self.scope == Scope()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyWish:
    """What somebody asks to be granted, before it is checked."""

    account: str
    kind: PolicyKind
    subject: Subject
    roles: tuple[Role, ...]
    scope: Scope
    service_type: str | None
    description: str | None


def same_region(source_region: str, target_region: str) -> bool:
    """The guide's rule that source and target are in one region; a service without regions is everywhere."""
    return source_region in (REGIONLESS, target_region)


def grants_of_source(
    sources: Iterable[SourceCrn], policies: Iterable[Policy], instances: Iterable[Instance], *, any_region: bool
) -> Iterable[tuple[Role, Scope]]:
    """What authorizations grant to a service id that acts for `sources`, one instance at a time."""
    here = list(instances)
    authorizations = [policy for policy in policies if policy.kind is PolicyKind.AUTHORIZATION]
    for source in sources:
        for policy in authorizations:
            if policy.state is not PolicyState.ACTIVE or not policy.subject.covers(source):
                continue
            for instance in here:
                if policy.scope.instance_id not in (None, instance.id) or policy.account != instance.account:
                    continue
                if any_region or same_region(source.region, instance.region):
                    scope = Scope(instance.id, policy.scope.key_ring_id, policy.scope.key_id)
                    yield from ((role, scope) for role in policy.roles)
