"""The key ring routes."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from hsmkms.api import described as d
from hsmkms.api import wire
from hsmkms.api.cold import KmsRoute, answer, call_of, described, note_total, path_id, services
from hsmkms.domain.access import Action
from hsmkms.domain.query import parse_version_query

router = APIRouter(prefix="/api/v2", route_class=KmsRoute, default_response_class=Response)


@router.get(
    "/key_rings",
    openapi_extra=described(
        d.operation(
            "List key rings",
            ok=200,
            kind=wire.KEY_RING_TYPE,
            answer=wire.KeyRingCollection,
            parameters=tuple(d.RING_LISTING),
            ring=False,
        ),
        Action.KEY_RING_LIST,
        "Key rings could not be retrieved",
    ),
)
async def list_key_rings(request: Request) -> Response:
    """List key rings."""
    call = call_of(request)
    # The same paging grammar as that of versions.
    query = parse_version_query(request.query_params)
    rings = await run_in_threadpool(services(request).key_rings.list, call.caller, call.instance_id)
    note_total(request, len(rings))
    page = rings[query.offset : query.offset + query.limit]
    metadata = {"totalCount": len(rings)} if query.total_count else {}
    resources = [wire.key_ring_resource(ring) for ring in page]
    return answer(wire.collection(wire.KEY_RING_TYPE, resources, **metadata), wire.KEY_RING_TYPE)


@router.post(
    "/key_rings/{key_ring_id}",
    status_code=201,
    openapi_extra=described(
        d.operation("Create a key ring", ok=201, parameters=(d.RING_ID,), ring=False),
        Action.KEY_RING_CREATE,
        "Key ring could not be created",
    ),
)
async def create_key_ring(request: Request) -> Response:
    """Create a key ring: an empty 201, because Go breaks on a body (additions section 1.5)."""
    call = call_of(request)
    ring_id = path_id(request, "key_ring_id")
    await run_in_threadpool(services(request).key_rings.create, call.caller, call.instance_id, ring_id)
    return Response(status_code=201)


@router.delete(
    "/key_rings/{key_ring_id}",
    status_code=204,
    openapi_extra=described(
        d.operation("Delete a key ring without keys", ok=204, parameters=(d.RING_ID, d.FORCE), ring=False),
        Action.KEY_RING_DELETE,
        "Key ring could not be deleted",
    ),
)
async def delete_key_ring(request: Request) -> Response:
    """Delete a key ring."""
    call = call_of(request)
    ring_id = path_id(request, "key_ring_id")
    force = request.query_params.get("force", "").lower() == "true"
    await run_in_threadpool(services(request).key_rings.delete, call.caller, call.instance_id, ring_id, force=force)
    return Response(status_code=204)
