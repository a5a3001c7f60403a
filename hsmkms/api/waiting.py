"""The application of a process whose rooms are not open yet: alive, not ready, and closed to all else.

A token may be away or hang for hours when a worker starts. Load balancers and supervisors hear at once how things are,
and callers get 503 with Retry-After instead of a connection that is never accepted.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Final

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from hsmkms.api.protocol import STOPPING, WARM
from hsmkms.api.requests import correlation_id, header_map
from hsmkms.api.warm import WarmPath
from hsmkms.errors import Unavailable

_PATIENCE_S: Final = 10.0
_JSON: Final = "application/json"


class WaitingApp:
    """Passes requests on to `app` as soon as there is one."""

    def __init__(self, start: Callable[[], None], close: Callable[[], None], closed_app: Callable[[], ASGIApp]) -> None:
        """`start` begins to open the rooms, in a thread of its own; `close` is called once when the server stops;
        `closed_app` makes what refuses requests meanwhile, when the first comes."""
        self._start, self._close = start, close
        self._make_closed = closed_app
        self._closed: ASGIApp | None = None
        self._app: ASGIApp | None = None
        self._state: dict[str, object] = {}
        self._settled = threading.Event()

    def settle(self) -> None:
        """The rooms are open, or cannot be opened yet: take connections now."""
        self._settled.set()

    def open(self, app: ASGIApp, warm: WarmPath | None) -> None:
        """The rooms are open. Connections from now on may also take the short way."""
        self._app, self._closed = app, None
        self._state[WARM] = warm
        self.settle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if self._app is not None and scope["type"] != "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["path"] in ("/healthz", "/readyz"):
            await _health(scope)(scope, receive, send)
        else:
            if self._closed is None:
                self._closed = self._make_closed()
            await self._closed(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        # uvicorn shows this very dictionary to each new connection.
        self._state = scope["state"]
        self._state.update({STOPPING: asyncio.Event(), WARM: None})
        self._start()
        # Others take the connections meanwhile; a token that hangs is waited for only so long.
        await asyncio.to_thread(self._settled.wait, _PATIENCE_S)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._close()
        await send({"type": "lifespan.shutdown.complete"})


def _health(scope: Scope) -> Response:
    headers = {"Correlation-Id": correlation_id(header_map(scope["headers"]))}
    if scope["path"] == "/healthz":
        return Response(msgspec.json.encode({"status": "ok"}), 200, headers, _JSON)
    content = {"status": "unavailable", "token": False, "database": False, "audit": False}
    headers["Retry-After"] = str(Unavailable.retry_after_s)
    return Response(msgspec.json.encode(content), 503, headers, _JSON)
