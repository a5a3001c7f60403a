"""Access groups, as `IamAccessGroupsV2` calls them. Groups hold identities, not groups."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from hsmkms.api import described as d
from hsmkms.api import iam_wire as w
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
from hsmkms.domain.access import Action
from hsmkms.errors import Invalid, NotFound

router = APIRouter(prefix="/v2/groups", route_class=PlatformRoute, default_response_class=Response)

_TAG = "IAM Access Groups"
_JSON = "application/json"
_GROUP = ("group_id",)
_MEMBER_TYPES = frozenset({"user", "service"})


@router.get(
    "",
    openapi_extra=described(
        d.platform("List groups", _TAG, ok=200, query=("account_id", "iam_id", "search", "limit", "offset")),
        Action.GROUP_READ,
    ),
)
async def list_groups(request: Request) -> Response:
    """List groups; with `iam_id` those that it is a member of."""
    caller = own_account_of(request)
    found = await run_in_threadpool(services(request).groups.list, caller)
    iam_id = request.query_params.get("iam_id")
    if iam_id:
        found = [one for one in found if iam_id in {member.iam_id for member in one[1].members}]
    search = request.query_params.get("search", "").casefold()
    found = [one for one in found if search in f"{one[1].name}\n{one[1].description or ''}".casefold()]
    page, places = page_of(request, found, size="limit", start="offset", default=50)
    return answer({**places, "total_count": len(found), "groups": [w.group(one[1]) for one in page]}, _JSON)


@router.post(
    "",
    status_code=201,
    openapi_extra=described(
        d.platform("Create a group", _TAG, ok=201, body=w.GroupBody, query=("account_id",)), Action.GROUP_WRITE
    ),
)
async def create_group(request: Request) -> Response:
    """Create a group."""
    body = body_of(request, w.GroupBody)
    caller = own_account_of(request)
    record, group = await run_in_threadpool(services(request).groups.create, caller, body.name, body.description)
    return tagged(w.group(group), record, 201)


@router.get(
    "/{group_id}",
    openapi_extra=described(d.platform("Read a group", _TAG, ok=200, path=_GROUP), Action.GROUP_READ),
)
async def get_group(request: Request) -> Response:
    """Read a group."""
    get = services(request).groups.get
    record, group = await run_in_threadpool(get, caller_of(request), path_id(request, "group_id"))
    return tagged(w.group(group), record)


@router.patch(
    "/{group_id}",
    openapi_extra=described(
        d.platform("Change a group", _TAG, ok=200, path=_GROUP, body=w.GroupUpdateBody, if_match=True),
        Action.GROUP_WRITE,
    ),
)
async def update_group(request: Request) -> Response:
    """Change name or description."""
    body = body_of(request, w.GroupUpdateBody)
    record, group = await run_in_threadpool(
        services(request).groups.update,
        caller_of(request),
        path_id(request, "group_id"),
        request.headers.get("if-match"),
        body.name,
        body.description,
    )
    return tagged(w.group(group), record)


@router.delete(
    "/{group_id}",
    status_code=204,
    openapi_extra=described(
        d.platform("Delete a group and its policies", _TAG, ok=204, path=_GROUP, query=("force",)), Action.GROUP_WRITE
    ),
)
async def delete_group(request: Request) -> Response:
    """Delete a group; one with members only with force=true."""
    force = request.query_params.get("force", "").lower() == "true"
    delete = services(request).groups.delete
    await run_in_threadpool(partial(delete, caller_of(request), path_id(request, "group_id"), force=force))
    return Response(status_code=204)


@router.get(
    "/{group_id}/members",
    openapi_extra=described(
        d.platform("List members", _TAG, ok=200, path=_GROUP, query=("limit", "offset")), Action.GROUP_READ
    ),
)
async def list_members(request: Request) -> Response:
    """List members."""
    get = services(request).groups.get
    _, group = await run_in_threadpool(get, caller_of(request), path_id(request, "group_id"))
    page, places = page_of(request, group.members, size="limit", start="offset", default=50)
    members = [w.member(group.id, one) for one in page]
    return answer({**places, "total_count": len(group.members), "members": members}, _JSON)


@router.put(
    "/{group_id}/members",
    status_code=207,
    openapi_extra=described(
        d.platform("Add members", _TAG, ok=207, path=_GROUP, body=w.MembersBody), Action.GROUP_WRITE
    ),
)
async def add_members(request: Request) -> Response:
    """Add members: all of them or none, although the status is that of an answer for each."""
    body = body_of(request, w.MembersBody)
    wrong = [one for one in body.members if one.type not in _MEMBER_TYPES or one.type != w.member_type(one.iam_id)]
    if wrong:
        raise Invalid("A member is of type user or service, as its iam_id says; groups hold no groups.")
    iam_ids = [one.iam_id for one in body.members]
    add = services(request).groups.add_members
    _, group = await run_in_threadpool(add, caller_of(request), path_id(request, "group_id"), iam_ids)
    shown = [{**w.member(group.id, one), "status_code": 200} for one in group.members if one.iam_id in iam_ids]
    return answer({"members": shown}, _JSON, 207)


@router.head(
    "/{group_id}/members/{iam_id}",
    status_code=204,
    openapi_extra=described(d.platform("Is it a member", _TAG, ok=204, path=("group_id", "iam_id")), Action.GROUP_READ),
)
async def is_member(request: Request) -> Response:
    """204 if it is, 404 if not."""
    get = services(request).groups.get
    _, group = await run_in_threadpool(get, caller_of(request), path_id(request, "group_id"))
    if path_id(request, "iam_id") not in {member.iam_id for member in group.members}:
        raise NotFound("member")
    return Response(status_code=204)


@router.delete(
    "/{group_id}/members/{iam_id}",
    status_code=204,
    openapi_extra=described(
        d.platform("Remove a member", _TAG, ok=204, path=("group_id", "iam_id")), Action.GROUP_WRITE
    ),
)
async def remove_member(request: Request) -> Response:
    """Remove a member."""
    remove = services(request).groups.remove_member
    await run_in_threadpool(remove, caller_of(request), path_id(request, "group_id"), path_id(request, "iam_id"))
    return Response(status_code=204)
