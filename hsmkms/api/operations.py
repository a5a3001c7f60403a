"""Liveness, readiness and version, for load balancers and people."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from hsmkms import __version__
from hsmkms.api import described as d
from hsmkms.api import wire
from hsmkms.api.cold import OpenRoute, answer, services
from hsmkms.errors import Unavailable

router = APIRouter(route_class=OpenRoute, default_response_class=Response)

_JSON = "application/json"


@router.get("/healthz", openapi_extra=d.plain("Is the process alive", "Operations", wire.Health))
async def healthz() -> Response:
    """Alive: this says nothing of token or database, so that an HSM outage restarts nobody."""
    return answer({"status": "ok"}, _JSON)


@router.get(
    "/readyz",
    openapi_extra=d.plain(
        "Can it serve: token, database and audit journal", "Operations", wire.Readiness, statuses=(200, 503)
    ),
)
async def readyz(request: Request) -> Response:
    """Ready to serve."""
    found = await run_in_threadpool(services(request).health.readiness)
    content = {"status": "ok" if found.ready else "unavailable", "token": found.token, "database": found.database}
    content["audit"] = found.audit
    if found.ready:
        return answer(content, _JSON)
    response = answer(content, _JSON, 503)
    response.headers["Retry-After"] = str(Unavailable.retry_after_s)
    return response


@router.get("/version", openapi_extra=d.plain("Name and version", "Operations", wire.Version))
async def version() -> Response:
    """What is running."""
    return answer({"name": "hsmkms", "version": __version__}, _JSON)
