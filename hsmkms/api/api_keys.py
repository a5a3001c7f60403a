"""API keys, as `IamIdentityV1` calls them."""

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
from hsmkms.api.requests import address_of
from hsmkms.api.service_ids import require_plain, time_of
from hsmkms.domain.access import Action
from hsmkms.domain.identities import ApiKey
from hsmkms.domain.records import Record
from hsmkms.domain.secrets import SecretText
from hsmkms.errors import Invalid

router = APIRouter(prefix="/v1/apikeys", route_class=PlatformRoute, default_response_class=Response)

_TAG = "IAM Identity"
_JSON = "application/json"
_ID = ("id",)


@router.get(
    "",
    openapi_extra=described(
        d.platform(
            "List API keys",
            _TAG,
            ok=200,
            query=("account_id", "iam_id", "scope", "type", "pagesize", "pagetoken"),
        ),
        Action.API_KEY_READ,
    ),
)
async def list_api_keys(request: Request) -> Response:
    """The keys of `iam_id`; with scope=account those of all identities; else the caller's own."""
    caller, query = own_account_of(request), request.query_params
    every = query.get("scope") == "account"
    iam_id = query.get("iam_id") or (None if every else caller.iam_id)
    found = await run_in_threadpool(services(request).api_keys.list, caller, iam_id)
    kind = {"serviceid": "service", "user": "user"}.get(query.get("type", ""))
    found = [one for one in found if kind in (None, w.member_type(one[1].iam_id))]
    page, places = page_of(request, found, size="pagesize", start="pagetoken", default=20, plain=True)
    return answer({**places, "apikeys": [w.api_key(*one) for one in page]}, _JSON)


@router.post(
    "",
    status_code=201,
    openapi_extra=described(
        d.platform("Create an API key, shown once", _TAG, ok=201, body=w.ApiKeyBody), Action.API_KEY_WRITE
    ),
)
async def create_api_key(request: Request) -> Response:
    """Create an API key."""
    caller = caller_of(request)
    body = body_of(request, w.ApiKeyBody)
    if body.account_id not in (None, caller.account):
        raise Invalid("The member account_id must be your own account.")
    require_plain(body)
    made = await run_in_threadpool(
        partial(
            services(request).api_keys.create,
            caller,
            body.iam_id,
            body.name,
            body.description,
            time_of(body.expires_at),
            locked=request.headers.get("entity-lock") == "true",
            disabled=request.headers.get("entity-disable") == "true",
        )
    )
    return tagged(w.api_key(made.record, made.api_key, secret=made.secret.reveal()), made.record, 201)


@router.get(
    "/details",
    openapi_extra=described(d.platform("The key in the header IAM-ApiKey", _TAG, ok=200), Action.API_KEY_READ),
)
async def get_api_key_details(request: Request) -> Response:
    """What is known of an API key whose secret is in the header IAM-ApiKey."""
    secret = request.headers.get("iam-apikey", "")
    if not secret:
        raise Invalid("The header IAM-ApiKey is missing.")
    here, caller = services(request), caller_of(request)
    named = await run_in_threadpool(here.tokens.api_key_of, SecretText(secret), address_of(request.scope))
    return _answer(await run_in_threadpool(here.api_keys.get, caller, named.id))


@router.get(
    "/{id}", openapi_extra=described(d.platform("Read an API key", _TAG, ok=200, path=_ID), Action.API_KEY_READ)
)
async def get_api_key(request: Request) -> Response:
    """Read an API key, never its secret."""
    api_keys = services(request).api_keys
    caller = caller_of(request)
    record, found = await run_in_threadpool(api_keys.get, caller, path_id(request))
    asked = request.query_params.get("include_activity", "").lower() == "true"
    use = await run_in_threadpool(api_keys.last_use, caller, found.id) if asked else None
    return tagged(w.api_key(record, found, use=use), record)


@router.put(
    "/{id}",
    openapi_extra=described(
        d.platform("Change an API key", _TAG, ok=200, path=_ID, body=w.ApiKeyUpdateBody, if_match=True),
        Action.API_KEY_WRITE,
    ),
)
async def update_api_key(request: Request) -> Response:
    """Change name, description or expiry."""
    body = body_of(request, w.ApiKeyUpdateBody)
    require_plain(body)
    found = await run_in_threadpool(
        services(request).api_keys.update,
        caller_of(request),
        path_id(request),
        request.headers.get("if-match"),
        body.name,
        body.description,
        time_of(body.expires_at),
    )
    return _answer(found)


@router.delete(
    "/{id}",
    status_code=204,
    openapi_extra=described(d.platform("Delete an API key", _TAG, ok=204, path=_ID), Action.API_KEY_WRITE),
)
async def delete_api_key(request: Request) -> Response:
    """Delete an API key; tokens made from it are refused."""
    await run_in_threadpool(services(request).api_keys.delete, caller_of(request), path_id(request))
    return Response(status_code=204)


@router.post(
    "/{id}/lock",
    status_code=204,
    openapi_extra=described(d.platform("Lock", _TAG, ok=204, path=_ID), Action.API_KEY_WRITE),
)
@router.delete(
    "/{id}/lock",
    status_code=204,
    openapi_extra=described(d.platform("Unlock", _TAG, ok=204, path=_ID), Action.API_KEY_WRITE),
)
async def lock_api_key(request: Request) -> Response:
    """POST locks, DELETE unlocks."""
    lock = services(request).api_keys.set_locked
    await run_in_threadpool(partial(lock, caller_of(request), path_id(request), locked=request.method == "POST"))
    return Response(status_code=204)


@router.post(
    "/{id}/disable",
    status_code=204,
    openapi_extra=described(d.platform("Disable", _TAG, ok=204, path=_ID), Action.API_KEY_WRITE),
)
@router.delete(
    "/{id}/disable",
    status_code=204,
    openapi_extra=described(d.platform("Enable", _TAG, ok=204, path=_ID), Action.API_KEY_WRITE),
)
async def disable_api_key(request: Request) -> Response:
    """POST disables, DELETE enables."""
    disable = services(request).api_keys.set_disabled
    await run_in_threadpool(partial(disable, caller_of(request), path_id(request), disabled=request.method == "POST"))
    return Response(status_code=204)


def _answer(found: tuple[Record, ApiKey]) -> Response:
    return tagged(w.api_key(*found), found[0])
