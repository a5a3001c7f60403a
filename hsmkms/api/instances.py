"""Instances, as `ResourceControllerV2` and Terraform call them."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from hsmkms.api import described as d
from hsmkms.api import iam_wire as w
from hsmkms.api.cold import PlatformRoute, answer, body_of, caller_of, described, path_id, services
from hsmkms.api.paging import page_of
from hsmkms.domain.access import Action
from hsmkms.domain.crn import instance_id_of
from hsmkms.domain.tenants import Instance
from hsmkms.errors import Invalid, NotFound

router = APIRouter(prefix="/v2/resource_instances", route_class=PlatformRoute, default_response_class=Response)

_TAG = "Resource Controller"
_JSON = "application/json"
_ID = ("id",)
_FILTERS = ("guid", "name", "resource_group_id", "resource_id", "resource_plan_id", "type", "sub_type", "state")
CONFIRM_HEADER = "hsmkms-confirm"


@router.get(
    "",
    openapi_extra=described(
        d.platform("List instances", _TAG, ok=200, query=(*_FILTERS, "limit", "start")), Action.INSTANCE_READ
    ),
)
async def list_instances(request: Request) -> Response:
    """List the instances that the caller may see."""
    here = services(request)
    found = [
        w.resource_instance(one, here.base_url)
        for one in await run_in_threadpool(here.instances.list, caller_of(request))
    ]
    for name in _FILTERS:
        wanted = request.query_params.get(name)
        if wanted:
            found = [one for one in found if one.get(name) == wanted]
    page, places = page_of(request, found, size="limit", start="start", default=100)
    following = places.get("next", {}).get("href")
    return answer({"rows_count": len(page), "next_url": following, "resources": list(page)}, _JSON)


@router.post(
    "",
    status_code=201,
    openapi_extra=described(
        d.platform("Create an instance", _TAG, ok=201, body=w.InstanceBody), Action.INSTANCE_CREATE
    ),
)
async def create_instance(request: Request) -> Response:
    """Create an instance; it can be used when this returns."""
    body = body_of(request, w.InstanceBody)
    _require_no_parameters(body.parameters)
    if request.headers.get("entity-lock", "").lower() == "true":
        raise Invalid("Instances have no locks. Leave Entity-Lock out.")
    created = await run_in_threadpool(
        services(request).instances.create,
        caller_of(request),
        body.name,
        body.target.removeprefix("bluemix-"),
        body.resource_group,
        body.resource_plan_id,
    )
    return _answer(request, created, 201)


# A CRN has slashes, which arrive decoded.
@router.get(
    "/{id:path}",
    openapi_extra=described(d.platform("Read an instance", _TAG, ok=200, path=_ID), Action.INSTANCE_READ),
)
async def get_instance(request: Request) -> Response:
    """Read an instance by GUID or CRN."""
    found = await run_in_threadpool(services(request).instances.get, caller_of(request), _guid(request))
    return _answer(request, found)


@router.patch(
    "/{id:path}",
    openapi_extra=described(
        d.platform("Rename an instance", _TAG, ok=200, path=_ID, body=w.InstanceUpdateBody), Action.INSTANCE_UPDATE
    ),
)
async def update_instance(request: Request) -> Response:
    """Change an instance's name."""
    body = body_of(request, w.InstanceUpdateBody)
    _require_no_parameters(body.parameters)
    here, caller = services(request), caller_of(request)
    if body.name is None or body.resource_plan_id is not None:
        raise Invalid("Only the name of an instance can be changed. Send the member name.")
    return _answer(request, await run_in_threadpool(here.instances.rename, caller, _guid(request), body.name))


@router.delete(
    "/{id:path}",
    status_code=204,
    openapi_extra=described(
        d.platform("Delete an instance", _TAG, ok=204, path=_ID, query=("recursive",)), Action.INSTANCE_DELETE
    ),
)
async def delete_instance(request: Request) -> Response:
    """Delete an instance; one with keys only with recursive=true and its GUID in the header Hsmkms-Confirm."""
    await run_in_threadpool(
        partial(
            services(request).instances.delete,
            caller_of(request),
            _guid(request),
            force=request.query_params.get("recursive", "").lower() == "true",
            confirmation=request.headers.get(CONFIRM_HEADER),
        )
    )
    return Response(status_code=204)


def _guid(request: Request) -> str:
    instance_id = instance_id_of(path_id(request), caller_of(request).account)
    if instance_id is None:
        raise NotFound("instance")
    request.state.act.instance_id = instance_id
    return instance_id


def _answer(request: Request, found: Instance, status: int = 200) -> Response:
    request.state.act.instance_id = found.id
    return answer(w.resource_instance(found, services(request).base_url), _JSON, status)


def _require_no_parameters(parameters: dict[str, object] | None) -> None:
    if parameters:
        raise Invalid("Instances take no parameters. Leave `parameters` out and set instance policies instead.")
