"""Policies of an instance (contract section 1.4, additions section 3.6)."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from hsmkms.api import described as d
from hsmkms.api import wire
from hsmkms.api.bodies import require_policies
from hsmkms.api.cold import KmsRoute, answer, body_of, call_of, described, services
from hsmkms.domain.access import Action
from hsmkms.domain.instance_policies import CreateAccess, InstancePolicy, InstancePolicyKind, InstancePolicyWish
from hsmkms.errors import BadBody, InvalidQueryParam, QueryMismatch

router = APIRouter(prefix="/api/v2", route_class=KmsRoute, default_response_class=Response)

_FAILED = "Instance policies could not be"
_ATTRIBUTES = {
    InstancePolicyKind.ALLOWED_NETWORK: {"allowed_network"},
    InstancePolicyKind.ALLOWED_IP: {"allowed_ip"},
    InstancePolicyKind.DUAL_AUTH_DELETE: set[str](),
    InstancePolicyKind.KEY_CREATE_IMPORT_ACCESS: {
        "create_root_key",
        "create_standard_key",
        "import_root_key",
        "import_standard_key",
        "enforce_token",
    },
    InstancePolicyKind.METRICS: set[str](),
    InstancePolicyKind.ROTATION: {"interval_month"},
}


@router.get(
    "/instance/policies",
    openapi_extra=described(
        d.operation(
            "Read the instance's policies",
            ok=200,
            kind=wire.POLICY_TYPE,
            answer=wire.InstancePolicyCollection,
            parameters=(d.INSTANCE_POLICY,),
            ring=False,
        ),
        Action.INSTANCE_POLICY_READ,
        f"{_FAILED} retrieved",
    ),
)
async def get_policies(request: Request) -> Response:
    """Read the instance's policies."""
    call, kind = call_of(request), _kind(request)
    found = await run_in_threadpool(services(request).instance_policies.read, call.caller, call.instance_id)
    shown = [_resource(policy) for policy in found if kind in (None, policy.kind)]
    return answer(wire.collection(wire.POLICY_TYPE, shown), wire.POLICY_TYPE)


@router.put(
    "/instance/policies",
    status_code=204,
    openapi_extra=described(
        d.operation(
            "Set the instance's policies",
            ok=204,
            body=wire.InstancePolicyBody,
            parameters=(d.INSTANCE_POLICY,),
            ring=False,
        ),
        Action.INSTANCE_POLICY_WRITE,
        f"{_FAILED} set",
    ),
)
async def put_policies(request: Request) -> Response:
    """Set one policy, or several without the parameter `policy`: an empty 204."""
    call, kind = call_of(request), _kind(request)
    body = body_of(request, wire.InstancePolicyBody)
    require_policies(body.metadata, len(body.resources), one=kind is not None)
    wishes = [_wish(resource) for resource in body.resources]
    kinds = [wish.kind for wish in wishes]
    if not kinds or len(set(kinds)) != len(kinds):
        raise BadBody("Give each policy_type once at most, and one at least.")
    if kind is not None and kinds != [kind]:
        raise QueryMismatch
    await run_in_threadpool(services(request).instance_policies.put, call.caller, call.instance_id, wishes)
    return Response(status_code=204)


@router.get(
    "/instance/allowed_ip_port",
    openapi_extra=described(
        d.operation(
            "Read the port of the private endpoint, if an allowedIP policy is enabled",
            ok=200,
            kind=wire.ALLOWED_IP_TYPE,
            answer=wire.AllowedIpCollection,
            ring=False,
        ),
        Action.ALLOWED_IP_PORT_READ,
        "Allowed IP port could not be retrieved",
    ),
)
async def get_allowed_ip_port(request: Request) -> Response:
    """The port of the private endpoint, which here is the one endpoint; nothing without an allowedIP policy."""
    here, call = services(request), call_of(request)
    limited = await run_in_threadpool(here.instance_policies.limits_ips, call.caller, call.instance_id)
    resources = [{"private_endpoint_port": _port(here.base_url)}] if limited else []
    return answer(wire.collection(wire.ALLOWED_IP_TYPE, resources), wire.ALLOWED_IP_TYPE)


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _wish(resource: wire.InstancePolicyWriteResource) -> InstancePolicyWish:
    try:
        kind = InstancePolicyKind(resource.policy_type)
    except ValueError as error:
        raise BadBody("The member policy_type is not that of an instance policy.") from error
    data = resource.policy_data
    given = {} if data.attributes is None else data.attributes.model_dump(exclude_none=True)
    unknown = sorted(given.keys() - _ATTRIBUTES[kind])
    if unknown:
        raise BadBody(f'Remove the member that {kind.value} does not take. json: unknown field "{unknown[0]}"')
    return InstancePolicyWish(
        kind=kind,
        enabled=data.enabled,
        allowed_network=given.get("allowed_network"),
        allowed_ip=tuple(given["allowed_ip"]) if "allowed_ip" in given else None,
        create_access=CreateAccess(**given) if kind is InstancePolicyKind.KEY_CREATE_IMPORT_ACCESS else None,
        interval_month=given.get("interval_month"),
    )


def _kind(request: Request) -> InstancePolicyKind | None:
    text = request.query_params.get("policy", "")
    if not text:
        return None
    try:
        return InstancePolicyKind(text)
    except ValueError as error:
        known = ", ".join(kind.value for kind in InstancePolicyKind)
        raise InvalidQueryParam("policy", f"Give policy as one of {known}.") from error


def _resource(policy: InstancePolicy) -> dict[str, Any]:
    data: dict[str, Any] = {"enabled": policy.enabled}
    attributes: dict[str, Any] = {
        "allowed_network": policy.allowed_network,
        "allowed_ip": list(policy.allowed_ip) or None,
        "interval_month": policy.interval_month,
    }
    if policy.create_access is not None:
        access = policy.create_access
        attributes |= {name: getattr(access, name) for name in _ATTRIBUTES[policy.kind]}
    given = {name: value for name, value in attributes.items() if value is not None}
    if given:
        data["attributes"] = given
    return {
        "policy_type": policy.kind.value,
        "policy_data": data,
        "creationDate": wire.time_text(policy.created_at),
        "createdBy": policy.created_by,
        "updatedBy": policy.updated_by,
        "lastUpdated": wire.time_text(policy.updated_at),
    }
