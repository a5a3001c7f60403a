"""Policies as IAM Policy Management writes them, version 1 and 2, to and from the one shape that is kept.

An attribute that is not understood is refused, never ignored: it could have narrowed what is granted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import pydantic

from hsmkms.api.iam_wire import time_text
from hsmkms.domain.access import Scope
from hsmkms.domain.crn import KEY_SERVICE, ROLES_BY_ID, role_id
from hsmkms.domain.ids import canonical_uuid
from hsmkms.domain.policies import SERVICE_TYPES, Policy, PolicyKind, PolicyWish, Subject
from hsmkms.errors import Invalid

_MAX_ATTRIBUTES: Final = 20
_MAX_VALUE_CHARS: Final = 1_000
_SUBJECT_NAMES: Final = {
    PolicyKind.ACCESS: frozenset({"iam_id", "access_group_id", "accountId"}),
    PolicyKind.AUTHORIZATION: frozenset({"serviceName", "serviceInstance", "region", "accountId"}),
}
_RESOURCE_NAMES: Final = frozenset(
    {"accountId", "serviceName", "serviceType", "serviceInstance", "keyRing", "resourceType", "resource"}
)


class _Body(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class AttributeV1(_Body):
    name: str
    value: str
    operator: str = "stringEquals"


class AttributesV1(_Body):
    attributes: list[AttributeV1]


class RoleReference(_Body):
    role_id: str
    display_name: str | None = None
    description: str | None = None


class PolicyBodyV1(_Body):
    """POST and PUT /v1/policies."""

    type: str
    subjects: list[AttributesV1]
    roles: list[RoleReference]
    resources: list[AttributesV1]
    description: str | None = None


class StateBody(_Body):
    """PATCH /v1/policies/{id}."""

    state: str


class AttributeV2(_Body):
    key: str
    operator: str
    value: str | bool


class AttributesV2(_Body):
    attributes: list[AttributeV2]


class Grant(_Body):
    roles: list[RoleReference]


class Control(_Body):
    grant: Grant


class PolicyBodyV2(_Body):
    """POST and PUT /v2/policies."""

    type: str
    control: Control
    subject: AttributesV2
    resource: AttributesV2
    description: str | None = None


def wish_of_v1(body: PolicyBodyV1) -> PolicyWish:
    """What a version 1 body asks for. Raises Invalid."""
    if len(body.subjects) != 1 or len(body.resources) != 1:
        raise Invalid("A policy has one subject and one resource. Create a policy for each.")
    return _wish(
        body.type,
        _values((one.name, one.operator, one.value) for one in body.subjects[0].attributes),
        _values((one.name, one.operator, one.value) for one in body.resources[0].attributes),
        body.roles,
        body.description,
    )


def wish_of_v2(body: PolicyBodyV2) -> PolicyWish:
    """What a version 2 body asks for. Raises Invalid."""
    return _wish(
        body.type,
        _values((one.key, one.operator, one.value) for one in body.subject.attributes),
        _values((one.key, one.operator, one.value) for one in body.resource.attributes),
        body.control.grant.roles,
        body.description,
    )


def policy_v1(policy: Policy) -> dict[str, Any]:
    """A policy in version 1."""
    return {
        **_common(policy),
        "href": f"/v1/policies/{policy.id}",
        "subjects": [{"attributes": [{"name": name, "value": value} for name, value in _subject(policy)]}],
        "roles": [
            {"role_id": role_id(role), "display_name": display_name(role.value), "description": ""}
            for role in policy.roles
        ],
        "resources": [
            {
                "attributes": [
                    {"name": name, "value": value, "operator": "stringEquals"} for name, value in _resource(policy)
                ]
            }
        ],
    }


def policy_v2(policy: Policy) -> dict[str, Any]:
    """A policy in version 2."""
    return {
        **_common(policy),
        "href": f"/v2/policies/{policy.id}",
        "subject": {"attributes": _attributes_v2(_subject(policy))},
        "resource": {"attributes": _attributes_v2(_resource(policy))},
        "control": {"grant": {"roles": [{"role_id": role_id(role)} for role in policy.roles]}},
    }


def display_name(name: str) -> str:
    """`KeyPurge` as people and Terraform write it: `Key Purge`; the others are one word or stay as they are."""
    return {"KeyPurge": "Key Purge", "KmipAdapterManager": "KMIP Adapter Manager"}.get(name, name)


def _values(attributes: Iterable[tuple[str, str, str | bool]]) -> dict[str, str | None]:
    """Values by name; None for an attribute that may have any value."""
    found: dict[str, str | None] = {}
    for name, operator, value in attributes:
        if name in found or len(found) >= _MAX_ATTRIBUTES:
            raise Invalid("An attribute is given twice, or there are too many.")
        if operator == "stringExists" and value is True:
            found[name] = None
        elif operator in ("stringEquals", "stringMatch") and isinstance(value, str):
            if not 1 <= len(value) <= _MAX_VALUE_CHARS:
                raise Invalid(f"The value of an attribute has 1 to {_MAX_VALUE_CHARS} characters.")
            if value != "*" and not {"*", "?"}.isdisjoint(value):
                raise Invalid("Wildcards inside a value are not supported. Name one value, or * for all.")
            found[name] = None if value == "*" else value
        else:
            raise Invalid("The operator must be stringEquals, stringMatch or stringExists with true.")
    return found


def _wish(
    kind_text: str,
    subject: dict[str, str | None],
    resource: dict[str, str | None],
    roles: Sequence[RoleReference],
    description: str | None,
) -> PolicyWish:
    try:
        kind = PolicyKind(kind_text)
    except ValueError as error:
        raise Invalid("The type must be access or authorization.") from error
    for found, known, where in ((subject, _SUBJECT_NAMES[kind], "subject"), (resource, _RESOURCE_NAMES, "resource")):
        if not known.issuperset(found):
            raise Invalid(f"The {where} of such a policy takes only the attributes {', '.join(sorted(known))}.")
    account = resource.get("accountId")
    if account is None or subject.get("accountId", account) != account:
        raise Invalid("Subject and resource must be in one account: give both the same accountId.")
    if kind is PolicyKind.AUTHORIZATION and "accountId" not in subject:
        raise Invalid("The subject of an authorization needs the attribute accountId.")
    unknown = [role for role in roles if role.role_id not in ROLES_BY_ID]
    if unknown:
        raise Invalid("A role is not known. GET /v2/roles?service_name=kms lists those there are.")
    service_type = _service_type(resource)
    return PolicyWish(
        account=account,
        kind=kind,
        subject=_subject_of(kind, subject),
        roles=tuple(dict.fromkeys(ROLES_BY_ID[role.role_id] for role in roles)),
        scope=_scope_of(resource),
        service_type=service_type,
        description=description,
    )


def _service_type(resource: dict[str, str | None]) -> str | None:
    service_type = resource.get("serviceType")
    if "serviceName" in resource:
        if resource["serviceName"] != KEY_SERVICE or service_type is not None:
            raise Invalid(f"The resource's serviceName must be {KEY_SERVICE}.")
        return None
    if service_type not in SERVICE_TYPES:
        raise Invalid(f"The resource needs serviceName {KEY_SERVICE}, or serviceType service or platform_service.")
    if len(resource) > 2:
        raise Invalid("A policy for a serviceType reaches the whole account. Leave the other attributes out.")
    return service_type


def _subject_of(kind: PolicyKind, subject: dict[str, str | None]) -> Subject:
    if kind is PolicyKind.ACCESS:
        if any(subject.get(name, "") is None for name in ("iam_id", "access_group_id")):
            raise Invalid("Name one iam_id or access_group_id.")
        return Subject(iam_id=subject.get("iam_id"), access_group_id=subject.get("access_group_id"))
    if subject.get("serviceName") is None:
        raise Invalid("The subject of an authorization needs the attribute serviceName.")
    return Subject(
        service=subject["serviceName"],
        service_instance_id=subject.get("serviceInstance"),
        region=subject.get("region"),
    )


def _scope_of(resource: dict[str, str | None]) -> Scope:
    instance, key = resource.get("serviceInstance"), resource.get("resource")
    if resource.get("resourceType", "key") not in ("key", None) or ("resource" in resource) > (
        "resourceType" in resource
    ):
        raise Invalid("The attribute resourceType must be key, and resource the id of a key.")
    instance_id = None if instance is None else canonical_uuid(instance)
    key_id = None if key is None else canonical_uuid(key)
    if (instance is not None and instance_id is None) or (key is not None and key_id is None):
        raise Invalid("The attributes serviceInstance and resource take the GUID of an instance and the id of a key.")
    return Scope(instance_id, resource.get("keyRing"), key_id)


def _subject(policy: Policy) -> list[tuple[str, str]]:
    subject = policy.subject
    found = {
        "iam_id": subject.iam_id,
        "access_group_id": subject.access_group_id,
        "serviceName": subject.service,
        "serviceInstance": subject.service_instance_id,
        "region": subject.region,
        "accountId": policy.account if policy.kind is PolicyKind.AUTHORIZATION else None,
    }
    return [(name, value) for name, value in found.items() if value is not None]


def _resource(policy: Policy) -> list[tuple[str, str]]:
    found = {
        "serviceName": KEY_SERVICE if policy.service_type is None else None,
        "serviceType": policy.service_type,
        "serviceInstance": policy.scope.instance_id,
        "keyRing": policy.scope.key_ring_id,
        "resourceType": None if policy.scope.key_id is None else "key",
        "resource": policy.scope.key_id,
        "accountId": policy.account,
    }
    return [(name, value) for name, value in found.items() if value is not None]


def _attributes_v2(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"key": name, "operator": "stringEquals", "value": value} for name, value in pairs]


def _common(policy: Policy) -> dict[str, Any]:
    shown = {
        "id": policy.id,
        "type": policy.kind.value,
        "state": policy.state.value,
        "created_at": time_text(policy.created_at),
        "created_by_id": policy.created_by,
        "last_modified_at": time_text(policy.modified_at),
        "last_modified_by_id": policy.modified_by,
    }
    return shown if policy.description is None else {**shown, "description": policy.description}
