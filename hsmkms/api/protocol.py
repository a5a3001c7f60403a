"""What the application has to know of its connections: who is at the other end, and that the server will stop."""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hsmkms.api.requests import CERTIFICATE

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

    def on_message_begin(self) -> None:
        """Put it where the application finds it."""
        super().on_message_begin()
        if self._certificate is not None:
            self.scope["state"][CERTIFICATE] = self._certificate

    def shutdown(self) -> None:
        """The server answers what is under way and takes nothing new."""
        super().shutdown()
        self.app_state[STOPPING].set()
