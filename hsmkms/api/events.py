"""Events for the services that registered a resource: read with a cursor, by long poll, and acknowledged.

Reading is ours (docs/events.md); acknowledging is additions section 3.10.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from hsmkms.api import described as d
from hsmkms.api import registration_wire as w
from hsmkms.api import wire
from hsmkms.api.bodies import parse_time, require_collection
from hsmkms.api.cold import KmsRoute, answer, body_of, call_of, described, enter, instance_of, path_id, services
from hsmkms.api.protocol import STOPPING
from hsmkms.domain.access import Action
from hsmkms.domain.events import Acknowledgement, AdopterKeyState
from hsmkms.domain.ids import canonical_uuid
from hsmkms.domain.query import integer_of
from hsmkms.errors import InvalidField
from hsmkms.service.events import EventPage

router = APIRouter(prefix="/api/v2", route_class=KmsRoute, default_response_class=Response)

MAX_WAIT_S: Final = 60
LOOK_S: Final = 1.0
"""How often a waiting request looks whether its client is still there and still may wait."""
DEFAULT_EVENTS: Final = 100
MAX_EVENTS: Final = 1_000
_MAX_SEQUENCE: Final = 2**53


@router.get(
    "/events",
    openapi_extra=described(
        d.operation(
            "Events of the keys that protect a service's resources, in order",
            ok=200,
            kind=w.EVENT_TYPE,
            answer=w.EventCollection,
            parameters=tuple(d.EVENT_LISTING),
            ring=False,
        ),
        Action.EVENT_LIST,
        "Events could not be retrieved",
    ),
)
async def list_events(request: Request) -> Response:
    """Events behind the cursor `after`; if there are none, wait for some."""
    params = request.query_params
    after = integer_of(params, "after", _MAX_SEQUENCE)
    limit = integer_of(params, "limit", MAX_EVENTS) or DEFAULT_EVENTS
    wait_s = integer_of(params, "wait", MAX_WAIT_S)
    page = await (_waited(request, after, limit, wait_s) if wait_s else _page(request, after, limit))
    instance, now = instance_of(request, call_of(request)), services(request).clock()
    resources = [w.event_resource(event, instance, now) for event in page.events]
    return answer(wire.collection(w.EVENT_TYPE, resources, cursor=page.cursor), w.EVENT_TYPE)


@router.get(
    "/keys/{id}/events",
    openapi_extra=described(
        d.operation(
            "The newest events of a key, and how the services took them",
            ok=200,
            kind=w.EVENT_TYPE,
            answer=w.EventCollection,
            parameters=(d.REFERENCE, d.EVENT_LIMIT),
        ),
        Action.REGISTRATION_LIST,
        "Events could not be retrieved",
    ),
)
async def list_key_events(request: Request) -> Response:
    """The newest events of a key, newest first."""
    call, here = call_of(request), services(request)
    limit = integer_of(request.query_params, "limit", MAX_EVENTS) or DEFAULT_EVENTS
    events = await run_in_threadpool(
        here.events.of_key, call.caller, call.instance_id, path_id(request), call.key_ring_id, limit
    )
    instance, now = instance_of(request, call), here.clock()
    resources = [w.event_resource(event, instance, now) for event in events]
    return answer(wire.collection(w.EVENT_TYPE, resources), w.EVENT_TYPE)


@router.post(
    "/event_ack",
    status_code=204,
    openapi_extra=described(
        d.operation("Acknowledge an event", ok=204, body=w.AcknowledgementBody, ring=False),
        Action.EVENT_ACK,
        "Event could not be acknowledged",
    ),
)
async def acknowledge_event(request: Request) -> Response:
    """Say what a service did about an event."""
    call = call_of(request)
    body = body_of(request, w.AcknowledgementBody)
    require_collection(body.metadata, w.EVENT_ACKNOWLEDGE_TYPE, len(body.resources), exactly_one=True)
    acknowledgement = _acknowledgement(body.resources[0])
    await run_in_threadpool(services(request).events.acknowledge, call.caller, call.instance_id, acknowledgement)
    return Response(status_code=204)


async def _page(request: Request, after: int, limit: int) -> EventPage:
    call = call_of(request)
    return await run_in_threadpool(services(request).events.read, call.caller, call.instance_id, after, limit)


async def _waited(request: Request, after: int, limit: int, wait_s: int) -> EventPage:
    """The first page that is not empty, or an empty one when the time, the caller's token or the server ends."""
    call, here, loop = call_of(request), services(request), asyncio.get_running_loop()
    rung, stopping = asyncio.Event(), request.scope["state"][STOPPING]
    life_s = (call.caller.expires_at - here.clock()).total_seconds()
    until = loop.time() + max(0.0, min(wait_s, life_s - LOOK_S))

    def wake() -> None:
        loop.call_soon_threadsafe(rung.set)

    with here.bell.heard(call.instance_id, call.caller.iam_id, wake):
        while True:
            rung.clear()
            page = await _page(request, after, limit)
            if page.events or loop.time() >= until or stopping.is_set():
                return page
            after = page.cursor
            while not (rung.is_set() or stopping.is_set()) and (left_s := until - loop.time()) > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(rung.wait(), min(LOOK_S, left_s))
                if await request.is_disconnected():
                    raise ClientDisconnect
                # A right that ended meanwhile ends the waiting with a refusal.
                await enter(request)


def _acknowledgement(resource: w.AcknowledgementResource) -> Acknowledgement:
    event_id = canonical_uuid(resource.eventId)
    if event_id is None:
        raise InvalidField("eventId", "The field `eventId` must be the id of an event.")
    try:
        state = AdopterKeyState(resource.adopterKeyState)
    except ValueError as error:
        known = ", ".join(state.value for state in AdopterKeyState)
        raise InvalidField("adopterKeyState", f"The field `adopterKeyState` is one of {known}.") from error
    return Acknowledgement(
        event_id=event_id,
        adopter_key_state=state,
        done_at=parse_time("timestamp", resource.timestamp),
        version_id=resource.keyStateData.rewrappedKeyVersion if resource.keyStateData else None,
        delete_registration=bool(resource.deleteRegistration),
    )
