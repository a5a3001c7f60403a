"""What the application has to know of its connections: who is at the other end, and that the server will stop."""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from hsmkms.api.requests import CERTIFICATE

LINGER_S: Final = 0.5
"""How long a connection between two requests stays open when the server stops: the next one may be on its way, and a
client cannot know whether what it sent on a connection that is then closed was done."""
STOPPING: Final = "stopping"
"""In the lifespan's state, and so in each request's: an asyncio.Event."""


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 that remembers the client's certificate, as the TLS handshake verified it, and passes on the order to
    stop, so that a request that waits for an event does not hold the server up."""

    _certificate: bytes | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Read the certificate once a connection; a client may have none."""
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        self._certificate = None if tls is None else tls.getpeercert(binary_form=True)
        if self._stopping:
            # It was accepted just before the listening socket was closed.
            self._end_soon()

    def on_message_begin(self) -> None:
        """Put it where the application finds it."""
        super().on_message_begin()
        if self._certificate is not None:
            self.scope["state"][CERTIFICATE] = self._certificate

    def on_headers_complete(self) -> None:
        """A request that came after the order to stop is the last of its connection, and its answer says so."""
        super().on_headers_complete()
        if self._stopping:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """The server answers what is under way and what is on its way already, and takes nothing new."""
        self.app_state[STOPPING].set()
        self._end_soon()

    @property
    def _stopping(self) -> bool:
        stopping: asyncio.Event = self.app_state[STOPPING]
        return stopping.is_set()

    def _end_soon(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle  # uvicorn declares it without the None that it begins with
        if cycle is None or cycle.response_complete:
            self.loop.call_later(LINGER_S, super().shutdown)
        else:
            super().shutdown()
