"""The ASGI application of one worker process."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from hsmkms import __version__
from hsmkms.api import (
    api_keys,
    events,
    groups,
    identity,
    imports,
    instance_policies,
    instances,
    key_policies,
    key_rings,
    keys,
    lifecycle,
    operations,
    policies,
    registrations,
    service_ids,
)
from hsmkms.api.cold import services, unknown_action
from hsmkms.api.described import complete
from hsmkms.api.hot import HotPath
from hsmkms.api.problems import Problem, guard, kms_problem, platform_problem, status_of
from hsmkms.api.requests import address_of, correlation_id
from hsmkms.api.services import Services
from hsmkms.service.acts import Act
from hsmkms.telemetry import metrics


def create_app(rooms: Services) -> ASGIApp:
    """The application over `rooms`. Its lifespan is that of `waiting.WaitingApp`."""
    app = FastAPI(
        title="hsmkms",
        version=__version__,
        description="Key management in front of your own HSM; speaks the IBM Cloud Key Protect API.",
        redirect_slashes=False,
    )
    app.state.services = rooms
    for part in (
        # Before the keys, as `registrations` is the id of none.
        registrations,
        keys,
        events,
        lifecycle,
        key_policies,
        instance_policies,
        imports,
        key_rings,
        identity,
        service_ids,
        api_keys,
        groups,
        policies,
        instances,
        operations,
    ):
        app.include_router(part.router)
    app.add_exception_handler(HTTPException, _no_such_call)
    _describe(app)
    return HotPath(app, rooms.crypto, rooms.gate, rooms.trail)


async def _no_such_call(request: Request, error: Exception) -> Response:
    """404 and 405 of the router, in the shape of every other error, and recorded like every other refusal."""
    metrics.answered("no_such_call", status_of(error), perf_counter())
    current, path = correlation_id(request.headers), request.scope["path"]
    problem: Problem = platform_problem if path.startswith(("/v1/", "/v2/")) else _unknown_call
    refused, action = problem(error, current), unknown_action(path)
    if action is None:
        return refused
    act = Act(action, current, path, address_of(request.scope))

    async def recorded() -> Response:
        await services(request).trail.end(act, refused.status_code)
        return refused

    return await guard(recorded(), problem, current)


def _unknown_call(error: Exception, correlation_id: str) -> Response:
    return kms_problem(error, correlation_id, "Call could not be performed")


def _describe(app: FastAPI) -> None:
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = complete(generate())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI documents this assignment as the way to extend it.
