"""POST to one address, over a connection that is kept, with one deadline for all of it.

The time limits of HTTP clients are for each read, so that a receiver that gives a byte a second holds one up for ever.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

import httpcore

_AT_ONCE: Final = 1 << 14
"""Bytes that are written under one look at the clock; a TLS record's."""
_MOST_OF_AN_ANSWER: Final = 1 << 16
"""Bytes of an answer's body that are read, and forgotten, so that the connection can be used again."""
FAILURES: Final = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError)


class Poster:
    """Connects with the first POST, and anew when the connection is gone. For one thread."""

    def __init__(self, url: str, context: ssl.SSLContext, within_s: float) -> None:
        self._url = url
        self._within_s = within_s
        self._network = _Network()
        self._pool = httpcore.ConnectionPool(context, max_connections=1, network_backend=self._network)

    def post(self, body: bytes, headers: Sequence[tuple[str, str]]) -> int:
        """The answer's status. Raises one of FAILURES."""
        self._network.until = time.monotonic() + self._within_s
        with self._pool.stream("POST", self._url, headers=headers, content=body) as answer:
            # Whatever becomes of the rest: a body that is longer, or does not come, costs the connection alone.
            with contextlib.suppress(*FAILURES):
                _read(answer)
            return answer.status

    def close(self) -> None:
        """Hang up."""
        self._pool.close()


def _read(answer: httpcore.Response) -> None:
    read = 0
    for part in answer.iter_stream():
        read += len(part)
        if read > _MOST_OF_AN_ANSWER:
            return


class _Network(httpcore.NetworkBackend):
    """The network until a moment, `until`, of the monotonic clock."""

    def __init__(self) -> None:
        self.until = 0.0
        self._plain = httpcore.SyncBackend()

    def left_s(self) -> float:
        left = self.until - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout
        return left

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(self._plain.connect_tcp(host, port, self.left_s(), local_address, socket_options), self)


class _Stream(httpcore.NetworkStream):
    """A connection on such a network."""

    def __init__(self, stream: httpcore.NetworkStream, network: _Network) -> None:
        self._stream = stream
        self._network = network

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._network.left_s())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _AT_ONCE):
            self._stream.write(buffer[start : start + _AT_ONCE], self._network.left_s())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, self._network.left_s()), self._network)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
