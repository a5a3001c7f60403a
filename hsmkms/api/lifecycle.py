"""The turns of a key's life, and its aliases (contract sections 1.1, 1.5 and 3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from hsmkms.api import described as d
from hsmkms.api import wire
from hsmkms.api.cold import KmsRoute, answer, by_query, call_of, described, key_answer, path_id, services
from hsmkms.api.keys import rotate_key
from hsmkms.domain.access import Action, Caller
from hsmkms.domain.keys import Key
from hsmkms.service.lifecycle import LifecycleService

router = APIRouter(prefix="/api/v2", route_class=KmsRoute, default_response_class=Response)

_NOT_DONE: Final = "Action could not be performed on key"
_NOT_DELETED: Final = "Key could not be deleted"

Turn = Callable[[LifecycleService], Callable[[Caller, str, str, str | None], Key]]


async def _turn(request: Request, turn: Turn) -> Key:
    call = call_of(request)
    act = turn(services(request).lifecycle)
    return await run_in_threadpool(act, call.caller, call.instance_id, path_id(request), call.key_ring_id)


def _action(summary: str, action: Action) -> dict[str, Any]:
    return described(d.operation(summary, ok=204, parameters=(d.REFERENCE,)), action, _NOT_DONE)


def _giving_key(summary: str, action: Action, failed: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    operation = d.operation(
        summary,
        ok=200,
        kind=wire.KEY_TYPE,
        answer=wire.KeyCollection,
        parameters=(d.REFERENCE, *parameters),
        prefer=True,
        also={204: "Done, without Prefer: return=representation"},
    )
    return described(operation, action, failed)


@router.post(
    "/keys/{id}/actions/disable", status_code=204, openapi_extra=_action("Suspend a root key", Action.KEY_DISABLE)
)
async def disable_key(request: Request) -> Response:
    """Suspend a root key."""
    await _turn(request, lambda lifecycle: lifecycle.disable)
    return Response(status_code=204)


@router.post(
    "/keys/{id}/actions/enable",
    status_code=204,
    openapi_extra=_action("Make a suspended root key active", Action.KEY_ENABLE),
)
async def enable_key(request: Request) -> Response:
    """Make a suspended root key active."""
    await _turn(request, lambda lifecycle: lifecycle.enable)
    return Response(status_code=204)


@router.post(
    "/keys/{id}/actions/setKeyForDeletion",
    status_code=204,
    openapi_extra=_action("Give the first of two words for a deletion", Action.KEY_SET_FOR_DELETION),
)
async def set_key_for_deletion(request: Request) -> Response:
    """Give the first of two words."""
    await _turn(request, lambda lifecycle: lifecycle.set_for_deletion)
    return Response(status_code=204)


@router.post(
    "/keys/{id}/actions/unsetKeyForDeletion",
    status_code=204,
    openapi_extra=_action("Take the first word back", Action.KEY_UNSET_FOR_DELETION),
)
async def unset_key_for_deletion(request: Request) -> Response:
    """Take the first word back."""
    await _turn(request, lambda lifecycle: lifecycle.unset_for_deletion)
    return Response(status_code=204)


@router.post(
    "/keys/{id}/actions/sync",
    status_code=204,
    openapi_extra=_action("Tell the services of a root key again how it is", Action.KEY_SYNC),
)
async def sync_key(request: Request) -> Response:
    """Tell the services of a root key again how it is."""
    await _turn(request, lambda lifecycle: lifecycle.sync)
    return Response(status_code=204)


@router.delete("/keys/{id}", openapi_extra=_giving_key("Delete a key", Action.KEY_DELETE, _NOT_DELETED, d.DELETE_FORCE))
async def delete_key(request: Request) -> Response:
    """Delete a key; with `force` also one that protects resources."""
    force = request.query_params.get("force", "").lower() == "true"
    key = await _turn(request, lambda lifecycle: partial(lifecycle.delete, force=force))
    return key_answer(request, key) if call_of(request).representation else Response(status_code=204)


@router.delete(
    "/keys/{id}/purge",
    openapi_extra=_giving_key("Destroy a deleted key and its material", Action.KEY_PURGE, "Key could not be purged"),
)
async def purge_key(request: Request) -> Response:
    """Destroy a deleted key and its material in the token."""
    key = await _turn(request, lambda lifecycle: lifecycle.purge)
    return key_answer(request, key) if call_of(request).representation else Response(status_code=204)


@router.post(
    "/keys/{id}/restore",
    status_code=201,
    openapi_extra=described(
        d.operation(
            "Bring a deleted key back",
            ok=201,
            kind=wire.KEY_TYPE,
            answer=wire.KeyCollection,
            parameters=(d.REFERENCE,),
            prefer=True,
        ),
        Action.KEY_RESTORE,
        "Key could not be restored",
    ),
)
async def restore_key(request: Request) -> Response:
    """Bring a deleted key back: 201 with the key, which Go reads without a look (additions section 10.3)."""
    return key_answer(request, await _turn(request, lambda lifecycle: lifecycle.restore), 201)


@router.post(
    "/keys/{id}/aliases/{alias}",
    status_code=201,
    openapi_extra=described(
        d.operation(
            "Give a key another name",
            ok=201,
            kind=wire.ALIAS_TYPE,
            answer=wire.AliasCollection,
            parameters=(d.REFERENCE, d.ALIAS),
        ),
        Action.ALIAS_CREATE,
        "Key alias could not be created",
    ),
)
async def create_alias(request: Request) -> Response:
    """Give a key another name."""
    call, alias = call_of(request), path_id(request, "alias")
    create = services(request).aliases.create
    key, created_at = await run_in_threadpool(
        create, call.caller, call.instance_id, path_id(request), call.key_ring_id, alias
    )
    resource = wire.alias_resource(key, alias, created_at, call.caller.iam_id)
    return answer(wire.collection(wire.ALIAS_TYPE, [resource]), wire.ALIAS_TYPE, 201)


@router.delete(
    "/keys/{id}/aliases/{alias}",
    status_code=204,
    openapi_extra=described(
        d.operation("Take a name from a key", ok=204, parameters=(d.REFERENCE, d.ALIAS)),
        Action.ALIAS_DELETE,
        "Key alias could not be deleted",
    ),
)
async def delete_alias(request: Request) -> Response:
    """Take a name from a key."""
    call, alias = call_of(request), path_id(request, "alias")
    delete = services(request).aliases.delete
    await run_in_threadpool(delete, call.caller, call.instance_id, path_id(request), call.key_ring_id, alias)
    return Response(status_code=204)


_BY_QUERY: Final = {
    "rotate": (Action.KEY_ROTATE, rotate_key),
    "disable": (Action.KEY_DISABLE, disable_key),
    "enable": (Action.KEY_ENABLE, enable_key),
    "restore": (Action.KEY_RESTORE, restore_key),
    "setKeyForDeletion": (Action.KEY_SET_FOR_DELETION, set_key_for_deletion),
    "unsetKeyForDeletion": (Action.KEY_UNSET_FOR_DELETION, unset_key_for_deletion),
}


@router.post(
    "/keys/{id}",
    include_in_schema=False,
    openapi_extra=by_query({name: action for name, (action, _) in _BY_QUERY.items()}, _NOT_DONE),
)
async def legacy_action(request: Request) -> Response:
    """The older spelling of an action; the crypto actions among them never get here (see `hot`)."""
    _, handler = _BY_QUERY[request.query_params["action"]]
    return await handler(request)
