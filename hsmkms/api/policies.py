"""IAM Policy Management version 1 and 2, as `IamPolicyManagementV1` calls them, and the roles there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from hsmkms.api import described as d
from hsmkms.api import policy_wire as w
from hsmkms.api.cold import (
    PlatformRoute,
    answer,
    body_of,
    caller_of,
    described,
    own_account_of,
    path_id,
    services,
    tagged,
)
from hsmkms.api.paging import page_of
from hsmkms.domain.access import ROLE_ACTIONS, Action, Role
from hsmkms.domain.crn import KEY_SERVICE, PLATFORM_ROLES, SERVICE_ROLES, SOURCE_SERVICES, role_id
from hsmkms.domain.policies import Policy, PolicyState
from hsmkms.domain.records import Record
from hsmkms.errors import Invalid

router = APIRouter(route_class=PlatformRoute, default_response_class=Response)

_TAG = "IAM Policy Management"
_JSON = "application/json"
_V1, _V2 = "/v1/policies", "/v2/policies"
_ID = ("id",)
_FILTERS = ("account_id", "iam_id", "access_group_id", "type", "service_type", "service_name", "state", "sort")
_SORTS = {
    "id": lambda policy: policy.id,
    "type": lambda policy: policy.kind.value,
    "created_at": lambda policy: policy.created_at,
    "created_by_id": lambda policy: policy.created_by,
    "last_modified_at": lambda policy: policy.modified_at,
    "last_modified_by_id": lambda policy: policy.modified_by,
    "state": lambda policy: policy.state.value,
}


def _listing(version: str) -> dict[str, Any]:
    summary = f"List policies, version {version}"
    query = (*_FILTERS, "limit", "start")
    return described(d.platform(summary, _TAG, ok=200, query=query), Action.POLICY_READ)


@router.get(_V1, openapi_extra=_listing("1"))
async def list_policies(request: Request) -> Response:
    """List policies."""
    return await _list(request, w.policy_v1)


@router.get(_V2, openapi_extra=_listing("2"))
async def list_v2_policies(request: Request) -> Response:
    """List policies."""
    return await _list(request, w.policy_v2)


@router.post(
    _V1,
    status_code=201,
    openapi_extra=described(d.platform("Grant", _TAG, ok=201, body=w.PolicyBodyV1), Action.POLICY_WRITE),
)
async def create_policy(request: Request) -> Response:
    """Create a policy."""
    wish = w.wish_of_v1(body_of(request, w.PolicyBodyV1))
    record, policy = await run_in_threadpool(services(request).policies.create, caller_of(request), wish)
    return tagged(w.policy_v1(policy), record, 201)


@router.post(
    _V2,
    status_code=201,
    openapi_extra=described(d.platform("Grant", _TAG, ok=201, body=w.PolicyBodyV2), Action.POLICY_WRITE),
)
async def create_v2_policy(request: Request) -> Response:
    """Create a policy."""
    wish = w.wish_of_v2(body_of(request, w.PolicyBodyV2))
    record, policy = await run_in_threadpool(services(request).policies.create, caller_of(request), wish)
    return tagged(w.policy_v2(policy), record, 201)


@router.get(
    _V1 + "/{id}", openapi_extra=described(d.platform("Read a policy", _TAG, ok=200, path=_ID), Action.POLICY_READ)
)
async def get_policy(request: Request) -> Response:
    """Read a policy."""
    record, policy = await run_in_threadpool(services(request).policies.get, caller_of(request), path_id(request))
    return tagged(w.policy_v1(policy), record)


@router.get(
    _V2 + "/{id}", openapi_extra=described(d.platform("Read a policy", _TAG, ok=200, path=_ID), Action.POLICY_READ)
)
async def get_v2_policy(request: Request) -> Response:
    """Read a policy."""
    record, policy = await run_in_threadpool(services(request).policies.get, caller_of(request), path_id(request))
    return tagged(w.policy_v2(policy), record)


@router.put(
    _V1 + "/{id}",
    openapi_extra=described(
        d.platform("Replace a policy", _TAG, ok=200, path=_ID, body=w.PolicyBodyV1, if_match=True),
        Action.POLICY_WRITE,
    ),
)
async def replace_policy(request: Request) -> Response:
    """Replace a policy."""
    wish = w.wish_of_v1(body_of(request, w.PolicyBodyV1))
    replace, if_match = services(request).policies.replace, request.headers.get("if-match")
    record, policy = await run_in_threadpool(replace, caller_of(request), path_id(request), if_match, wish)
    return tagged(w.policy_v1(policy), record)


@router.put(
    _V2 + "/{id}",
    openapi_extra=described(
        d.platform("Replace a policy", _TAG, ok=200, path=_ID, body=w.PolicyBodyV2, if_match=True),
        Action.POLICY_WRITE,
    ),
)
async def replace_v2_policy(request: Request) -> Response:
    """Replace a policy."""
    wish = w.wish_of_v2(body_of(request, w.PolicyBodyV2))
    replace, if_match = services(request).policies.replace, request.headers.get("if-match")
    record, policy = await run_in_threadpool(replace, caller_of(request), path_id(request), if_match, wish)
    return tagged(w.policy_v2(policy), record)


@router.patch(
    _V1 + "/{id}",
    openapi_extra=described(
        d.platform(
            "Take a policy's effect away or give it back", _TAG, ok=200, path=_ID, body=w.StateBody, if_match=True
        ),
        Action.POLICY_WRITE,
    ),
)
async def update_policy_state(request: Request) -> Response:
    """Change a policy's state."""
    body = body_of(request, w.StateBody)
    if_match = request.headers.get("if-match")
    record, policy = await run_in_threadpool(
        services(request).policies.set_state, caller_of(request), path_id(request), if_match, _state(body.state)
    )
    return tagged(w.policy_v1(policy), record)


@router.delete(
    _V1 + "/{id}",
    status_code=204,
    openapi_extra=described(d.platform("Delete a policy", _TAG, ok=204, path=_ID), Action.POLICY_WRITE),
)
@router.delete(
    _V2 + "/{id}",
    status_code=204,
    openapi_extra=described(d.platform("Delete a policy", _TAG, ok=204, path=_ID), Action.POLICY_WRITE),
)
async def delete_policy(request: Request) -> Response:
    """Delete a policy."""
    await run_in_threadpool(services(request).policies.delete, caller_of(request), path_id(request))
    return Response(status_code=204)


@router.get(
    "/v2/roles",
    openapi_extra=described(
        d.platform(
            "List roles",
            _TAG,
            ok=200,
            query=("account_id", "service_name", "source_service_name", "policy_type"),
        ),
        Action.POLICY_READ,
    ),
)
async def list_roles(request: Request) -> Response:
    """The roles and their actions; authorizations grant roles of keys only."""
    query = request.query_params
    own_account_of(request)
    if query.get("source_service_name", "") not in ("", *SOURCE_SERVICES):
        raise Invalid(f"source_service_name is one of {', '.join(sorted(SOURCE_SERVICES))}.")
    keys = query.get("service_name", KEY_SERVICE) in ("", KEY_SERVICE)
    system = () if query.get("policy_type") == "authorization" else PLATFORM_ROLES
    content = {
        "custom_roles": [],
        "service_roles": [_role(role) for role in SERVICE_ROLES] if keys else [],
        "system_roles": [_role(role) for role in system],
    }
    return answer(content, _JSON)


def _role(role: Role) -> dict[str, Any]:
    return {
        "crn": role_id(role),
        "display_name": w.display_name(role.value),
        "description": f"{len(ROLE_ACTIONS[role])} actions",
        "actions": sorted(action.value for action in ROLE_ACTIONS[role]),
    }


async def _list(request: Request, show: Callable[[Policy], dict[str, Any]]) -> Response:
    query = request.query_params
    if not query.get("account_id"):
        raise Invalid("The parameter account_id is missing.")
    caller = own_account_of(request)
    if query.get("tag_name") or query.get("tag_value"):
        raise Invalid("Policies have no tags here. Leave tag_name and tag_value out.")
    state = _state(query.get("state") or PolicyState.ACTIVE.value)

    def wanted(policy: Policy) -> bool:
        return (
            policy.state is state
            and query.get("iam_id") in (None, "", policy.subject.iam_id)
            and query.get("access_group_id") in (None, "", policy.subject.access_group_id)
            and query.get("type") in (None, "", policy.kind.value)
            and query.get("service_type") in (None, "", policy.service_type or "service")
            and query.get("service_name") in (None, "", KEY_SERVICE if policy.service_type is None else "")
        )

    found = _sorted(await run_in_threadpool(services(request).policies.list, caller, wanted), query.get("sort", ""))
    page, places = page_of(request, found, size="limit", start="start", default=1_000)
    places.pop("offset")
    return answer({**places, "policies": [show(policy) for _, policy in page]}, _JSON)


def _sorted(found: Sequence[tuple[Record, Policy]], sort: str) -> Sequence[tuple[Record, Policy]]:
    if not sort:
        return found
    by = _SORTS.get(sort.removeprefix("-"))
    if by is None:
        raise Invalid(f"The parameter sort is one of {', '.join(sorted(_SORTS))}, with - to descend.")
    return sorted(found, key=lambda one: by(one[1]), reverse=sort.startswith("-"))


def _state(text: str) -> PolicyState:
    try:
        return PolicyState(text)
    except ValueError as error:
        raise Invalid("The state is active or deleted.") from error
