"""Registrations (contract section 1.5, additions section 3.9). The router comes before that of keys: `registrations` is
no key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import unquote

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from hsmkms.api import described as d
from hsmkms.api import registration_wire as w
from hsmkms.api import wire
from hsmkms.api.bodies import require_collection
from hsmkms.api.cold import (
    KmsRoute,
    answer,
    body_of,
    by_query,
    call_of,
    described,
    note_total,
    optional_body_of,
    path_id,
    services,
)
from hsmkms.domain.access import Action
from hsmkms.domain.query import flag_of, page_of
from hsmkms.domain.registrations import (
    CRN_QUERY,
    Registration,
    RegistrationQuery,
    RegistrationWish,
    ResourceCrn,
    parse_crn_query,
    parse_resource_crn,
)
from hsmkms.errors import BadBody
from hsmkms.service.registrations import Precondition

router = APIRouter(prefix="/api/v2", route_class=KmsRoute, default_response_class=Response)

_NOT_LISTED: Final = "Registrations could not be retrieved"
_OPAQUE_TAG: Final = re.compile(r'(?:W/)?"([^"]*)"')
_REPLACED: Final = ("description", "preventKeyDeletion", "registrationMetadata", "keyVersionId")


def _operation(summary: str, ok: int, *parameters: dict[str, Any]) -> d.Operation:
    answer = w.RegistrationCollection
    return d.operation(summary, ok=ok, kind=w.REGISTRATION_TYPE, answer=answer, parameters=parameters)


@router.get(
    "/keys/registrations",
    openapi_extra=described(
        _operation("List the registrations of all keys", 200, *d.REGISTRATION_LISTING),
        Action.REGISTRATION_LIST,
        _NOT_LISTED,
    ),
)
async def list_all_registrations(request: Request) -> Response:
    """List the registrations of all keys."""
    call, query = call_of(request), _query(request, all_keys=True)
    found, total = await run_in_threadpool(
        services(request).registrations.list_all, call.caller, call.instance_id, call.key_ring_id, query
    )
    return _listed(request, found, total)


@router.get(
    "/keys/{id}/registrations",
    openapi_extra=described(
        _operation("List the registrations of a key", 200, d.REFERENCE, *d.REGISTRATION_LISTING),
        Action.REGISTRATION_LIST,
        _NOT_LISTED,
    ),
)
async def list_registrations(request: Request) -> Response:
    """List the registrations of a key."""
    call, query = call_of(request), _query(request, all_keys=False)
    found, total = await run_in_threadpool(
        services(request).registrations.list_of_key,
        call.caller,
        call.instance_id,
        path_id(request),
        call.key_ring_id,
        query,
    )
    return _listed(request, found, total)


@router.get(
    "/keys/{id}/registrations/{crn:path}",
    openapi_extra=described(
        _operation("Read a registration", 200, d.REFERENCE, d.CRN), Action.REGISTRATION_LIST, _NOT_LISTED
    ),
)
async def get_registration(request: Request) -> Response:
    """Read a registration, to a service with its ETag."""
    call, crn = call_of(request), _crn(request)
    read = services(request).registrations.read
    found = await run_in_threadpool(read, call.caller, call.instance_id, path_id(request), call.key_ring_id, crn)
    return _one(request, found)


@router.post(
    "/keys/{id}/registrations/{crn:path}",
    status_code=201,
    openapi_extra=described(
        _operation("Register a resource that the key protects", 201, d.REFERENCE, d.CRN)
        | d.json_body(w.RegistrationBody, required=False),
        Action.REGISTRATION_CREATE,
        "Registration could not be created",
    ),
)
async def create_registration(request: Request) -> Response:
    """Register a resource with the key's current version."""
    call, crn = call_of(request), _crn(request)
    body = optional_body_of(request, w.RegistrationBody)
    wish = RegistrationWish() if body is None else _wish(body)
    if wish.version_id is not None:
        raise BadBody("A registration begins with the current version of the key. Leave keyVersionId out.")
    create = services(request).registrations.create
    found = await run_in_threadpool(
        create, call.caller, call.instance_id, path_id(request), call.key_ring_id, crn, wish
    )
    return _one(request, found, 201)


@router.put(
    "/keys/{id}/registrations/{crn:path}",
    openapi_extra=described(
        _operation("Replace a registration", 200, d.REFERENCE, d.CRN) | d.json_body(w.RegistrationBody),
        Action.REGISTRATION_REPLACE,
        "Registration could not be replaced",
    ),
)
async def replace_registration(request: Request) -> Response:
    """Replace a registration: all four members, with a newer key version."""
    call, crn = call_of(request), _crn(request)
    body = body_of(request, w.RegistrationBody)
    wish = _wish(body)
    for name in _REPLACED:
        if getattr(body.resources[0], name) is None:
            raise BadBody(f'The member "{name}" is missing. Use PATCH to change some members.')
    replace = services(request).registrations.replace
    found = await run_in_threadpool(
        replace, call.caller, call.instance_id, path_id(request), call.key_ring_id, crn, wish, _precondition(request)
    )
    return _one(request, found)


@router.patch(
    "/keys/{id}/registrations/{crn:path}",
    openapi_extra=described(
        _operation("Change a registration", 200, d.REFERENCE, d.CRN) | d.json_body(w.RegistrationBody),
        Action.REGISTRATION_UPDATE,
        "Registration could not be updated",
    ),
)
async def update_registration(request: Request) -> Response:
    """Change some members of a registration."""
    call, crn = call_of(request), _crn(request)
    wish = _wish(body_of(request, w.RegistrationBody))
    update = services(request).registrations.update
    found = await run_in_threadpool(
        update, call.caller, call.instance_id, path_id(request), call.key_ring_id, crn, wish, _precondition(request)
    )
    return _one(request, found)


@router.delete(
    "/keys/{id}/registrations/{crn:path}",
    openapi_extra=described(
        d.operation(
            "End a registration",
            ok=200,
            kind=w.REGISTRATION_TYPE,
            answer=w.RegistrationCollection,
            parameters=(d.REFERENCE, d.CRN),
            prefer=True,
            also={204: "Done, without Prefer: return=representation"},
        ),
        Action.REGISTRATION_DELETE,
        "Registration could not be deleted",
    ),
)
async def delete_registration(request: Request) -> Response:
    """End a registration."""
    call, crn = call_of(request), _crn(request)
    delete = services(request).registrations.delete
    was = await run_in_threadpool(delete, call.caller, call.instance_id, path_id(request), call.key_ring_id, crn)
    return _one(request, was) if call.representation else Response(status_code=204)


@router.post(
    "/keys/{id}/registrations",
    include_in_schema=False,
    openapi_extra=by_query({"deactivate": Action.EVENT_ACK}, "Registration could not be deactivated"),
)
async def deactivate_registration(request: Request) -> Response:
    """The older way of a service to confirm that it dropped the DEKs of a deleted key."""
    call = call_of(request)
    body = body_of(request, w.ResourceCrnBody)
    require_collection(body.metadata, w.RESOURCE_CRN_TYPE, len(body.resources), exactly_one=True)
    crn = parse_resource_crn(body.resources[0].resourceCrn)
    here = services(request)
    where = (call.caller, call.instance_id, path_id(request), call.key_ring_id, crn)
    found = await run_in_threadpool(here.registrations.read, *where)
    await run_in_threadpool(here.events.deactivate, *where)
    return _one(request, found)


def _crn(request: Request) -> ResourceCrn:
    """The CRN in the path; Python's client encodes it a second time (additions section 0 row 6)."""
    crn = parse_resource_crn(_decoded(path_id(request, "crn")))
    request.state.act.resource_crn = str(crn)
    return crn


def _decoded(text: str) -> str:
    return unquote(text) if text[:6].lower() == "crn%3a" else text


def _query(request: Request, *, all_keys: bool) -> RegistrationQuery:
    params = request.query_params
    limit, offset = page_of(params)
    text = _decoded(params.get(CRN_QUERY, ""))
    crn = parse_crn_query(text, all_keys=all_keys) if text else None
    return RegistrationQuery(limit, offset, crn, flag_of(params, "preventKeyDeletion"))


def _wish(body: w.RegistrationBody) -> RegistrationWish:
    require_collection(body.metadata, w.REGISTRATION_INPUT_TYPE, len(body.resources), exactly_one=True)
    resource = body.resources[0]
    return RegistrationWish(
        description=resource.description,
        metadata=resource.registrationMetadata,
        prevents_deletion=resource.preventKeyDeletion,
        version_id=resource.keyVersionId,
    )


def _precondition(request: Request) -> Precondition:
    """If-Match: a list of tags, compared weakly (additions section 0 row 3); without it any version will do."""
    text = request.headers.get("if-match", "").strip()
    if text in ("", "*"):
        return lambda _: True
    tags = _OPAQUE_TAG.findall(text)
    return lambda registration: _tag(registration) in tags


def _tag(registration: Registration) -> str:
    return f"{registration.revision}-{registration.created_at.timestamp():.6f}"


def _one(request: Request, registration: Registration, status: int = 200) -> Response:
    return _answer(request, [registration], status)


def _listed(request: Request, found: Sequence[Registration], total: int) -> Response:
    note_total(request, total)
    counted = {"totalCount": total} if flag_of(request.query_params, "totalCount") else {}
    return _answer(request, found, 200, **counted)


def _answer(request: Request, found: Sequence[Registration], status: int, **metadata: object) -> Response:
    """Registrations; a single one has an ETag for its service."""
    to_service = bool(call_of(request).caller.sources)
    resources = [w.registration_resource(registration, to_service=to_service) for registration in found]
    response = answer(wire.collection(w.REGISTRATION_TYPE, resources, **metadata), w.REGISTRATION_TYPE, status)
    if to_service and len(found) == 1:
        response.headers["ETag"] = f'"{_tag(found[0])}"'
    return response
