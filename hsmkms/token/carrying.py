"""Keys from outside on the token: transport keys, and what comes under them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Final

from hsmkms.domain.check_values import CheckValues
from hsmkms.domain.importing import Carried, ImportToken, Oaep, Passage, WrappedMaterial, transport_owner
from hsmkms.domain.keys import KeyVersion
from hsmkms.errors import (
    ImportTokenExpired,
    IncorrectNonce,
    IncorrectNonceIv,
    TokenBusy,
    TokenRefused,
    TokenUnavailable,
)
from hsmkms.token import cryptoki as ck
from hsmkms.token import describing, importing, templates
from hsmkms.token.objects import ObjectMissing, check_value
from hsmkms.token.recovery import SENTINEL_ID, UNAVAILABLE, RecoveringToken
from hsmkms.token.sessions import SessionPool

_TRANSPORT_KEY_WAIT_S: Final = 15.0
_TRANSPORT_KEY_CALLERS: Final = 4
_TRANSPORT_KEY_PATIENCE_S: Final = 120.0
"""A pair of 4,096 bits takes a token seconds, and sometimes many. So a few wait for their turn, and more than those are
told at once to come again: each has a thread of the process."""


class CarryingToken(RecoveringToken):
    """What `importing` does, for callers who know ids and owners."""

    def __init__(self, pool: SessionPool, part: str = "primary") -> None:
        """As of RecoveringToken."""
        # RSA pairs are generated one at a time: who asks for many at once would have all sessions for seconds.
        self._transport_key_lock = threading.Lock()
        self._transport_key_callers = threading.Semaphore(_TRANSPORT_KEY_CALLERS)
        self._never_made: set[str] = set()
        """Ids of pairs that were refused before the token was asked for them, until they are settled."""
        self._import_support: importing.ImportSupport | None = None
        super().__init__(pool, part)

    def renew_after_fork(self) -> None:
        super().renew_after_fork()
        self._transport_key_lock = threading.Lock()
        self._transport_key_callers = threading.Semaphore(_TRANSPORT_KEY_CALLERS)

    def import_key(
        self, version_id: str, owner: str, created_at: datetime, material: WrappedMaterial, import_token: ImportToken
    ) -> KeyVersion:
        """As `create_key`, for a key that comes under an import token, by the way that `passage` says.

        Raises IncorrectNonce, IncorrectNonceIv, ImportTokenExpired (its transport key is gone).
        """

        def bring(session: ck.Session) -> KeyVersion:
            template = self._brought(version_id, owner)
            with self._objects_lock:
                transport = transport_owner(import_token.instance_id)
                private = self._find_transport_key(session, import_token.id, transport)
                if passage is Passage.TOKEN:
                    handle = importing.unwrap_inside(session, private, material, import_token.nonce, template)
                else:
                    with importing.unwrapped_here(session, private, material, import_token.nonce) as value:
                        handle = session.create_from(template, value)
            return self._admit(session, handle, version_id, owner, created_at)

        passage = self.passage(material.oaep)
        try:
            return self._call(bring, attempts=1)
        except importing.NonceWrong:
            raise IncorrectNonce from None
        except importing.NonceUnreadable:
            # A device that is ill fails in the same way as bad input.
            if not self._canary_sings():
                raise TokenUnavailable(UNAVAILABLE) from None
            raise IncorrectNonceIv from None

    def wrapped_check_values(self, carried: Carried) -> tuple[CheckValues, int | None]:
        """Check values and length in bytes of a key that came under a transport key; nothing of it stays on the token.

        SoftHSM 2.6.1 does not tell the length of a key that it unwrapped (CKA_VALUE_LEN is 0): then it is None.

        Raises WrappedKeyUnreadable, ImportTokenExpired (its transport key is gone), TokenRefused when the token
        computes no check values.
        """
        if not describing.has_check_mechanisms(self.mechanisms):
            raise TokenRefused("The token computes no key check values. Bring the key as components or shares.")

        def check(session: ck.Session) -> tuple[CheckValues, int | None]:
            private = self._find_transport_key(session, carried.transport_key_id, carried.transport_owner)
            if self.passage(carried.oaep) is Passage.TOKEN:
                return importing.checked_inside(session, private, carried.wrapped, carried.oaep)
            with importing.opened_here(session, private, carried.wrapped, carried.oaep) as value:
                return describing.check_values(session, value), len(value)

        return self._call(check, attempts=1)

    def create_carried_key(self, version_id: str, owner: str, created_at: datetime, carried: Carried) -> KeyVersion:
        """The same as `create_key` for a key that came under a transport key, by the way that `passage` says.

        Raises WrappedKeyUnreadable, ImportTokenExpired (its transport key is gone).
        """

        def bring(session: ck.Session) -> KeyVersion:
            template = self._brought(version_id, owner)
            with self._objects_lock:
                private = self._find_transport_key(session, carried.transport_key_id, carried.transport_owner)
                if passage is Passage.TOKEN:
                    handle = importing.open_inside(session, private, carried.wrapped, carried.oaep, template)
                else:
                    with importing.opened_here(session, private, carried.wrapped, carried.oaep) as value:
                        handle = session.create_from(template, value)
            return self._admit(session, handle, version_id, owner, created_at)

        passage = self.passage(carried.oaep)
        return self._call(bring, attempts=1)

    def passage(self, oaep: Oaep) -> Passage | None:
        """How a key under an import token comes in: unwrapped in the token, by way of this process, or not at all."""
        support = self._import_support or self._probe_import()
        if oaep in support.inside:
            return Passage.TOKEN
        return Passage.PROCESS if support.raw else None

    def _probe_import(self) -> importing.ImportSupport:
        mechanisms = self.mechanisms
        with self._transport_key_lock:
            if self._import_support is None:
                self._import_support = self._call(
                    lambda session: importing.probe(session, mechanisms=mechanisms),
                    patience_s=_TRANSPORT_KEY_PATIENCE_S,
                )
            return self._import_support

    def generate_transport_key(self, key_id: str, owner: str, *, by_process: bool) -> bytes:
        """Generate an RSA-4096 pair under `key_id` for an import token; the public key as PEM of a
        SubjectPublicKeyInfo. `by_process` lets it decrypt too, where the token cannot do all of OAEP inside."""
        inside = any(self.passage(oaep) is Passage.TOKEN for oaep in Oaep)

        def generate(session: ck.Session) -> bytes:
            # Seconds of work, so on session objects: only what touches the token is done by one at a time.
            pem = importing.generate_transport_key(session, key_id, owner, inside=inside, raw=by_process)
            with self._objects_lock:
                importing.keep(session, key_id)
            return pem

        with self._transport_key_turn(key_id):
            return self._call(generate, attempts=1, patience_s=_TRANSPORT_KEY_PATIENCE_S)

    @contextlib.contextmanager
    def _transport_key_turn(self, key_id: str) -> Iterator[None]:
        """One at a time. Raises TokenBusy to whoever would wait long."""
        callers, lock = self._transport_key_callers, self._transport_key_lock
        with contextlib.ExitStack() as turn:
            for place, wait_s in ((callers, 0.0), (lock, _TRANSPORT_KEY_WAIT_S)):
                if not place.acquire(timeout=wait_s):
                    self._never_made.add(key_id)
                    raise TokenBusy("The HSM is busy with other import tokens. Try again.")
                turn.callback(place.release)
            yield

    def destroy_transport_key(self, key_id: str) -> bool:
        """Destroy a transport key; False if there was none."""
        if key_id in self._never_made:
            # To prove that it is not there opens the module anew, for which all wait as long as a pair is being made.
            self._never_made.discard(key_id)
            return False

        def destroy(session: ck.Session) -> bool:
            with self._objects_lock:
                return importing.destroy(session, key_id)

        return self._destroyed(destroy, importing.private_of(key_id))

    def _find_transport_key(self, session: ck.Session, key_id: str, owner: str) -> int:
        try:
            return importing.find(session, key_id, owner)
        except ObjectMissing:
            if not self._is_there(session, SENTINEL_ID):
                raise
            # Replaced or expired while the request was on its way.
            raise ImportTokenExpired from None

    def _brought(self, version_id: str, owner: str) -> dict[int, ck.Value]:
        return templates.brought_key(version_id, templates.label_of(owner), fixed=self.capabilities.fixed_attributes)

    def _admit(self, session: ck.Session, handle: int, version_id: str, owner: str, created_at: datetime) -> KeyVersion:
        """Read a new object's attributes back, and remember it."""
        templates.require_safe(session.read(handle, templates.READ_BACK))
        version = KeyVersion(version_id, created_at, check_value(session, handle), owner)
        with self._objects_lock:
            self._index.learn(self._pool.generation, version, handle)
        return version
