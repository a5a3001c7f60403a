"""Service ids, as `IamIdentityV1` calls them."""

from __future__ import annotations

from datetime import UTC, datetime
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
from hsmkms.domain.identities import Identity, IdentityKind
from hsmkms.domain.records import Record
from hsmkms.errors import Invalid

router = APIRouter(prefix="/v1/serviceids", route_class=PlatformRoute, default_response_class=Response)

_TAG = "IAM Identity"
_JSON = "application/json"
_ID = ("id",)


@router.get("", include_in_schema=False, openapi_extra=described({}, Action.IDENTITY_READ))
@router.get(
    "/",
    openapi_extra=described(
        d.platform("List service ids", _TAG, ok=200, query=("account_id", "name", "pagesize", "pagetoken")),
        Action.IDENTITY_READ,
    ),
)
async def list_service_ids(request: Request) -> Response:
    """List service ids."""
    caller, query = own_account_of(request), request.query_params
    found = await run_in_threadpool(services(request).identities.list, caller, IdentityKind.SERVICE_ID)
    named = [one for one in found if query.get("name") in (None, "", one[1].name)]
    page, places = page_of(request, named, size="pagesize", start="pagetoken", default=20, plain=True)
    return answer({**places, "serviceids": [w.service_id(*one) for one in page]}, _JSON)


@router.post("", status_code=201, include_in_schema=False, openapi_extra=described({}, Action.IDENTITY_WRITE))
@router.post(
    "/",
    status_code=201,
    openapi_extra=described(
        d.platform("Create a service id", _TAG, ok=201, body=w.ServiceIdBody), Action.IDENTITY_WRITE
    ),
)
async def create_service_id(request: Request) -> Response:
    """Create a service id and, if asked, its first API key."""
    caller, here = caller_of(request), services(request)
    body = body_of(request, w.ServiceIdBody)
    if body.account_id != caller.account:
        raise Invalid("The member account_id must be your own account.")
    asked, lock = body.apikey, request.headers.get("entity-lock") == "true"
    if asked is not None:
        require_plain(asked)
        here.api_keys.require_valid(asked.name, asked.description, time_of(asked.expires_at))
    created = await run_in_threadpool(
        partial(
            here.identities.create,
            caller,
            IdentityKind.SERVICE_ID,
            body.name,
            body.description,
            body.unique_instance_crns,
            # A locked one would take no API key.
            locked=lock and asked is None,
        )
    )
    shown = w.service_id(*created)
    if asked is not None:
        expires_at = time_of(asked.expires_at)
        made = await run_in_threadpool(
            here.api_keys.create, caller, created[1].iam_id, asked.name, asked.description, expires_at
        )
        if lock:
            created = await run_in_threadpool(partial(here.identities.set_locked, caller, created[1].id, locked=True))
            shown = w.service_id(*created)
        shown["apikey"] = w.api_key(made.record, made.api_key, secret=made.secret.reveal())
    return tagged(shown, created[0], 201)


@router.get(
    "/{id}",
    openapi_extra=described(d.platform("Read a service id", _TAG, ok=200, path=_ID), Action.IDENTITY_READ),
)
async def get_service_id(request: Request) -> Response:
    """Read a service id."""
    found = await run_in_threadpool(services(request).identities.get, caller_of(request), path_id(request))
    return _answer(found)


@router.put(
    "/{id}",
    openapi_extra=described(
        d.platform("Change a service id", _TAG, ok=200, path=_ID, body=w.ServiceIdUpdateBody, if_match=True),
        Action.IDENTITY_WRITE,
    ),
)
async def update_service_id(request: Request) -> Response:
    """Change a service id."""
    body = body_of(request, w.ServiceIdUpdateBody)
    found = await run_in_threadpool(
        services(request).identities.update,
        caller_of(request),
        path_id(request),
        request.headers.get("if-match"),
        body.name,
        body.description,
        body.unique_instance_crns,
    )
    return _answer(found)


@router.delete(
    "/{id}",
    status_code=204,
    openapi_extra=described(d.platform("Delete a service id", _TAG, ok=204, path=_ID), Action.IDENTITY_WRITE),
)
async def delete_service_id(request: Request) -> Response:
    """Delete a service id with its API keys and rights."""
    await run_in_threadpool(services(request).identities.delete, caller_of(request), path_id(request))
    return Response(status_code=204)


@router.post(
    "/{id}/lock",
    status_code=204,
    openapi_extra=described(d.platform("Lock a service id", _TAG, ok=204, path=_ID), Action.IDENTITY_WRITE),
)
@router.delete(
    "/{id}/lock",
    status_code=204,
    openapi_extra=described(d.platform("Unlock a service id", _TAG, ok=204, path=_ID), Action.IDENTITY_WRITE),
)
async def lock_service_id(request: Request) -> Response:
    """POST locks, DELETE unlocks."""
    lock = services(request).identities.set_locked
    await run_in_threadpool(partial(lock, caller_of(request), path_id(request), locked=request.method == "POST"))
    return Response(status_code=204)


def require_plain(asked: w.ApiKeyInsideServiceId | w.ApiKeyBody | w.ApiKeyUpdateBody) -> None:
    """Refuse what this service does not do with API keys, rather than seem to. Raises Invalid."""
    if getattr(asked, "apikey", None) is not None or getattr(asked, "store_value", None):
        raise Invalid("Leave apikey and store_value out: secrets are made in the HSM, shown once and never kept.")
    if asked.action_when_leaked not in (None, "none") or getattr(asked, "support_sessions", None):
        raise Invalid("Leave action_when_leaked and support_sessions out: nobody looks for leaked keys here.")


def time_of(text: str | None) -> datetime | None:
    """A moment that a member names. Raises Invalid."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Invalid("The member expires_at must be an RFC 3339 time.") from error


def _answer(found: tuple[Record, Identity]) -> Response:
    return tagged(w.service_id(*found), found[0])
