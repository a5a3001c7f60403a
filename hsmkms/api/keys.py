"""The key routes that are not hot: parse, one call, render."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from hsmkms.api import described as d
from hsmkms.api import wire
from hsmkms.api.bodies import parse_time
from hsmkms.api.cold import (
    KmsRoute,
    answer,
    body_of,
    call_of,
    described,
    instance_of,
    key_answer,
    note_total,
    optional_body_of,
    path_id,
    services,
)
from hsmkms.api.imports import brought_material
from hsmkms.api.key_policies import policy_wishes
from hsmkms.api.requests import Envelope
from hsmkms.domain.access import Action
from hsmkms.domain.key_policies import KeyPolicyWish
from hsmkms.domain.new_key import NewKey
from hsmkms.domain.query import KeyQuery, parse_key_query, parse_version_query
from hsmkms.errors import BadBody, CollectionTotalMismatch

router = APIRouter(prefix="/api/v2", route_class=KmsRoute, default_response_class=Response)

_NOT_CREATED = "Key could not be created"
_NOT_LISTED = "Keys could not be retrieved"
_NOT_READ = "Key could not be retrieved"
_NOT_DONE = "Action could not be performed on key"


@router.post(
    "/keys",
    status_code=201,
    openapi_extra=described(
        d.operation(
            "Create a root key or a standard key",
            ok=201,
            kind=wire.KEY_TYPE,
            answer=wire.KeyCollection,
            body=wire.KeyCreateBody,
            prefer=True,
        ),
        Action.KEY_CREATE,
        _NOT_CREATED,
    ),
)
async def create_key(request: Request) -> Response:
    """Create a key."""
    call = call_of(request)
    wish = _new_key(body_of(request, wire.KeyCreateBody))
    return await _created(request, call, wish)


@router.post(
    "/keys_with_policy_overrides",
    status_code=201,
    openapi_extra=described(
        d.operation(
            "Create a key with policies of its own, whatever those of the instance",
            ok=201,
            kind=wire.KEY_TYPE,
            answer=wire.KeyCollection,
            body=wire.KeyWithPoliciesBody,
            prefer=True,
        ),
        Action.KEY_CREATE_WITH_POLICIES,
        _NOT_CREATED,
    ),
)
async def create_key_with_policies(request: Request) -> Response:
    """Create a key with policies."""
    call = call_of(request)
    body = body_of(request, wire.KeyWithPoliciesBody)
    wish = _new_key(body)
    return await _created(request, call, wish, policy_wishes(body.resources[0]))


@router.get(
    "/keys",
    openapi_extra=described(
        d.operation(
            "List keys",
            ok=200,
            kind=wire.KEY_TYPE,
            answer=wire.KeyCollection,
            parameters=tuple(d.KEY_LISTING),
        ),
        Action.KEY_LIST,
        _NOT_LISTED,
    ),
)
async def list_keys(request: Request) -> Response:
    """List keys."""
    call = call_of(request)
    query = parse_key_query(request.query_params)
    total = request.query_params.get("totalCount", "").lower() == "true"
    here, instance = services(request), instance_of(request, call)

    # All of it in a thread: thousands of keys would hold up every other request for a tenth of a second.
    def listed() -> Response:
        page = here.keys.list(call.caller, call.instance_id, call.key_ring_id, query, total=total)
        note_total(request, len(page.keys) if page.total is None else page.total)
        now = here.clock()
        resources = [wire.key_resource(key, instance, here.waits, now) for key in page.keys]
        metadata = _search_metadata(query)
        if total:
            metadata["totalCount"] = page.total
        if page.incomplete:
            metadata["incompleteSearch"] = True
        return answer(wire.collection(wire.KEY_TYPE, resources, **metadata), wire.KEY_TYPE)

    return await run_in_threadpool(listed)


@router.head(
    "/keys",
    openapi_extra=described(
        d.operation("Count keys in the header Key-Total", ok=200, parameters=tuple(d.KEY_FILTERS)),
        Action.KEY_HEAD,
        _NOT_LISTED,
    ),
)
async def count_keys(request: Request) -> Response:
    """Count keys."""
    call = call_of(request)
    query = parse_key_query(request.query_params)
    keys = services(request).keys
    total = await run_in_threadpool(keys.count, call.caller, call.instance_id, call.key_ring_id, query)
    note_total(request, total)
    return Response(headers={"Key-Total": str(total)})


@router.get(
    "/keys/{id}",
    openapi_extra=described(
        d.operation(
            "Read a key, with the payload of a standard key",
            ok=200,
            kind=wire.KEY_TYPE,
            answer=wire.KeyCollection,
            parameters=(d.REFERENCE,),
        ),
        Action.KEY_READ,
        _NOT_READ,
    ),
)
async def get_key(request: Request) -> Response:
    """Read a key."""
    call = call_of(request)
    here = services(request)
    found = await run_in_threadpool(here.keys.read, call.caller, call.instance_id, path_id(request), call.key_ring_id)
    return key_answer(request, found.key, payload=found.payload)


@router.get(
    "/keys/{id}/metadata",
    openapi_extra=described(
        d.operation(
            "Read a key's metadata",
            ok=200,
            kind=wire.KEY_TYPE,
            answer=wire.KeyCollection,
            parameters=(d.REFERENCE,),
        ),
        Action.KEY_READ_METADATA,
        _NOT_READ,
    ),
)
async def get_key_metadata(request: Request) -> Response:
    """Read a key without its payload."""
    call = call_of(request)
    here = services(request)
    key = await run_in_threadpool(
        here.keys.read_metadata, call.caller, call.instance_id, path_id(request), call.key_ring_id
    )
    return key_answer(request, key)


@router.get(
    "/keys/{id}/versions",
    openapi_extra=described(
        d.operation(
            "List a key's versions, newest first",
            ok=200,
            kind=wire.KEY_VERSION_TYPE,
            answer=wire.VersionCollection,
            parameters=(d.REFERENCE, *d.VERSION_LISTING),
        ),
        Action.KEY_LIST_VERSIONS,
        "Key versions could not be retrieved",
    ),
)
async def list_versions(request: Request) -> Response:
    """List versions."""
    call = call_of(request)
    query = parse_version_query(request.query_params)
    versions, total = await run_in_threadpool(
        services(request).keys.list_versions,
        call.caller,
        call.instance_id,
        path_id(request),
        call.key_ring_id,
        query,
    )
    note_total(request, total)
    metadata = {"totalCount": total} if query.total_count else {}
    resources = [wire.version_reference(version) for version in versions]
    return answer(wire.collection(wire.KEY_VERSION_TYPE, resources, **metadata), wire.KEY_VERSION_TYPE)


@router.patch(
    "/keys/{id}",
    openapi_extra=described(
        d.operation(
            "Move a key to another key ring",
            ok=200,
            kind=wire.KEY_TYPE,
            answer=wire.KeyCollection,
            body=wire.KeyPatchBody,
            parameters=(d.REFERENCE,),
        ),
        Action.KEY_PATCH,
        "Key could not be updated",
    ),
)
async def patch_key(request: Request) -> Response:
    """Move a key."""
    call = call_of(request)
    ring_id = (body_of(request, wire.KeyPatchBody)).keyRingID
    here = services(request)
    key = await run_in_threadpool(
        here.keys.move, call.caller, call.instance_id, path_id(request), call.key_ring_id, ring_id
    )
    return key_answer(request, key)


@router.post(
    "/keys/{id}/actions/rotate",
    status_code=204,
    openapi_extra=described(
        d.operation(
            "Rotate a root key",
            ok=204,
            body=wire.RotateBody,
            body_required=False,
            parameters=(d.REFERENCE,),
            prefer=True,
        ),
        Action.KEY_ROTATE,
        _NOT_DONE,
    ),
)
async def rotate_key(request: Request) -> Response:
    """Rotate a key: 204 even with Prefer: return=representation (contract section 1.1)."""
    call = call_of(request)
    body = optional_body_of(request, wire.RotateBody)
    material = None if body is None else brought_material(body)
    rotate = services(request).keys.rotate
    await run_in_threadpool(rotate, call.caller, call.instance_id, path_id(request), call.key_ring_id, material)
    return Response(status_code=204)


async def _created(
    request: Request, call: Envelope, wish: NewKey, policies: Sequence[KeyPolicyWish] | None = None
) -> Response:
    create = services(request).keys.create
    created = await run_in_threadpool(create, call.caller, call.instance_id, call.key_ring_id, wish, policies)
    return key_answer(request, created.key, 201, fresh=True, payload=None if call.minimal else created.payload)


def _new_key(body: wire.KeyCreateBody | wire.KeyWithPoliciesBody) -> NewKey:
    if body.metadata.collectionType != wire.KEY_TYPE:
        raise BadBody(f"The member metadata.collectionType must be {wire.KEY_TYPE}.")
    if len(body.resources) != 1:
        raise BadBody("Only creation of one key per request is supported")
    if body.metadata.collectionTotal != 1:
        raise CollectionTotalMismatch
    resource = body.resources[0]
    return NewKey(
        name=resource.name,
        description=resource.description,
        tags=tuple(resource.tags),
        aliases=tuple(resource.aliases),
        extractable=resource.extractable,
        material=brought_material(resource),
        expires_at=None if resource.expirationDate is None else parse_time("expirationDate", resource.expirationDate),
    )


def _search_metadata(query: KeyQuery) -> dict[str, object]:
    search = query.search
    if search is None:
        return {}
    echo = {"query": search.query, "scopes": list(search.scopes), "not": search.negated, "exact": search.exact}
    return {"searchQuery": echo}
