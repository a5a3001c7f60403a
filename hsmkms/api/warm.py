"""Wrap and unwrap of which everything is in memory; those of one turn of the event loop are done together.

`hot` can answer every request, this the usual one at less cost: no task, no ASGI messages, one write to the socket, and
one wait for the audit log for all that came together. A request is taken only whole and only while nothing speaks
against it. Whatever has to be waited for, and whatever will be refused, goes the patient way from its beginning;
so no rule stands here. What has been counted by the gate is answered here, whatever comes of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from hsmkms.api import hot, wire
from hsmkms.api.problems import guard_now
from hsmkms.api.requests import CORRELATION_HEADERS, Gate, correlation_id
from hsmkms.correlation import adopt
from hsmkms.domain.access import Caller
from hsmkms.domain.ids import canonical_uuid
from hsmkms.errors import AuditUnavailable, HsmkmsError
from hsmkms.service.crypto import CryptoService
from hsmkms.service.trail import Act, Trail
from hsmkms.telemetry import metrics

MOST_AT_ONCE: Final = 32
"""So that the last of a turn does not wait for more than some milliseconds of others' work."""
_PREFIX: Final = hot.PREFIX.encode()
_ACTIONS: Final = {b"wrap": "wrap", b"unwrap": "unwrap"}
_AUTHORIZATION, _INSTANCE, _RING = b"authorization", b"bluemix-instance", b"x-kms-key-ring"
_READ: Final = frozenset(
    {_AUTHORIZATION, _INSTANCE, _RING, b"content-length", *(name.encode() for name in CORRELATION_HEADERS)}
)
_HEAD: Final = STATUS_LINE[200] + (
    b"content-type: " + wire.KEY_ACTION_TYPE.encode() + b"\r\ncorrelation-id: %s\r\ncontent-length: %d\r\n"
)

Answer = Callable[[bytes, bytes], None]
"""Sends a head, which lacks its empty line, and a body."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that nothing speaks against; `work` gives the body of its answer."""

    act: Act
    caller: Caller
    instance_id: str
    action: str
    began: float
    work: Callable[[], bytes]

    def problem(self, error: Exception) -> Response:
        """The answer that an error becomes."""
        return hot.PROBLEMS[self.action](error, self.act.correlation_id)


class WarmPath:
    """For the event loop's thread alone."""

    def __init__(self, crypto: CryptoService, gate: Gate, trail: Trail) -> None:
        self._crypto = crypto
        self._gate = gate
        self._trail = trail
        self._waiting: list[tuple[Exchange, Answer]] = []

    def prepare(
        self, url: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes, address: str, certificate: bytes | None
    ) -> Exchange | None:
        """A POST that came whole, if it is for here; it has had no effect yet."""
        began = time.perf_counter()
        reference, _, name = url[len(_PREFIX) :].partition(b"/actions/")
        action = _ACTIONS.get(name)
        if action is None or not url.startswith(_PREFIX) or not _is_plain(reference):
            return None
        found = _read(headers)
        if found is None or not self._gate.snapshot.fresh:
            return None
        caller = self._gate.callers.known(found.get("authorization"), certificate)
        instance_id = canonical_uuid(found.get("bluemix-instance", ""))
        if caller is None or instance_id is None:
            return None
        act = Act(
            hot.ACTIONS[action].value,
            correlation_id(found),
            url.decode(),
            address,
            caller,
            instance_id=instance_id,
            key_ring_id=found.get("x-kms-key-ring") or None,
            reference=reference.decode(),
        )
        try:
            work = (self._wrap if action == "wrap" else self._unwrap)(act, caller, instance_id, body)
        except (HsmkmsError, ValueError, RecursionError):
            # The patient way says what is wrong with it.
            return None
        return None if work is None else Exchange(act, caller, instance_id, action, began, work)

    def _wrap(self, act: Act, caller: Caller, instance_id: str, body: bytes) -> Callable[[], bytes] | None:
        wish = hot.decode_wrap(body)
        plaintext = None if wish.plaintext is None else wire.plaintext_of(wish.plaintext)
        reference = act.reference or ""
        wrap = self._crypto.warm_wrap(caller, instance_id, reference, act.key_ring_id, plaintext, wish.aad or ())
        return None if wrap is None else lambda: hot.encode(hot.wrapped(wrap(), act))

    def _unwrap(self, act: Act, caller: Caller, instance_id: str, body: bytes) -> Callable[[], bytes] | None:
        offer = hot.decode_unwrap(body)
        reference = act.reference or ""
        unwrap = self._crypto.warm_unwrap(
            caller, instance_id, reference, act.key_ring_id, offer.ciphertext, offer.aad or ()
        )
        return None if unwrap is None else lambda: hot.encode(hot.unwrapped(unwrap(), act))

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
        for exchange, answer in batch:
            adopt(exchange.act.correlation_id)
            found = guard_now(partial(self._work, exchange), exchange.problem)
            status = 200 if isinstance(found, bytes) else found.status_code
            event = guard_now(partial(self._trail.outcome, exchange.act, status), exchange.problem)
            if isinstance(event, bytes):
                events.append(event)
                done.append((exchange, answer, found))
            else:
                _send(exchange, answer, event)
        settle = partial(self._settle, done)
        try:
            self._trail.end_all(events, settle)
        except AuditUnavailable as error:
            settle(error)

    def _work(self, exchange: Exchange) -> bytes:
        self._gate.admit(exchange.caller, hot.ACTIONS[exchange.action], exchange.instance_id, exchange.act.address)
        return exchange.work()

    def _settle(
        self, done: Sequence[tuple[Exchange, Answer, bytes | Response]], error: AuditUnavailable | None
    ) -> None:
        for exchange, answer, found in done:
            _send(exchange, answer, found if error is None else exchange.problem(error))


def _send(exchange: Exchange, answer: Answer, found: bytes | Response) -> None:
    status = 200 if isinstance(found, bytes) else found.status_code
    metrics.answered(exchange.act.action, status, exchange.began)
    if isinstance(found, bytes):
        answer(_HEAD % (exchange.act.correlation_id.encode(), len(found)), found)
        return
    lines = [STATUS_LINE[status], *(b"%s: %s\r\n" % header for header in found.raw_headers)]
    answer(b"".join(lines), bytes(found.body))


def _is_plain(reference: bytes) -> bool:
    """An id or alias as it is written without escapes."""
    return reference.replace(b"-", b"").replace(b"_", b"").isalnum() and reference.isascii()


def _read(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str] | None:
    """The headers that count here; None if one is given twice, or the body had no length."""
    found: dict[str, str] = {}
    for name, value in headers:
        if name in _READ:
            known = name.decode()
            if known in found:
                return None
            found[known] = value.decode("latin-1")
    return found if "content-length" in found else None
