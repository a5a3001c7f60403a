"""Who may do what: actions, roles, scopes, rights, and the one pure decision `allows`."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec


class Action(enum.Enum):
    """Actions as the audit trail and IAM name them (additions sections 6.1 and 9). `bit` is its place in a set."""

    bit: int

    def __init__(self, _: str) -> None:
        self.bit = 1 << len(type(self).__members__)

    KEY_CREATE = "kms.secrets.create"
    KEY_CREATE_WITH_POLICIES = "kms.secrets-with-policy-overrides.create"
    KEY_LIST = "kms.secrets.list"
    KEY_HEAD = "kms.secrets.head"
    KEY_READ = "kms.secrets.read"
    KEY_READ_METADATA = "kms.secrets-metadata.read"
    KEY_LIST_VERSIONS = "kms.secrets-key-versions.list"
    KEY_PATCH = "kms.secrets.patch"
    KEY_DELETE = "kms.secrets.delete"
    KEY_RESTORE = "kms.secrets.restore"
    KEY_PURGE = "kms.secrets.purge"
    KEY_WRAP = "kms.secrets.wrap"
    KEY_UNWRAP = "kms.secrets.unwrap"
    KEY_REWRAP = "kms.secrets.rewrap"
    KEY_ROTATE = "kms.secrets.rotate"
    KEY_DISABLE = "kms.secrets.disable"
    KEY_ENABLE = "kms.secrets.enable"
    KEY_SET_FOR_DELETION = "kms.secrets.setkeyfordeletion"
    KEY_UNSET_FOR_DELETION = "kms.secrets.unsetkeyfordeletion"
    KEY_SYNC = "kms.secrets.sync"
    ALIAS_CREATE = "kms.secrets-alias.create"
    ALIAS_DELETE = "kms.secrets-alias.delete"
    KEY_RING_CREATE = "kms.key-rings.create"
    KEY_RING_LIST = "kms.key-rings.list"
    KEY_RING_DELETE = "kms.key-rings.delete"
    KEY_POLICY_READ = "kms.policies.read"
    KEY_POLICY_WRITE = "kms.policies.write"
    INSTANCE_POLICY_READ = "kms.instance-policies.read"
    INSTANCE_POLICY_WRITE = "kms.instance-policies.write"
    ALLOWED_IP_PORT_READ = "kms.instance-allowed-ip-port.read"
    IMPORT_TOKEN_CREATE = "kms.import-token.create"
    IMPORT_TOKEN_READ = "kms.import-token.read"
    REGISTRATION_LIST = "kms.registrations.list"
    REGISTRATION_CREATE = "kms.registrations.create"
    REGISTRATION_REPLACE = "kms.registrations.write"
    REGISTRATION_UPDATE = "kms.registrations.merge"
    REGISTRATION_DELETE = "kms.registrations.delete"
    EVENT_LIST = "kms.secrets-event.list"
    EVENT_ACK = "kms.secrets-event.ack"
    KMIP_CREATE = "kms.kmip-management.create"
    KMIP_LIST = "kms.kmip-management.list"
    KMIP_READ = "kms.kmip-management.read"
    KMIP_DELETE = "kms.kmip-management.delete"
    INSTANCE_READ = "resource-controller.instance.retrieve"
    INSTANCE_CREATE = "resource-controller.instance.create"
    INSTANCE_UPDATE = "resource-controller.instance.update"
    INSTANCE_DELETE = "resource-controller.instance.delete"
    IDENTITY_READ = "iam-identity.identity.read"
    IDENTITY_WRITE = "iam-identity.identity.write"
    API_KEY_READ = "iam-identity.apikey.read"
    API_KEY_WRITE = "iam-identity.apikey.write"
    GROUP_READ = "iam-groups.groups.read"
    GROUP_WRITE = "iam-groups.groups.write"
    POLICY_READ = "iam.policy.read"
    POLICY_WRITE = "iam.policy.write"


class Role(enum.Enum):
    """Roles by the last part of their CRN. The first six act on keys, the others on instances and on IAM itself."""

    READER = "Reader"
    READER_PLUS = "ReaderPlus"
    WRITER = "Writer"
    MANAGER = "Manager"
    KEY_PURGE = "KeyPurge"
    KMIP_ADAPTER_MANAGER = "KmipAdapterManager"
    VIEWER = "Viewer"
    OPERATOR = "Operator"
    EDITOR = "Editor"
    ADMINISTRATOR = "Administrator"


_LISTING: Final = {Action.KEY_HEAD, Action.KEY_LIST, Action.KEY_RING_LIST}
SERVICE_ONLY: Final = frozenset(
    {
        Action.REGISTRATION_CREATE,
        Action.REGISTRATION_REPLACE,
        Action.REGISTRATION_UPDATE,
        Action.REGISTRATION_DELETE,
        Action.EVENT_LIST,
        Action.EVENT_ACK,
    }
)
"""What only a source service may do, with any role from Reader up."""
_SERVICE_ONLY_BITS: Final = sum(action.bit for action in SERVICE_ONLY)
_READER: Final = {
    *_LISTING,
    *SERVICE_ONLY,
    Action.KEY_READ_METADATA,
    Action.KEY_LIST_VERSIONS,
    Action.KEY_WRAP,
    Action.KEY_UNWRAP,
    Action.KEY_REWRAP,
    Action.REGISTRATION_LIST,
}
_READER_PLUS: Final = {*_READER, Action.KEY_READ}
_WRITER: Final = {
    *_READER_PLUS,
    Action.KEY_CREATE,
    Action.KEY_ROTATE,
    Action.KEY_SET_FOR_DELETION,
    Action.KEY_UNSET_FOR_DELETION,
    Action.KEY_SYNC,
    Action.KEY_RING_CREATE,
    Action.IMPORT_TOKEN_CREATE,
    Action.IMPORT_TOKEN_READ,
    Action.ALIAS_CREATE,
    Action.ALIAS_DELETE,
}
_KMIP: Final = {Action.KMIP_CREATE, Action.KMIP_LIST, Action.KMIP_READ, Action.KMIP_DELETE}
_MANAGER: Final = {
    *_WRITER,
    *_KMIP,
    Action.KEY_CREATE_WITH_POLICIES,
    Action.KEY_DISABLE,
    Action.KEY_ENABLE,
    Action.KEY_DELETE,
    Action.KEY_RESTORE,
    Action.KEY_PATCH,
    Action.KEY_RING_DELETE,
    Action.KEY_POLICY_READ,
    Action.KEY_POLICY_WRITE,
    Action.INSTANCE_POLICY_READ,
    Action.INSTANCE_POLICY_WRITE,
    Action.ALLOWED_IP_PORT_READ,
}
_EDITOR: Final = {Action.INSTANCE_READ, Action.INSTANCE_CREATE, Action.INSTANCE_UPDATE, Action.INSTANCE_DELETE}

ROLE_ACTIONS: Final[Mapping[Role, frozenset[Action]]] = {
    Role.READER: frozenset(_READER),
    Role.READER_PLUS: frozenset(_READER_PLUS),
    Role.WRITER: frozenset(_WRITER),
    Role.MANAGER: frozenset(_MANAGER),
    Role.KEY_PURGE: frozenset({Action.KEY_PURGE}),
    Role.KMIP_ADAPTER_MANAGER: frozenset({*_LISTING, *_KMIP}),
    Role.VIEWER: frozenset({Action.INSTANCE_READ}),
    Role.OPERATOR: frozenset({Action.INSTANCE_READ}),
    Role.EDITOR: frozenset(_EDITOR),
    Role.ADMINISTRATOR: frozenset(
        {
            *_EDITOR,
            Action.IDENTITY_READ,
            Action.IDENTITY_WRITE,
            Action.API_KEY_READ,
            Action.API_KEY_WRITE,
            Action.GROUP_READ,
            Action.GROUP_WRITE,
            Action.POLICY_READ,
            Action.POLICY_WRITE,
        }
    ),
}
"""The contract's table (additions section 6.1); Key Purge is implied by nothing."""

KEY_ROLES: Final = frozenset(
    {Role.READER, Role.READER_PLUS, Role.WRITER, Role.MANAGER, Role.KEY_PURGE, Role.KMIP_ADAPTER_MANAGER}
)
"""Roles that an authorization may grant to a source service."""


@dataclass(frozen=True, slots=True)
class SourceCrn:
    """The instance of a source service that a service id acts for."""

    service: str
    region: str
    account: str
    instance_id: str


@dataclass(frozen=True, slots=True)
class Scope:
    """What a grant reaches inside its account: None means every instance, key ring or key."""

    instance_id: str | None = None
    key_ring_id: str | None = None
    key_id: str | None = None


class Target(msgspec.Struct, frozen=True, gc=False):
    """What an action is aimed at: an account and, below it, an instance, a key ring and a key."""

    account: str
    instance_id: str | None = None
    key_ring_id: str | None = None
    key_id: str | None = None


class Rights:
    """All that one identity was granted in its account, laid out so that a decision costs at most eight look-ups,
    however many policies there are."""

    __slots__ = ("_all", "_bits", "_by_instance")

    def __init__(self, grants: Iterable[tuple[Role, Scope]]) -> None:
        self._bits: dict[tuple[str | None, str | None, str | None], int] = {}
        for role, scope in grants:
            place = (scope.instance_id, scope.key_ring_id, scope.key_id)
            bits = self._bits.get(place, 0)
            for action in ROLE_ACTIONS[role]:
                bits |= action.bit
            self._bits[place] = bits
        self._by_instance: dict[str | None, int] = {}
        self._all = 0
        for (instance_id, _, _), bits in self._bits.items():
            self._by_instance[instance_id] = self._by_instance.get(instance_id, 0) | bits
            self._all |= bits

    def permit(self, action: Action, target: Target) -> bool:
        """True if a grant with this action covers the target."""
        bits, bit = self._bits, action.bit
        instance_id, ring_id, key_id = target.instance_id, target.key_ring_id, target.key_id
        for instance in (instance_id, None) if instance_id is not None else (None,):
            for ring in (None, ring_id) if ring_id is not None else (None,):
                if bits.get((instance, ring, None), 0) & bit:
                    return True
                if key_id is not None and bits.get((instance, ring, key_id), 0) & bit:
                    return True
        return False

    def reach(self, action: Action, instance_id: str) -> bool:
        """True if a grant with this action covers anything in an instance."""
        return bool((self._by_instance.get(instance_id, 0) | self._by_instance.get(None, 0)) & action.bit)

    def have(self, action: Action) -> bool:
        """True if a grant with this action covers anything at all."""
        return bool(self._all & action.bit)

    def key_rings(self, action: Action, instance_id: str) -> frozenset[str]:
        """The rings of an instance that grants of whole rings reach."""
        return frozenset(
            ring
            for (instance, ring, key), bits in self._bits.items()
            if ring is not None and key is None and instance in (None, instance_id) and bits & action.bit
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated identity with its rights. `sources` are what a service id acts for: a caller with some is a
    service, one without is a user. `expires_at` is the end of what it was authenticated with."""

    iam_id: str
    name: str
    account: str
    rights: Rights
    sources: frozenset[SourceCrn]
    expires_at: datetime


EVERYTHING: Final = Rights((role, Scope()) for role in Role)
"""The rights of the operator, who holds the token's PIN on the host."""


def allows(caller: Caller, action: Action, target: Target) -> bool:
    """True if `caller` may do `action` on `target`. Deny by default; nobody reaches beyond the own account."""
    if caller.account != target.account:
        return False
    if action.bit & _SERVICE_ONLY_BITS and not caller.sources:
        return False
    return caller.rights.permit(action, target)
