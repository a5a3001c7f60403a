"""What the application has to know of its connections: who is at the other end, and that the server will stop; and the
short way of requests that come whole (`warm`)."""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from hsmkms.api.exchanges import Exchange
from hsmkms.api.openings import Opening
from hsmkms.api.requests import CERTIFICATE
from hsmkms.api.warm import WarmPath

LINGER_S: Final = 0.5
"""How long a connection between two requests stays open when the server stops: the next one may be on its way, and a
client cannot know whether what it sent on a connection that is then closed was done."""
STOPPING: Final = "stopping"
"""In the lifespan's state, and so in each request's: an asyncio.Event."""
WARM: Final = "warm"
"""There too: the WarmPath, or None."""


class _UnderWay:
    """The warm request of a connection, with what uvicorn's protocol asks of the one that is under way. There is one at
    a time, so they share this."""

    __slots__ = ("disconnected", "keep_alive", "message_event", "response_complete")

    def __init__(self) -> None:
        self.message_event = asyncio.Event()
        self.keep_alive = True
        self.response_complete = True
        self.disconnected = False


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 that remembers the client's certificate, as the TLS handshake verified it, and passes on the order to
    stop, so that a request that waits for an event does not hold the server up.

    A POST whose last byte came with its first is offered to the WarmPath before anything is made ready for the
    application; what that does not take, and all else, goes uvicorn's way.
    """

    _certificate: bytes | None = None
    _chunks: list[bytes] | None = None
    _in_message = _in_body = False
    _begun = 0
    _opening: Opening | None = None
    _idle_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Read the certificate once a connection; a client may have none."""
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        self._certificate = None if tls is None else tls.getpeercert(binary_form=True)
        self._address = self.client[0] if self.client else ""
        self._warm: WarmPath | None = self.app_state[WARM]
        self._stop: asyncio.Event = self.app_state[STOPPING]
        self._under_way = _UnderWay()

        if self._stopping:
            # It was accepted just before the listening socket was closed.
            self._end_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        """Also stop the clock."""
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()

    def data_received(self, data: bytes) -> None:
        """Requests, or parts of them."""
        warm = None if self._in_message else self._warm
        if warm is not None and self._may_be_warm():
            exchange = warm.again(data, self._address, self._certificate)
            if exchange is not None:
                self._idle_since = None
                self._do(warm, exchange, keep_alive=True)
                return
        self._begun, self._opening = 0, None
        super().data_received(data)
        if self._chunks is not None and not self.transport.is_closing():
            # The rest comes later, and the application may have something to say before.
            self._go_patiently()
        elif warm is not None and self._opening is not None and self._begun == 1 and not self._in_message:
            warm.remember(data, self._certificate, self._opening)

    def on_message_begin(self) -> None:
        """The scope is made once it is known to be needed."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._in_message, self._in_body = True, False
        self._begun += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; what comes behind the body is none and must not count as one (RFC 9110 section 6.5.1)."""
        if self._in_body:
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Wait for the body, if it may be a warm request."""
        self._in_body = True
        if (
            self._warm is not None
            and self._may_be_warm()
            and not self.expect_100_continue
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and not self.parser.should_upgrade()
        ):
            self._chunks = []
        else:
            self._start_scope()
            super().on_headers_complete()
            if self._stopping:
                # It was on its way already, and is the last of its connection; the answer says so.
                self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if self._chunks is None:
            super().on_body(body)
        else:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._in_message = False
        if self._warm is not None and self._chunks is not None:
            found = self._warm.prepare(self.url, self.headers, b"".join(self._chunks), self._address, self._certificate)
            if found is not None:
                self._chunks = None
                exchange, opening = found
                keep_alive = self.parser.should_keep_alive()
                self._opening = opening if keep_alive else None
                self._do(self._warm, exchange, keep_alive=keep_alive)
                return
            self._go_patiently()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """As uvicorn's, but for the keep-alive timer: one that runs is left to run, instead of a new one for each."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_again_after(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which nothing has come for so long."""
        self.timeout_keep_alive_task = None
        if self._idle_since is None:
            return
        remains_s = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if remains_s > 0:
            self._look_again_after(remains_s)
        else:
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """The server answers what is under way and what is on its way already, and takes nothing new."""
        self._stop.set()
        self._end_soon()

    @property
    def _stopping(self) -> bool:
        return self._stop.is_set()

    def _end_soon(self) -> None:
        if self._is_free():
            self.loop.call_later(LINGER_S, super().shutdown)
        else:
            super().shutdown()

    def _may_be_warm(self) -> bool:
        return self._is_free() and not self._stop.is_set() and not self.flow.write_paused

    def _is_free(self) -> bool:
        """Whether no earlier request of this connection is under way."""
        current: _UnderWay | RequestResponseCycle | None = self.cycle
        return current is None or current.response_complete

    def _look_again_after(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None

    def _start_scope(self) -> None:
        """What uvicorn does at the beginning of a message, and the certificate where the application finds it."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers
        if self._certificate is not None:
            self.scope["state"][CERTIFICATE] = self._certificate

    def _go_patiently(self) -> None:
        chunks, self._chunks = self._chunks or (), None
        self._start_scope()
        super().on_headers_complete()
        for chunk in chunks:
            super().on_body(chunk)

    def _do(self, warm: WarmPath, exchange: Exchange, *, keep_alive: bool) -> None:
        under_way = self._under_way
        under_way.keep_alive, under_way.response_complete = keep_alive, False
        self.cycle = under_way  # type: ignore[assignment]  # all of it that the protocol reads
        warm.do(exchange, self._answer)

    def _answer(self, head: bytes, body: bytes) -> None:
        """Send the response to the warm request: a head that lacks its empty line, and a body."""
        under_way = self._under_way
        under_way.response_complete = True
        if under_way.disconnected or self.transport.is_closing():
            return
        if under_way.keep_alive:
            self.transport.write(b"%s\r\n%s" % (head, body))
        else:
            self.transport.write(b"%sconnection: close\r\n\r\n%s" % (head, body))
            self.transport.close()
        self.on_response_complete()
