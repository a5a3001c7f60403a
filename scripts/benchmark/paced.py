"""Load at a rate, for latencies below saturation: each request is timed from when it was due, not from when a
connection was free for it, so that a service that stalls does not hide how long others would have waited.

Arguments: host, port, requests a second, seconds. The request comes on standard input. Prints percentiles in µs.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections import deque
from typing import Final, cast

import uvloop

CONNECTIONS: Final = 64
_GOOD: Final = b"HTTP/1.1 200 "
LATE_LIMIT: Final = 50_000
"""More requests that nobody could send yet mean that the service cannot keep up with the rate."""


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._due = 0.0
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, due: float) -> None:
        """Send the request that was due then."""
        self._due = due
        self._transport.write(self._pace.request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if not self._answer.startswith(_GOOD):
            raise SystemExit(f"bench: a request was refused: {self._answer[:40]!r}")
        if len(self._answer) < self._pace.answer_bytes:
            return
        if not self._pace.answer_bytes and not self._pace.learn(self._answer):
            return
        self._answer = b""
        self._pace.answered(self, time.perf_counter() - self._due)


class Pace:
    """Requests at a rate over a few connections."""

    def __init__(self, request: bytes, per_s: float, seconds: float) -> None:
        self.request = request
        # The same request has answers of the same length; so each need not be parsed, for which there is no time.
        self.answer_bytes = 0
        self._per_s = per_s
        self._count = int(per_s * seconds)
        self._free: deque[_Connection] = deque()
        self._late: deque[float] = deque()
        self.times: list[float] = []
        self._done = asyncio.Event()

    async def run(self, host: str, port: int) -> list[float]:
        """Seconds of each request, ascending."""
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            _, connection = await loop.create_connection(lambda: _Connection(self), host, port)
            self._free.append(connection)
        started = time.perf_counter() + 0.05
        sent = 0
        while sent < self._count:
            now = time.perf_counter()
            while sent < self._count and started + sent / self._per_s <= now:
                self._send(started + sent / self._per_s)
                sent += 1
            if len(self._late) > LATE_LIMIT:
                raise SystemExit("bench: the service cannot keep up with this rate")
            await asyncio.sleep(0.0005)
        await self._done.wait()
        return sorted(self.times)

    def learn(self, answer: bytes) -> bool:
        """Whether this is a whole answer; then the length of all is known."""
        head, found, body = answer.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
            return False
        self.answer_bytes = len(answer)
        return True

    def answered(self, connection: _Connection, seconds: float) -> None:
        """Note it, and go on with what is late."""
        self.times.append(seconds)
        if self._late:
            connection.send(self._late.popleft())
        else:
            self._free.append(connection)
        if len(self.times) == self._count:
            self._done.set()

    def _send(self, due: float) -> None:
        if self._free:
            self._free.popleft().send(due)
        else:
            self._late.append(due)


def main() -> None:
    """Print requests a second that were answered, p50, p99 and p99.9."""
    host, port, per_s, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    request = sys.stdin.buffer.read()

    async def run() -> list[float]:
        return await Pace(request, per_s, seconds).run(host, port)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        times = runner.run(run())
    p50, p99, p999 = (times[min(len(times) - 1, int(len(times) * part))] * 1e6 for part in (0.5, 0.99, 0.999))
    print(f"{per_s:.0f} {p50:.1f} {p99:.1f} {p999:.1f}")


if __name__ == "__main__":
    main()
