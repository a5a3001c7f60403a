"""Requests that came whole and against which nothing speaks: those of one turn of the event loop are done together,
with one wait for the audit log, and each is answered with one write to its socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from hsmkms.api.problems import guard_now
from hsmkms.api.requests import CORRELATION_HEADERS
from hsmkms.correlation import adopt
from hsmkms.errors import AuditUnavailable
from hsmkms.service.acts import Act
from hsmkms.service.trail import Trail
from hsmkms.telemetry import metrics

MOST_AT_ONCE: Final = 32
"""So that the last of a turn does not wait for more than some milliseconds of others' work."""
_READ: Final = frozenset(
    {
        b"authorization",
        b"bluemix-instance",
        b"x-kms-key-ring",
        b"content-length",
        *(name.encode() for name in CORRELATION_HEADERS),
    }
)

Answer = Callable[[bytes, bytes], None]
"""Sends a head, which lacks its empty line, and a body."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request. `work` does it and gives the body of its answer; `problem` is the answer that an error becomes;
    `head` are the lines of a good answer's head that are always the same."""

    act: Act
    began: float
    head: bytes
    problem: Callable[[Exception], Response]
    work: Callable[[], bytes]


class Exchanges:
    """For the event loop's thread alone."""

    def __init__(self, trail: Trail) -> None:
        self._trail = trail
        self._waiting: list[tuple[Exchange, Answer]] = []

    def add(self, exchange: Exchange, answer: Answer) -> None:
        """Do it, with the others of this turn, and `answer` once its event is durable."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._turn)
        self._waiting.append((exchange, answer))

    def _turn(self) -> None:
        batch, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._turn)
        done: list[tuple[Exchange, Answer, bytes | Response]] = []
        events: list[bytes] = []
        with metrics.gathered():
            for exchange, answer in batch:
                adopt(exchange.act.correlation_id)
                found = guard_now(exchange.work, exchange.problem)
                status = 200 if isinstance(found, bytes) else found.status_code
                event = guard_now(partial(self._trail.outcome, exchange.act, status), exchange.problem)
                if isinstance(event, bytes):
                    events.append(event)
                    done.append((exchange, answer, found))
                else:
                    _send(exchange, answer, event)
        settle = partial(_settle, done)
        try:
            self._trail.end_all(events, settle)
        except AuditUnavailable as error:
            settle(error)


def _settle(done: Sequence[tuple[Exchange, Answer, bytes | Response]], error: AuditUnavailable | None) -> None:
    with metrics.gathered():
        for exchange, answer, found in done:
            _send(exchange, answer, found if error is None else exchange.problem(error))


def _send(exchange: Exchange, answer: Answer, found: bytes | Response) -> None:
    status = 200 if isinstance(found, bytes) else found.status_code
    metrics.answered(exchange.act.action, status, exchange.began)
    if isinstance(found, bytes):
        own = b"correlation-id: %s\r\ncontent-length: %d\r\n" % (exchange.act.correlation_id.encode(), len(found))
        answer(exchange.head + own, found)
        return
    lines = [STATUS_LINE[status], *(b"%s: %s\r\n" % header for header in found.raw_headers)]
    answer(b"".join(lines), bytes(found.body))


def headers_of(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str] | None:
    """The headers that count here; None if one is given twice, or the body had no length."""
    found: dict[str, str] = {}
    for name, value in raw:
        if name in _READ:
            known = name.decode()
            if known in found:
                return None
            found[known] = value.decode("latin-1")
    return found if "content-length" in found else None
