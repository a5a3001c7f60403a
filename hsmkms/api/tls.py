"""Mutual TLS: the client's certificate, as the handshake verified it, in each request's ASGI scope."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hsmkms.api.requests import CERTIFICATE


class CertificateProtocol(HttpToolsProtocol):
    """HTTP/1.1 that remembers who is at the other end of the connection."""

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
