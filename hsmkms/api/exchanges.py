"""Requests that came whole and against which nothing speaks: those of one turn of the event loop are done together,
with one wait for the audit log, and each is answered with one write to its socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

import msgspec
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from hsmkms.api.problems import guard_now
from hsmkms.api.requests import CORRELATION_HEADERS
from hsmkms.correlation import adopt
from hsmkms.errors import AuditUnavailable
from hsmkms.service.acts import Act
from hsmkms.service.similar import Similar
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


class Exchange(msgspec.Struct):
    """One request. `work` does it and gives the body of its answer; `problem` is the answer that an error becomes;
    `head` are the lines of a good answer's head that are always the same; `similar` knows the event before of the same
    request."""

    act: Act
    began: float
    head: bytes
    problem: Callable[[Exception, str], Response]
    work: Callable[[], bytes]
    similar: Similar | None = None


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
        """Step by step for all of them: the processor's caches are too small for all the steps of one."""
        batch, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._turn)
        with metrics.gathered():
            outcomes = [_work(exchange) for exchange, _ in batch]
        done: list[tuple[Exchange, Answer, bytes | Response]] = []
        events: list[bytes] = []
        for (exchange, answer), outcome in zip(batch, outcomes, strict=True):
            status = 200 if isinstance(outcome, bytes) else outcome.status_code
            act = exchange.act
            event = guard_now(exchange.problem, act.correlation_id, self._trail.outcome, act, status, exchange.similar)
            if isinstance(event, bytes):
                events.append(event)
                done.append((exchange, answer, outcome))
            else:
                _send(exchange, answer, event)
        settle = partial(_settle, done)
        try:
            self._trail.end_all(events, settle)
        except AuditUnavailable as error:
            settle(error)


def _work(exchange: Exchange) -> bytes | Response:
    correlation_id = exchange.act.correlation_id
    adopt(correlation_id)
    return guard_now(exchange.problem, correlation_id, exchange.work)


def _settle(done: Sequence[tuple[Exchange, Answer, bytes | Response]], error: AuditUnavailable | None) -> None:
    with metrics.gathered():
        for exchange, answer, outcome in done:
            _send(exchange, answer, outcome if error is None else exchange.problem(error, exchange.act.correlation_id))


def _send(exchange: Exchange, answer: Answer, outcome: bytes | Response) -> None:
    act = exchange.act
    if isinstance(outcome, bytes):
        metrics.answered(act.action, 200, exchange.began)
        own = act.correlation_id.encode(), len(outcome)
        answer(b"%scorrelation-id: %s\r\ncontent-length: %d\r\n" % (exchange.head, *own), outcome)
        return
    metrics.answered(act.action, outcome.status_code, exchange.began)
    lines = [STATUS_LINE[outcome.status_code], *(b"%s: %s\r\n" % header for header in outcome.raw_headers)]
    answer(b"".join(lines), bytes(outcome.body))


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
