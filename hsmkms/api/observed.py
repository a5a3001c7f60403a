"""Around the whole application, when asked for: a span or a log line for each request. Without them nothing is here."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hsmkms.api.hot import ACTIONS
from hsmkms.api.requests import address_of, correlation_id, header_map

_KEYS: Final = "/api/v2/keys/"
_NO_ANSWER: Final = 0

_log = structlog.get_logger(__name__)


class AccessLog:
    """One line a request: who from where asked for what, and how it went. No query, header or body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, noting = time.perf_counter(), _Noting(send)
        try:
            await self._app(scope, receive, noting)
        finally:
            _log.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=noting.status or None,
                ms=round((time.perf_counter() - began) * 1e3, 3),
                address=address_of(scope),
                correlation_id=noting.correlation_id or correlation_id(header_map(scope["headers"])),
            )


class Traced:
    """A span a request, from which the rooms' spans hang."""

    def __init__(self, app: ASGIApp, request: Callable[..., Any]) -> None:
        """`request` is `telemetry.tracing.Tracing.request`."""
        self._app = app
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        noting = _Noting(send)
        with self._request(scope["method"], header_map(scope["headers"])) as span:
            try:
                await self._app(scope, receive, noting)
            finally:
                route = _route_of(scope)
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.route", route)
                if noting.status != _NO_ANSWER:
                    span.set_attribute("http.response.status_code", noting.status)
                if noting.correlation_id is not None:
                    span.set_attribute("hsmkms.correlation_id", noting.correlation_id)


class _Noting:
    """Sends, and remembers what the answer began with."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = _NO_ANSWER
        self.correlation_id: str | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.correlation_id = header_map(message["headers"]).get("correlation-id")
        await self._send(message)


def _route_of(scope: Scope) -> str:
    """The path with the names of its parameters in their places; a fixed word where no route was found."""
    found = getattr(scope.get("route"), "path", None)
    if found is not None:
        return str(found)
    path: str = scope["path"]
    if path.startswith(_KEYS):
        # The calls that stand in front of the router (`hot`).
        _, _, rest = path[len(_KEYS) :].partition("/")
        return f"{_KEYS}{{id}}/{rest}" if rest.removeprefix("actions/") in ACTIONS else f"{_KEYS}{{id}}"
    return "no_such_call"
