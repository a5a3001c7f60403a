"""Cloud resource names: `crn:v1:bluemix:public:<service>:<region>:a/<account>:<instance>:<type>:<resource>`."""

from __future__ import annotations

import re
from typing import Final

from hsmkms.domain.access import KEY_ROLES, Role, SourceCrn
from hsmkms.domain.ids import is_uuid

KEY_SERVICE: Final = "kms"
SOURCE_SERVICES: Final = frozenset(
    {"cloud-object-storage", "databases-for-postgresql", "cloudantnosqldb", "containers-kubernetes"}
)
"""The services of the integration guide that may be authorized to use root keys."""
REGIONLESS: Final = "global"
"""Region in the CRNs of services that have none, such as object storage."""

_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_PREFIX: Final = "crn:v1:bluemix:public"
_COMMON_ROLES: Final = frozenset({Role.READER, Role.WRITER, Role.MANAGER})


def key_crn(region: str, account: str, instance_id: str, key_id: str) -> str:
    """CRN of a key (contract section 1.1)."""
    return f"{_PREFIX}:{KEY_SERVICE}:{region}:a/{account}:{instance_id}:key:{key_id}"


def instance_crn(region: str, account: str, instance_id: str) -> str:
    """CRN of an instance of this service."""
    return f"{_PREFIX}:{KEY_SERVICE}:{region}:a/{account}:{instance_id}::"


def identity_crn(account: str, kind: str, resource: str) -> str:
    """CRN of a service id or API key."""
    return f"{_PREFIX}:iam-identity::a/{account}::{kind}:{resource}"


def record_crn(service: str, account: str, kind: str, resource: str) -> str:
    """CRN of a record of ours that Key Protect has none for, as the audit trail names it."""
    return f"{_PREFIX}:{service}::a/{account}::{kind}:{resource}"


def parse_source_crn(text: str) -> SourceCrn | None:
    """The parts of an instance CRN of a known source service, or None."""
    parts = text.split(":")
    if len(parts) != 10 or ":".join(parts[:4]) != _PREFIX or parts[4] not in SOURCE_SERVICES:
        return None
    region, owner, instance_id = parts[5:8]
    account = owner.removeprefix("a/")
    if owner == account or not all(_SEGMENT.fullmatch(part) for part in (region, account, instance_id)):
        return None
    return SourceCrn(parts[4], region, account, instance_id)


def instance_id_of(text: str, account: str) -> str | None:
    """The GUID in a text that is a GUID or the CRN of an instance of this service in an account, or None."""
    parts = text.split(":")
    if len(parts) == 10 and ":".join(parts[:5]) == f"{_PREFIX}:{KEY_SERVICE}" and parts[6] == f"a/{account}":
        text = parts[7]
    return text.lower() if is_uuid(text.lower()) else None


def role_id(role: Role) -> str:
    """The id of a role, as IAM policies name it (contract section 4)."""
    if role not in KEY_ROLES:
        return f"{_PREFIX}:iam::::role:{role.value}"
    owner = "iam" if role in _COMMON_ROLES else KEY_SERVICE
    return f"{_PREFIX}:{owner}::::serviceRole:{role.value}"


ROLES_BY_ID: Final = {role_id(role): role for role in Role}
SERVICE_ROLES: Final = tuple(role for role in Role if role in KEY_ROLES)
PLATFORM_ROLES: Final = tuple(role for role in Role if role not in KEY_ROLES)
