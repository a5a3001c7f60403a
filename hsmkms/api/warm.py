"""The short way of wrap, unwrap and log-in: of requests that need nothing but what is in memory, and the token.

`hot` and the token endpoint's route can answer every request, this the usual one at less cost: without task, ASGI
messages or thread. A request is taken only whole and only while nothing speaks against it. Whatever has to be waited
for, and whatever will be refused, goes the patient way from its beginning; so no rule stands here. What the gate has
counted is answered here, whatever comes of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import parse_qsl

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from hsmkms.api import hot, wire
from hsmkms.api.exchanges import Answer, Exchange, Exchanges, headers_of
from hsmkms.api.identity import TOKEN_PATHS, token_answer
from hsmkms.api.problems import token_problem
from hsmkms.api.requests import Gate, correlation_id, credential_of
from hsmkms.clock import Clock
from hsmkms.domain.access import Caller
from hsmkms.domain.ids import canonical_uuid
from hsmkms.domain.secrets import SecretText
from hsmkms.errors import HsmkmsError
from hsmkms.iam.issuing import GRANT_API_KEY
from hsmkms.service.acts import Act
from hsmkms.service.cadf import LOGIN
from hsmkms.service.crypto import CryptoService
from hsmkms.service.tokens import TokenService
from hsmkms.service.trail import Trail

_KEYS: Final = hot.PREFIX.encode()
_ACTIONS: Final = {b"wrap": "wrap", b"unwrap": "unwrap"}
_LOG_IN_PATHS: Final = frozenset(path.encode() for path in TOKEN_PATHS)
_HEAD: Final = b"%scontent-type: %s\r\n" % (STATUS_LINE[200], wire.KEY_ACTION_TYPE.encode())
_TOKEN_HEAD: Final = STATUS_LINE[200] + b"content-type: application/json\r\ncache-control: no-store\r\n"


class WarmPath:
    """For the event loop's thread alone."""

    def __init__(self, crypto: CryptoService, tokens: TokenService, gate: Gate, trail: Trail, clock: Clock) -> None:
        self._crypto = crypto
        self._tokens = tokens
        self._gate = gate
        self._clock = clock
        self._exchanges = Exchanges(trail)

    def take(
        self,
        url: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        address: str,
        certificate: bytes | None,
        answer: Answer,
    ) -> bool:
        """Whether a POST that came whole is for here; then it is done, and `answer` is called in a later turn."""
        exchange = self.prepare(url, headers, body, address, certificate)
        if exchange is None:
            return False
        self._exchanges.add(exchange, answer)
        return True

    def prepare(
        self, url: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes, address: str, certificate: bytes | None
    ) -> Exchange | None:
        """The exchange of a POST, if it is for here; nothing has been done of it."""
        began = time.perf_counter()
        if not url.startswith(_KEYS):
            return self._log_in(began, url, headers, body, address) if url in _LOG_IN_PATHS else None
        reference, _, name = url[len(_KEYS) :].partition(b"/actions/")
        action = _ACTIONS.get(name)
        if action is None or not _is_plain(reference):
            return None
        found = headers_of(headers)
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
            credential_of(found),
            instance_id=instance_id,
            key_ring_id=found.get("x-kms-key-ring") or None,
            reference=reference.decode(),
        )
        try:
            call = (self._wrap if action == "wrap" else self._unwrap)(act, caller, instance_id, body)
        except (HsmkmsError, ValueError, RecursionError):
            # The patient way says what is wrong with it.
            return None
        if call is None:
            return None

        def work() -> bytes:
            self._gate.admit(caller, hot.ACTIONS[action], instance_id, address)
            return call()

        return Exchange(act, began, _HEAD, lambda error: hot.PROBLEMS[action](error, act.correlation_id), work)

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

    def _log_in(
        self, began: float, url: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes, address: str
    ) -> Exchange | None:
        found = headers_of(headers)
        try:
            fields = parse_qsl(body.decode(), strict_parsing=True, max_num_fields=32)
        except ValueError:
            return None
        form = dict(fields)
        if found is None or len(form) != len(fields) or form.get("grant_type") != GRANT_API_KEY:
            return None
        try:
            exchange = self._tokens.warm_exchange(SecretText(form.get("apikey", "")), address)
        except HsmkmsError:
            return None
        if exchange is None:
            return None
        act = Act(LOGIN, correlation_id(found), url.decode(), address, credential="apikey")

        def work() -> bytes:
            issued = exchange()
            act.actor = issued.iam_id
            return hot.encode(token_answer(issued, self._clock()))

        return Exchange(act, began, _TOKEN_HEAD, lambda error: token_problem(error, act.correlation_id), work)


def _is_plain(reference: bytes) -> bool:
    """An id or alias as it is written without escapes."""
    return reference.replace(b"-", b"").replace(b"_", b"").isalnum()
