"""Shapes of IAM Identity, Access Groups, Policy Management and the Resource Controller, as `ibm-platform-services`
0.77.1 sends and reads them (contract section 4, additions sections 6.3 and 6.4)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pydantic

from hsmkms.domain.crn import identity_crn, instance_crn
from hsmkms.domain.identities import AccessGroup, ApiKey, ApiKeyUse, Identity, Member
from hsmkms.domain.records import Record
from hsmkms.domain.tenants import Instance
from hsmkms.service.rights import entity_tag


class _Body(pydantic.BaseModel):
    """Unknown members are refused: one that is ignored could have been a condition."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class ApiKeyInsideServiceId(_Body):
    name: str
    description: str | None = None
    apikey: str | None = None
    store_value: bool | None = None
    expires_at: str | None = None
    action_when_leaked: str | None = None


class ServiceIdBody(_Body):
    account_id: str
    name: str
    description: str | None = None
    unique_instance_crns: list[str] = []
    apikey: ApiKeyInsideServiceId | None = None


class ServiceIdUpdateBody(_Body):
    name: str | None = None
    description: str | None = None
    unique_instance_crns: list[str] | None = None


class ApiKeyBody(_Body):
    name: str
    iam_id: str
    account_id: str | None = None
    description: str | None = None
    apikey: str | None = None
    store_value: bool | None = None
    support_sessions: bool | None = None
    action_when_leaked: str | None = None
    expires_at: str | None = None


class ApiKeyUpdateBody(_Body):
    name: str | None = None
    description: str | None = None
    support_sessions: bool | None = None
    action_when_leaked: str | None = None
    expires_at: str | None = None


class GroupBody(_Body):
    name: str
    description: str | None = None


class GroupUpdateBody(_Body):
    name: str | None = None
    description: str | None = None


class MemberBody(_Body):
    iam_id: str
    type: str


class MembersBody(_Body):
    members: list[MemberBody]


class InstanceBody(_Body):
    name: str
    target: str
    resource_group: str
    resource_plan_id: str
    tags: list[str] | None = None
    allow_cleanup: bool | None = None
    parameters: dict[str, Any] | None = None


class InstanceUpdateBody(_Body):
    name: str | None = None
    parameters: dict[str, Any] | None = None
    resource_plan_id: str | None = None
    allow_cleanup: bool | None = None


def time_text(moment: datetime) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def service_id(record: Record, identity: Identity) -> dict[str, Any]:
    """A service id."""
    shown: dict[str, Any] = {
        "id": identity.id,
        "iam_id": identity.iam_id,
        "entity_tag": entity_tag(record),
        "crn": identity_crn(identity.account, "serviceid", identity.id),
        "locked": identity.locked,
        "created_at": time_text(identity.created_at),
        "modified_at": time_text(identity.modified_at),
        "account_id": identity.account,
        "name": identity.name,
        "unique_instance_crns": list(identity.source_crns),
    }
    if identity.description is not None:
        shown["description"] = identity.description
    return shown


def api_key(record: Record, key: ApiKey, *, secret: str = "", use: ApiKeyUse | None = None) -> dict[str, Any]:
    """An API key; `secret` only in the answer that creates it, else the empty text that clients expect."""
    shown: dict[str, Any] = {
        "id": key.id,
        "entity_tag": entity_tag(record),
        "crn": identity_crn(key.account, "apikey", key.id),
        "locked": key.locked,
        "disabled": key.disabled,
        "created_at": time_text(key.created_at),
        "created_by": key.created_by,
        "modified_at": time_text(key.modified_at),
        "name": key.name,
        "iam_id": key.iam_id,
        "account_id": key.account,
        "apikey": secret,
    }
    if key.description is not None:
        shown["description"] = key.description
    if key.expires_at is not None:
        shown["expires_at"] = time_text(key.expires_at)
    if use is not None:
        shown["activity"] = {"last_authn": time_text(use.last_at), "authn_count": use.count}
    return shown


def group(found: AccessGroup) -> dict[str, Any]:
    """An access group without its members."""
    shown: dict[str, Any] = {
        "id": found.id,
        "name": found.name,
        "account_id": found.account,
        "created_at": time_text(found.created_at),
        "created_by_id": found.created_by,
        "last_modified_at": time_text(found.modified_at),
        "last_modified_by_id": found.modified_by,
        "href": f"/v2/groups/{found.id}",
        "description": found.description or "",
        "is_federated": False,
    }
    return shown


def member(group_id: str, found: Member) -> dict[str, Any]:
    """One member of a group."""
    return {
        "iam_id": found.iam_id,
        "type": member_type(found.iam_id),
        "membership_type": "static",
        "href": f"/v2/groups/{group_id}/members/{found.iam_id}",
        "created_at": time_text(found.added_at),
        "created_by_id": found.added_by,
    }


def member_type(iam_id: str) -> str:
    """`service` or `user`."""
    return "service" if iam_id.startswith("iam-ServiceId-") else "user"


def resource_instance(found: Instance, base_url: str) -> dict[str, Any]:
    """A resource instance. Terraform reads `extensions.endpoints` without asking whether they are there."""
    crn = instance_crn(found.region, found.account, found.id)
    place = f"/v2/resource_instances/{found.id}"
    shown: dict[str, Any] = {
        "id": crn,
        "guid": found.id,
        "url": place,
        "created_at": time_text(found.created_at),
        "updated_at": time_text(found.updated_at or found.created_at),
        "created_by": found.created_by,
        "name": found.name,
        "region_id": found.region,
        "account_id": found.account,
        "resource_plan_id": found.plan_id,
        "resource_group_id": found.resource_group,
        "crn": crn,
        "state": "active",
        "type": "service_instance",
        "sub_type": "kms",
        "resource_id": "kms",
        "allow_cleanup": False,
        "locked": False,
        "last_operation": {
            "type": "create" if found.updated_at is None else "update",
            "state": "succeeded",
            "async": False,
            "cancelable": False,
            "poll": False,
            "description": "Completed",
        },
        "onetime_credentials": False,
        "resource_aliases_url": f"{place}/resource_aliases",
        "resource_bindings_url": f"{place}/resource_bindings",
        "resource_keys_url": f"{place}/resource_keys",
        "extensions": {"endpoints": {"public": base_url, "private": base_url}},
    }
    return {name: value for name, value in shown.items() if value is not None}
