"""Policies of a single key (contract section 1.3, additions section 3.5)."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from hsmkms.api import described as d
from hsmkms.api import wire
from hsmkms.api.bodies import require_policies
from hsmkms.api.cold import KmsRoute, answer, body_of, call_of, described, instance_of, path_id, services
from hsmkms.api.requests import Envelope
from hsmkms.domain.access import Action
from hsmkms.domain.key_policies import KeyPolicyKind, KeyPolicyWish
from hsmkms.domain.keys import Key
from hsmkms.errors import BadBody, InvalidQueryParam, QueryMismatch

router = APIRouter(prefix="/api/v2", route_class=KmsRoute, default_response_class=Response)

_FAILED = "Policies of the key could not be"


@router.get(
    "/keys/{id}/policies",
    openapi_extra=described(
        d.operation(
            "Read a key's policies",
            ok=200,
            kind=wire.POLICY_TYPE,
            answer=wire.KeyPolicyCollection,
            parameters=(d.REFERENCE, d.KEY_POLICY),
        ),
        Action.KEY_POLICY_READ,
        f"{_FAILED} retrieved",
    ),
)
async def get_policies(request: Request) -> Response:
    """One resource for each policy that was set (contract trap 11)."""
    call, kind = call_of(request), _kind(request)
    policies = services(request).key_policies
    key = await run_in_threadpool(policies.read, call.caller, call.instance_id, path_id(request), call.key_ring_id)
    return _answer(request, call, key, kind)


@router.put(
    "/keys/{id}/policies",
    openapi_extra=described(
        d.operation(
            "Set a key's policies",
            ok=200,
            kind=wire.POLICY_TYPE,
            answer=wire.KeyPolicyCollection,
            body=wire.KeyPolicyBody,
            parameters=(d.REFERENCE, d.KEY_POLICY),
            prefer=True,
        ),
        Action.KEY_POLICY_WRITE,
        f"{_FAILED} set",
    ),
)
async def put_policies(request: Request) -> Response:
    """Set one policy, or several without the parameter `policy`."""
    call, kind = call_of(request), _kind(request)
    body = body_of(request, wire.KeyPolicyBody)
    require_policies(body.metadata, len(body.resources), one=kind is not None)
    wishes = [wish for resource in body.resources for wish in policy_wishes(resource)]
    kinds = [wish.kind for wish in wishes]
    if not kinds or len(set(kinds)) != len(kinds):
        raise BadBody("Give each of rotation and dualAuthDelete once at most, and one of them at least.")
    if kind is not None and kinds != [kind]:
        raise QueryMismatch
    put = services(request).key_policies.put
    key = await run_in_threadpool(put, call.caller, call.instance_id, path_id(request), call.key_ring_id, wishes)
    return _answer(request, call, key, kind)


def policy_wishes(resource: wire.KeyPolicyWriteResource | wire.KeyWithPoliciesResource) -> list[KeyPolicyWish]:
    """The policies that a resource asks for."""
    wishes = []
    if resource.rotation is not None:
        rotation = resource.rotation
        wishes.append(KeyPolicyWish(KeyPolicyKind.ROTATION, rotation.enabled, rotation.interval_month))
    if resource.dualAuthDelete is not None:
        wishes.append(KeyPolicyWish(KeyPolicyKind.DUAL_AUTH_DELETE, resource.dualAuthDelete.enabled, None))
    return wishes


def _kind(request: Request) -> KeyPolicyKind | None:
    text = request.query_params.get("policy", "")
    if not text:
        return None
    try:
        return KeyPolicyKind(text)
    except ValueError as error:
        raise InvalidQueryParam("policy", "Give policy as rotation or dualAuthDelete.") from error


def _answer(request: Request, call: Envelope, key: Key, kind: KeyPolicyKind | None) -> Response:
    instance = instance_of(request, call)
    shown = [wire.key_policy_resource(policy, key, instance) for policy in key.policies if kind in (None, policy.kind)]
    content = wire.collection(wire.POLICY_TYPE, shown)
    if not shown:
        # A key without policies answers without the member (additions section 1.2).
        del content["resources"]
    return answer(content, wire.POLICY_TYPE)
