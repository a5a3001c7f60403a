"""What the FastAPI routes share: the services of one process, guarded handlers, answers with vendor types.

A vendor type on success decides whether IBM's Python tests pass: its core parses `application/json` only, and those
tests want the raw response (additions section 1.3).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute

from hsmkms.api.bodies import COLD_LIMIT, Model, decode_object, parse, read_body
from hsmkms.api.problems import guard
from hsmkms.api.requests import Envelope, correlation_id, envelope, header_map
from hsmkms.clock import Clock
from hsmkms.domain.tenants import Instance
from hsmkms.errors import NoBody, Unauthorized
from hsmkms.iam.bearer import BearerVerifier
from hsmkms.service.crypto import CryptoService
from hsmkms.service.health import HealthService
from hsmkms.service.key_rings import KeyRingService
from hsmkms.service.keys import KeyService
from hsmkms.service.snapshot import Snapshot
from hsmkms.service.tokens import TokenService


@dataclass(frozen=True, slots=True)
class Services:
    """Everything the HTTP room calls."""

    keys: KeyService
    key_rings: KeyRingService
    crypto: CryptoService
    tokens: TokenService
    health: HealthService
    snapshot: Snapshot
    verifier: BearerVerifier
    clock: Clock


class KmsRoute(APIRoute):
    """A route whose refusals and failures become Key Protect's error body."""

    iam = False

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler inside `problems.guard`."""
        handler = super().get_route_handler()
        failed = (self.openapi_extra or {}).get("x-failed", "Action could not be performed")

        async def guarded(request: Request) -> Response:
            answer: Awaitable[Response] = handler(request)
            return await guard(answer, failed, correlation_id(request.headers), iam=self.iam)

        return guarded


class IamRoute(KmsRoute):
    """The same with IAM's error body."""

    iam = True


def services(request: Request) -> Services:
    """The services of this process."""
    found: Services = request.app.state.services
    return found


def call_of(request: Request) -> Envelope:
    """Authenticate and read the headers. Raises Unauthenticated, BearerUnreadable, InvalidInstance."""
    return envelope(header_map(request.scope["headers"]), services(request).verifier)


def instance_of(request: Request, call: Envelope) -> Instance:
    """The instance of a call that the service has authorized. Raises Unauthorized."""
    instance = services(request).snapshot.instance(call.instance_id)
    if instance is None:
        raise Unauthorized
    return instance


async def body_of(request: Request, model: type[Model]) -> Model:
    """The body as a model. Raises NoBody, BadBody."""
    body = decode_object(await read_body(request.receive, request.scope["headers"], COLD_LIMIT))
    if body is None:
        raise NoBody
    return parse(model, body)


async def optional_body_of(request: Request, model: type[Model]) -> Model | None:
    """The body as a model, or None if there is none. Raises BadBody."""
    body = decode_object(await read_body(request.receive, request.scope["headers"], COLD_LIMIT))
    return None if body is None else parse(model, body)


def answer(content: dict[str, Any], kind: str, status: int = 200) -> Response:
    """A JSON answer of a media type."""
    return Response(msgspec.json.encode(content), status, media_type=kind)


def described(operation: dict[str, Any], failed: str) -> dict[str, Any]:
    """An OpenAPI operation with the sentence that its errors begin with."""
    return {**operation, "x-failed": failed}


def path_id(request: Request, name: str = "id") -> str:
    """A path parameter."""
    return str(request.path_params[name])
