"""Wrap, unwrap and rewrap, one or many, as a plain ASGI callable in front of the FastAPI app.

Dependency injection and model validation cost more than half of the throughput of this job; what is left here is parse,
one call, render. Both spellings are served: `/keys/{id}/actions/{action}` and the older `/keys/{id}?action=`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from hsmkms.api import wire
from hsmkms.api.bodies import BULK_LIMIT, HOT_LIMIT, decode_object, parse, read_body
from hsmkms.api.bulk import BulkActions
from hsmkms.api.problems import guard, kms_problem
from hsmkms.api.requests import (
    Envelope,
    Gate,
    address_of,
    authenticate,
    correlation_id,
    credential_of,
    envelope,
    header_map,
)
from hsmkms.correlation import adopt
from hsmkms.domain.access import Action
from hsmkms.errors import NoBody
from hsmkms.service.acts import Act
from hsmkms.service.bulk import BulkService
from hsmkms.service.crypto import CryptoService, Unwrapped, Wrapped
from hsmkms.service.trail import Trail
from hsmkms.telemetry import metrics

_ENTERED_FOR_S: Final = 0.1
PREFIX: Final = "/api/v2/keys/"
ACTIONS: Final = {
    "wrap": Action.KEY_WRAP,
    "unwrap": Action.KEY_UNWRAP,
    "rewrap": Action.KEY_REWRAP,
    "bulk_wrap": Action.KEY_WRAP,
    "bulk_unwrap": Action.KEY_UNWRAP,
}
_LIMITS: Final = {"bulk_wrap": BULK_LIMIT, "bulk_unwrap": BULK_LIMIT}
PROBLEMS: Final = {
    action: partial(kms_problem, failed=f"{action.capitalize().replace('_', ' ')} with key could not be performed")
    for action in ACTIONS
}


class _Wrap(msgspec.Struct, forbid_unknown_fields=True):
    plaintext: str | None = None
    aad: list[str] | None = None


class _Unwrap(msgspec.Struct, forbid_unknown_fields=True):
    ciphertext: str
    aad: list[str] | None = None


decode_wrap: Final = msgspec.json.Decoder(_Wrap).decode
decode_unwrap: Final = msgspec.json.Decoder(_Unwrap).decode
encode: Final = msgspec.json.Encoder().encode


class HotPath:
    """Serves the crypto actions and hands everything else to `app`."""

    def __init__(self, app: ASGIApp, crypto: CryptoService, gate: Gate, trail: Trail) -> None:
        self._app = app
        self._crypto = crypto
        self._gate = gate
        self._trail = trail
        bulk = BulkActions(BulkService(crypto), gate)
        self._actions: dict[str, Callable[[Envelope, str, bytes, Act], Awaitable[dict[str, Any]]]] = {
            "wrap": self._wrap,
            "unwrap": self._unwrap,
            "rewrap": self._rewrap,
            "bulk_wrap": bulk.wrap,
            "bulk_unwrap": bulk.unwrap,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3."""
        found = _match(scope) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        reference, action = found
        began = time.perf_counter()
        headers = header_map(scope["headers"])
        problem, correlation = PROBLEMS[action], correlation_id(headers)
        adopt(correlation)
        act = Act(ACTIONS[action].value, correlation, scope["path"], address_of(scope), reference=reference)
        try:
            response = await guard(self._answer(act, reference, action, headers, scope, receive), problem, correlation)
        except ClientDisconnect:
            metrics.answered(act.action, metrics.CUT_OFF, began)
            return
        response = await guard(self._recorded(act, response), problem, correlation)
        metrics.answered(act.action, response.status_code, began)
        await response(scope, receive, send)

    async def _recorded(self, act: Act, response: Response) -> Response:
        await self._trail.end(act, response.status_code)
        return response

    async def _answer(
        self, act: Act, reference: str, action: str, headers: dict[str, str], scope: Scope, receive: Receive
    ) -> Response:
        if scope["method"] != "POST":
            raise HTTPException(405, headers={"Allow": "POST"})
        call = await self._enter(act, action, headers, scope)
        entered_at = time.monotonic()
        body = await read_body(receive, scope["headers"], _LIMITS.get(action, HOT_LIMIT))
        if time.monotonic() - entered_at > _ENTERED_FOR_S:
            # The body took its time; a right that ended meanwhile must not count.
            call = await self._enter(act, action, headers, scope, again=True)
        answer = await self._actions[action](call, reference, body, act)
        return Response(encode(answer), 200, media_type=wire.KEY_ACTION_TYPE)

    async def _enter(
        self, act: Act, action: str, headers: dict[str, str], scope: Scope, *, again: bool = False
    ) -> Envelope:
        act.caller, act.credential = await authenticate(self._gate, headers, scope), credential_of(headers)
        call = envelope(headers, act.caller)
        act.instance_id, act.key_ring_id = call.instance_id, call.key_ring_id
        self._gate.admit(call.caller, ACTIONS[action], call.instance_id, act.address, again=again)
        return call

    async def _wrap(self, call: Envelope, reference: str, body: bytes, act: Act) -> dict[str, Any]:
        request = _parse_wrap(body)
        plaintext = None if request.plaintext is None else wire.plaintext_of(request.plaintext)
        found = await self._crypto.wrap(
            call.caller, call.instance_id, reference, call.key_ring_id, plaintext, request.aad or ()
        )
        return wrapped(found, act)

    async def _unwrap(self, call: Envelope, reference: str, body: bytes, act: Act) -> dict[str, Any]:
        request = _parse_unwrap(body)
        found = await self._crypto.unwrap(
            call.caller, call.instance_id, reference, call.key_ring_id, request.ciphertext, request.aad or ()
        )
        return unwrapped(found, act)

    async def _rewrap(self, call: Envelope, reference: str, body: bytes, act: Act) -> dict[str, Any]:
        request = _parse_unwrap(body)
        rewrapped = await self._crypto.rewrap(
            call.caller, call.instance_id, reference, call.key_ring_id, request.ciphertext, request.aad or ()
        )
        act.key, act.version_id = rewrapped.key, rewrapped.version.id
        act.rewrapped_version_id = rewrapped.rewrapped.id
        return {
            "ciphertext": rewrapped.ciphertext,
            "keyVersion": {"id": rewrapped.version.id},
            "rewrappedKeyVersion": {"id": rewrapped.rewrapped.id},
        }


def wrapped(found: Wrapped, act: Act) -> dict[str, Any]:
    """The answer to wrap; also completes the act."""
    act.key, act.version_id = found.key, found.version.id
    answer: dict[str, Any] = {"ciphertext": found.ciphertext, "keyVersion": {"id": found.version.id}}
    if found.plaintext is not None:
        answer["plaintext"] = wire.base64_text(found.plaintext)
    return answer


def unwrapped(found: Unwrapped, act: Act) -> dict[str, Any]:
    """The answer to unwrap; also completes the act."""
    act.key, act.version_id = found.key, found.version.id
    answer: dict[str, Any] = {"plaintext": wire.base64_text(found.plaintext), "keyVersion": {"id": found.version.id}}
    if found.rewrapped is not None:
        answer["ciphertext"] = found.ciphertext
        act.rewrapped_version_id = found.rewrapped.id
        answer["rewrappedKeyVersion"] = {"id": found.rewrapped.id}
    return answer


def _match(scope: Scope) -> tuple[str, str] | None:
    """Key reference and action, or None if this is not ours."""
    path: str = scope["path"]
    if not path.startswith(PREFIX):
        return None
    reference, _, rest = path[len(PREFIX) :].partition("/")
    if not reference:
        return None
    if not rest and scope["method"] == "POST":
        actions = parse_qs(scope["query_string"].decode("latin-1")).get("action", [])
        return (reference, actions[0]) if len(actions) == 1 and actions[0] in ACTIONS else None
    segment, _, action = rest.partition("/")
    return (reference, action) if segment == "actions" and action in ACTIONS else None


def _parse_wrap(body: bytes) -> _Wrap:
    try:
        return decode_wrap(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        # Empty, `null`, another case, or wrong: the patient way tells which.
        value = decode_object(body)
    if value is None:
        return _Wrap()
    request = parse(wire.WrapBody, value)
    return _Wrap(request.plaintext, request.aad)


def _parse_unwrap(body: bytes) -> _Unwrap:
    try:
        return decode_unwrap(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        value = decode_object(body)
    if value is None:
        raise NoBody
    request = parse(wire.UnwrapBody, value)
    return _Unwrap(request.ciphertext, request.aad)
