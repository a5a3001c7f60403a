"""The short way of wrap, unwrap and log-in: of requests that need nothing but what is in memory, and the token.

`hot` and the token endpoint's route can answer every request, this the usual one at less cost: without task, ASGI
messages or thread. A request is taken only whole and only while nothing speaks against it. Whatever has to be waited
for, and whatever will be refused, goes the patient way from its beginning; so no rule stands here. What the gate has
counted is answered here, whatever comes of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from hsmkms.api import hot, wire
from hsmkms.api.exchanges import Exchange, Exchanges, headers_of
from hsmkms.api.identity import TOKEN_PATHS, token_answer
from hsmkms.api.openings import Opening, Openings
from hsmkms.api.problems import token_problem
from hsmkms.api.requests import Gate, correlation_id, credential_of, given_correlation_id
from hsmkms.clock import Clock
from hsmkms.domain.access import Action, Caller
from hsmkms.domain.ids import canonical_uuid, new_id
from hsmkms.domain.secrets import SecretText
from hsmkms.errors import HsmkmsError
from hsmkms.iam.issuing import GRANT_API_KEY
from hsmkms.service.acts import Act
from hsmkms.service.cadf import LOGIN
from hsmkms.service.crypto import CryptoService
from hsmkms.service.similar import Similar
from hsmkms.service.tokens import TokenService
from hsmkms.service.trail import Trail

T = TypeVar("T")

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
        self._openings = Openings()
        self.do = Exchanges(trail).add
        """Do what was prepared; the answer is sent in a later turn."""
        self._actions = {"wrap": self._wrap, "unwrap": self._unwrap}

    def again(self, request: bytes, address: str, certificate: bytes | None) -> Exchange | None:
        """The exchange of a whole request, if its head was here before and it is for here; nothing has been done of
        it."""
        found = self._openings.find(request, certificate)
        return None if found is None else self._exchange(time.perf_counter(), new_id(), *found, address)

    def prepare(
        self, url: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes, address: str, certificate: bytes | None
    ) -> tuple[Exchange, Opening | None] | None:
        """The same of a POST that came whole and was parsed, with what its head said, if that may be kept."""
        began = time.perf_counter()
        found = headers_of(headers)
        if found is None:
            return None
        if url in _LOG_IN_PATHS:
            exchange = self._log_in(began, url, found, body, address)
            return None if exchange is None else (exchange, None)
        opening = self._open(url, found, certificate, len(body))
        given = given_correlation_id(found)
        exchange = None if opening is None else self._exchange(began, given or new_id(), opening, body, address)
        # A head with an id of its own does not come again.
        return None if exchange is None else (exchange, opening if given is None else None)

    def remember(self, request: bytes, certificate: bytes | None, opening: Opening) -> None:
        """Have `again` know the head of a request that `prepare` took, and of which these are all bytes."""
        self._openings.remember(request, certificate, opening)

    def _open(self, url: bytes, headers: dict[str, str], certificate: bytes | None, body_length: int) -> Opening | None:
        if not url.startswith(_KEYS):
            return None
        reference, _, action = url[len(_KEYS) :].partition(b"/actions/")
        name = _ACTIONS.get(action)
        if name is None or not _is_plain(reference):
            return None
        shown = self._gate.callers.shown(headers.get("authorization"), certificate)
        instance_id = canonical_uuid(headers.get("bluemix-instance", ""))
        if shown is None or instance_id is None:
            return None
        return Opening(
            name,
            hot.ACTIONS[name].value,
            url.decode(),
            reference.decode(),
            shown,
            instance_id,
            headers.get("x-kms-key-ring") or None,
            credential_of(headers),
            body_length,
            Similar(),
        )

    def _exchange(
        self, began: float, correlation_id: str, opening: Opening, body: bytes, address: str
    ) -> Exchange | None:
        caller = self._gate.callers.believed(opening.shown)
        if caller is None:
            return None
        act = Act(
            opening.action,
            correlation_id,
            opening.url,
            address,
            caller,
            opening.credential,
            instance_id=opening.instance_id,
            key_ring_id=opening.key_ring_id,
            reference=opening.reference,
        )
        try:
            work = self._actions[opening.name](caller, opening, body, act)
        except (HsmkmsError, ValueError, RecursionError):
            # The patient way says what is wrong with it.
            return None
        return None if work is None else Exchange(act, began, _HEAD, hot.PROBLEMS[opening.name], work, opening.similar)

    def _wrap(self, caller: Caller, opening: Opening, body: bytes, act: Act) -> Callable[[], bytes] | None:
        wish = hot.decode_wrap(body)
        plaintext = None if wish.plaintext is None else wire.plaintext_of(wish.plaintext)
        wrap = self._crypto.warm_wrap(
            caller, opening.instance_id, opening.reference, opening.key_ring_id, plaintext, wish.aad or ()
        )
        if wrap is None:
            return None
        return partial(self._admitted, caller, opening, Action.KEY_WRAP, wrap, hot.wrapped, act)

    def _unwrap(self, caller: Caller, opening: Opening, body: bytes, act: Act) -> Callable[[], bytes] | None:
        offer = hot.decode_unwrap(body)
        unwrap = self._crypto.warm_unwrap(
            caller, opening.instance_id, opening.reference, opening.key_ring_id, offer.ciphertext, offer.aad or ()
        )
        if unwrap is None:
            return None
        return partial(self._admitted, caller, opening, Action.KEY_UNWRAP, unwrap, hot.unwrapped, act)

    def _admitted(
        self,
        caller: Caller,
        opening: Opening,
        action: Action,
        call: Callable[[], T],
        answer: Callable[[T, Act], dict[str, Any]],
        act: Act,
    ) -> bytes:
        self._gate.admit(caller, action, opening.instance_id, act.address)
        return hot.encode(answer(call(), act))

    def _log_in(self, began: float, url: bytes, headers: dict[str, str], body: bytes, address: str) -> Exchange | None:
        try:
            fields = parse_qsl(body.decode(), strict_parsing=True, max_num_fields=32)
        except ValueError:
            return None
        form = dict(fields)
        if len(form) != len(fields) or form.get("grant_type") != GRANT_API_KEY:
            return None
        try:
            exchange = self._tokens.warm_exchange(SecretText(form.get("apikey", "")), address)
        except HsmkmsError:
            return None
        if exchange is None:
            return None
        act = Act(LOGIN, correlation_id(headers), url.decode(), address, credential="apikey")

        def work() -> bytes:
            issued = exchange()
            act.actor = issued.iam_id
            return hot.encode(token_answer(issued, self._clock()))

        return Exchange(act, began, _TOKEN_HEAD, token_problem, work)


def _is_plain(reference: bytes) -> bool:
    """An id or alias as it is written without escapes."""
    return reference.replace(b"-", b"").replace(b"_", b"").isalnum()
