"""The token room's face: root keys by version id, seal and open, random bytes, signatures, MACs, health."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

from hsmkms.domain import frame
from hsmkms.domain.check_values import CheckValues
from hsmkms.domain.ids import is_uuid
from hsmkms.domain.importing import Carried, ImportToken, Oaep, Passage, WrappedMaterial, transport_owner
from hsmkms.domain.keys import KeyVersion
from hsmkms.domain.secrets import SecretBytes
from hsmkms.errors import (
    HsmkmsError,
    ImportTokenExpired,
    IncorrectNonce,
    IncorrectNonceIv,
    KeyMaterialMissing,
    SigningKeyMissing,
    TokenBusy,
    TokenRefused,
    TokenUnavailable,
    Unavailable,
    UnprocessableCiphertext,
)
from hsmkms.token import cryptoki as ck
from hsmkms.token import describing, importing, integrity, selftest, signing, templates
from hsmkms.token.breaker import Breaker
from hsmkms.token.objects import AES_OBJECTS, KeyIndex, ObjectAmbiguous, ObjectMissing, check_value
from hsmkms.token.returned import CryptokiError, Meaning
from hsmkms.token.sessions import SessionPool, TokenInfo, renew_after_fork

T = TypeVar("T")

SENTINEL_ID: Final = str(uuid.uuid5(uuid.UUID("5b0b6f5e-6d39-4f0e-9a5c-2f1d7a4c8e11"), "hsmkms sentinel"))
"""CKA_ID of a key that is always there: while it cannot be found, nothing that is missing counts as destroyed."""

_CANARY_FRAME: Final = bytes(range(1, 17))
_CANARY_VALID_S: Final = 0.05
_CHECK_REOPENS_S: Final = 1.0
_MISSING_VALID_S: Final = 1.0
_TRANSPORT_KEY_WAIT_S: Final = 5.0
_TRANSPORT_KEY_PATIENCE_S: Final = 120.0
"""A pair of 4,096 bits takes a token seconds, and sometimes many."""
_DOUBTFUL_AGAIN: Final = 2
_IN_DOUBT_S: Final = 10.0
_MISSING: Final = "The key's object is not on the token. Run `hsmkms doctor`."
_NO_MAC_KEY: Final = "The key that seals rights is not on the token. Run `hsmkms doctor`."
_OTHER_TOKEN: Final = "The token that answers is not the one that holds the keys. Try again."
_UNAVAILABLE: Final = "The HSM does not answer as it should. Try again."


@dataclass(frozen=True, slots=True)
class TokenObject:
    """A wrapping key on the token, as `doctor` sees it. `unsafe` says what is wrong with its attributes, or is None."""

    version_id: str
    label: str
    unsafe: str | None


class Token:
    """One token, opened and proved. Methods raise TokenUnavailable or TokenBusy when the device does not answer."""

    def __init__(self, pool: SessionPool) -> None:
        """Prove the token. Raises TokenRefused when it lacks a mechanism or does not keep its keys."""
        self._pool = pool
        self._index = KeyIndex()
        # Token objects are generated, searched and destroyed by one thread at a time: SoftHSM 2.6.1 fails one of two
        # that do so together (in 1 of 85 calls of eight threads), and may show the object twice afterwards.
        self._objects_lock = threading.RLock()
        # RSA pairs are generated one at a time: who asks for many at once would have all sessions for seconds.
        self._transport_key_lock = threading.Lock()
        self._signing_handles: dict[tuple[int, str], int] = {}
        self._mac_handle: tuple[int, int] | None = None
        self._import_support: importing.ImportSupport | None = None
        self._canary: tuple[int, bytes] | None = None
        self._canary_good_until = 0.0
        self._check_reopens_at = 0.0
        self._missing_until: dict[str, float] = {}
        self._in_doubt_until = 0.0
        self.breaker = Breaker(self._probe)
        renew_after_fork(self)
        try:
            selftest.require_mechanisms(pool.mechanisms(), pool.info.label)
            with pool.session() as session:
                self.capabilities = selftest.run(session)
        except CryptokiError as error:
            raise TokenUnavailable(_UNAVAILABLE) from error

    @property
    def info(self) -> TokenInfo:
        """Label, serial and firmware of the token."""
        return self._pool.info

    def close(self) -> None:
        """Finalise the module."""
        self._pool.close()

    def renew_after_fork(self) -> None:
        """In the child: another thread of the parent may have held a lock."""
        self._objects_lock = threading.RLock()
        self._transport_key_lock = threading.Lock()
        self.breaker.renew_after_fork()

    def has_sentinel(self) -> bool:
        """True once `make_sentinel` was called on this token."""
        return self._call(lambda session: self._is_there(session, SENTINEL_ID))

    def make_sentinel(self) -> None:
        """Generate the sentinel key. Once a token, at `hsmkms init`."""
        self.generate_key(SENTINEL_ID, "sentinel", datetime.min.replace(tzinfo=UTC))

    def generate_key(self, version_id: str, owner: str, created_at: datetime) -> KeyVersion:
        """Generate an AES-256 root key under `version_id`, read its attributes back, and give its check value."""
        label = templates.label_of(owner)
        template = templates.wrapping_key(version_id, label, fixed=self.capabilities.fixed_attributes)

        def generate(session: ck.Session) -> KeyVersion:
            with self._objects_lock:
                handle = session.generate_key(ck.CKM_AES_KEY_GEN, template)
            return self._admit(session, handle, version_id, owner, created_at)

        # Never twice: an object may be there although the call failed, and two under one id are refused for ever.
        return self._call(generate, attempts=1)

    def create_key(self, version_id: str, owner: str, created_at: datetime, value: SecretBytes) -> KeyVersion:
        """The same for an AES key whose 16, 24 or 32 bytes come in clear."""

        def create(session: ck.Session) -> KeyVersion:
            with self._objects_lock:
                handle = session.create_from(self._brought(version_id, owner), bytearray(value.reveal()))
            return self._admit(session, handle, version_id, owner, created_at)

        return self._call(create, attempts=1)

    def import_key(
        self, version_id: str, owner: str, created_at: datetime, material: WrappedMaterial, import_token: ImportToken
    ) -> KeyVersion:
        """The same for a key that comes under an import token, by the way that `passage` says.

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
                raise TokenUnavailable(_UNAVAILABLE) from None
            raise IncorrectNonceIv from None

    def wrapped_check_values(self, carried: Carried) -> tuple[CheckValues, int | None]:
        """Check values and length in bytes of a key that came under a transport key; nothing of it stays on the token.

        SoftHSM 2.6.1 does not tell the length of a key that it unwrapped (CKA_VALUE_LEN is 0): then it is None.

        Raises WrappedKeyUnreadable, ImportTokenExpired (its transport key is gone), TokenRefused when the token
        computes no check values.
        """
        if not describing.has_check_mechanisms(self._pool.mechanisms()):
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

    def mechanism_names(self) -> list[str]:
        """What C_GetMechanismList says."""
        return describing.mechanism_names(self._pool.mechanisms())

    def check_values(self, value: bytearray) -> CheckValues | None:
        """Check values of an AES key, computed in the token; None where it cannot."""
        if not describing.has_check_mechanisms(self._pool.mechanisms()):
            return None
        return self._call(lambda session: describing.check_values(session, value))

    def describe_key(self, version_id: str) -> describing.KeyDescription:
        """A root key's object as it is read back."""
        return self._call(lambda session: describing.describe(session, self._find(session, version_id)))

    def passage(self, oaep: Oaep) -> Passage | None:
        """How a key under an import token comes in: unwrapped in the token, by way of this process, or not at all."""
        support = self._import_support or self._probe_import()
        if oaep in support.inside:
            return Passage.TOKEN
        return Passage.PROCESS if support.raw else None

    def _probe_import(self) -> importing.ImportSupport:
        mechanisms = self._pool.mechanisms()
        with self._transport_key_lock:
            if self._import_support is None:
                self._import_support = self._call(lambda session: importing.probe(session, mechanisms=mechanisms))
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

        lock = self._transport_key_lock
        if not lock.acquire(timeout=_TRANSPORT_KEY_WAIT_S):
            raise TokenBusy("The HSM is busy with other import tokens. Try again.")
        try:
            return self._call(generate, attempts=1, patience_s=_TRANSPORT_KEY_PATIENCE_S)
        finally:
            lock.release()

    def destroy_transport_key(self, key_id: str) -> bool:
        """Destroy a transport key; False if there was none."""

        def destroy(session: ck.Session) -> bool:
            with self._objects_lock:
                return importing.destroy(session, key_id)

        return self._call(destroy)

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

    def destroy_key(self, version_id: str) -> bool:
        """Destroy the object and verify that it is gone; False if there was none."""

        def destroy(session: ck.Session) -> bool:
            self._forget(version_id)
            if not self._is_there(session, version_id):
                return False
            with self._objects_lock:
                session.destroy(self._find(session, version_id))
            self._forget(version_id)
            if self._is_there(session, version_id):
                raise TokenUnavailable("The HSM says that it destroyed a key, and still has it. Run `hsmkms doctor`.")
            return True

        if self._call(destroy):
            return True
        # Nothing was there, which is also how a token looks that went away: only a fresh start and the sentinel tell.
        self._pool.reopen(self._pool.generation)
        if self._call(destroy):
            return True
        if not self.has_sentinel():
            raise TokenUnavailable(_OTHER_TOKEN)
        return False

    def seal(self, version: KeyVersion, dek: bytes, aad: Sequence[str]) -> bytes:
        """Frame and wrap `dek` (1 to 7,680 bytes) under `version`, bound to the AAD strings in their order."""
        framed = frame.pack(dek, frame.context_digest(version.id, aad))
        return self._on_key(version, lambda session, handle: session.seal(handle, framed))

    def open(self, version: KeyVersion, handle_id: str, sealed: bytes, aad: Sequence[str]) -> SecretBytes:
        """The DEK in `sealed`, whose ciphertext names `handle_id`. Raises UnprocessableCiphertext whatever is wrong."""
        if len(sealed) % 8 or not frame.HEADER_BYTES + 16 <= len(sealed) <= frame.MAX_FRAME_BYTES + 8:
            raise UnprocessableCiphertext

        def unwrap(session: ck.Session, handle: int) -> bytes:
            return self._open_surely(session, handle, sealed)

        framed = self._on_key(version, unwrap, input_is_ours=False)
        try:
            return SecretBytes(frame.unpack(framed, frame.context_digest(handle_id, aad)))
        except frame.FrameMismatch:
            raise UnprocessableCiphertext from None

    def random(self, length: int) -> SecretBytes:
        """Random bytes from the token."""
        return SecretBytes(self._call(lambda session: session.random(length)))

    def generate_signing_key(self, key_id: str) -> bytes:
        """Generate a P-256 key pair under `key_id`; the public key as PEM of a SubjectPublicKeyInfo."""

        def generate(session: ck.Session) -> bytes:
            with self._objects_lock:
                return signing.generate(session, key_id, fixed=self.capabilities.fixed_attributes)

        return self._call(generate, attempts=1)

    def sign(self, key_id: str, message: bytes) -> bytes:
        """ECDSA P-256 SHA-256 signature, r and s of 32 bytes each (RFC 7518 section 3.4).

        Raises SigningKeyMissing when no such key is on the token.
        """

        def sign(session: ck.Session) -> bytes:
            place = (self._pool.generation, key_id)
            if place not in self._signing_handles:
                # A search is linear in the objects of the token, so it is done once a generation.
                with self._objects_lock:
                    self._signing_handles = {place: signing.find(session, key_id)}
            return signing.sign(session, self._signing_handles[place], message)

        return self._call(sign, missing=SigningKeyMissing(key_id))

    def destroy_signing_key(self, key_id: str) -> None:
        """Destroy both halves of a signing key; none may be there."""

        def destroy(session: ck.Session) -> None:
            with self._objects_lock:
                signing.destroy(session, key_id)
                self._signing_handles = {}

        self._call(destroy)

    def has_mac_key(self) -> bool:
        """True once `make_mac_key` was called on this token."""

        def find(session: ck.Session) -> bool:
            try:
                with self._objects_lock:
                    integrity.find(session)
            except ObjectMissing:
                return False
            return True

        return self._call(find)

    def make_mac_key(self) -> None:
        """Generate the key that seals rights. Once a token, at `hsmkms init`."""

        def generate(session: ck.Session) -> None:
            with self._objects_lock:
                integrity.generate(session, fixed=self.capabilities.fixed_attributes)

        self._call(generate, attempts=1)

    def mac(self, message: bytes) -> bytes:
        """HMAC-SHA-256 of `message` under the key that seals rights: 32 bytes."""

        def compute(session: ck.Session) -> bytes:
            known, generation = self._mac_handle, self._pool.generation
            if known is None or known[0] != generation:
                with self._objects_lock:
                    known = self._mac_handle = (generation, integrity.find(session))
            return integrity.mac(session, known[1], message)

        return self._call(compute, missing=TokenUnavailable(_NO_MAC_KEY))

    def check(self) -> None:
        """Wrap and unwrap a canary. Raises TokenUnavailable when the token cannot."""
        try:
            self._probe()
        except TokenUnavailable:
            self.breaker.trip()
            raise
        self.breaker.close()

    def _probe(self) -> None:
        generation = self._pool.generation
        if self._canary_sings(fresh=True):
            return
        now = time.monotonic()
        if now >= self._check_reopens_at:
            # Anybody may ask for readiness, so this starts the module anew at most once a second.
            self._check_reopens_at = now + _CHECK_REOPENS_S
            self._pool.reopen(generation)
        if not self._canary_sings(fresh=True):
            raise TokenUnavailable(_UNAVAILABLE)

    def _consider(self) -> None:
        """A call failed although everything was opened anew: that it is the whole token, a canary decides."""
        if self._canary is None:
            # A token without a sentinel, as in a ceremony, or nobody asked it yet: nothing could close the breaker.
            return
        try:
            sings = self._canary_sings(fresh=True)
        except TokenBusy:
            return
        except TokenUnavailable:
            sings = False
        if not sings:
            self.breaker.trip()

    def verify_key(self, version: KeyVersion) -> None:
        """Look the object up, check its attributes and check value. Raises KeyMaterialMissing or TokenRefused."""
        with self._objects_lock:
            self._index.distrust(version.id)
        self._on_key(version, lambda *_: None)

    def list_keys(self) -> list[TokenObject]:
        """All wrapping keys on the token whose CKA_ID is a UUID and whose label is ours, except the sentinel."""
        return self._call(self._list_keys)

    def _list_keys(self, session: ck.Session) -> list[TokenObject]:
        objects = []
        with self._objects_lock:
            handles = session.find(AES_OBJECTS)
        for handle in handles:
            read = session.read(handle, (ck.CKA_ID, ck.CKA_LABEL, *templates.READ_BACK))
            raw, label = read.get(ck.CKA_ID, b""), read.get(ck.CKA_LABEL, b"").decode("utf-8", "replace")
            version_id = str(uuid.UUID(bytes=raw)) if len(raw) == 16 else ""
            if is_uuid(version_id) and label.startswith(templates.LABEL_PREFIX) and version_id != SENTINEL_ID:
                found = ck.as_bools(read, templates.REQUIRED)
                wrong = [templates.NAMES[kind] for kind, wanted in templates.REQUIRED.items() if found[kind] != wanted]
                objects.append(TokenObject(version_id, label, ", ".join(wrong) or None))
        return objects

    def _forget(self, version_id: str) -> None:
        with self._objects_lock:
            self._index.forget(version_id)

    def _find(self, session: ck.Session, version_id: str) -> int:
        with self._objects_lock:
            return self._index.look_up(session, self._pool.generation, version_id)

    def _call(
        self,
        act: Callable[[ck.Session], T],
        *,
        attempts: int = 2,
        missing: Unavailable | None = None,
        patience_s: float = 0,
    ) -> T:
        """Run `act`; when session, login or device was lost, open the token anew and run it once more. `missing` is
        what to say of an object that was not found even then, `patience_s` how long it may take beyond other calls."""
        self.breaker.require_closed()
        try:
            return self._attempt(act, attempts, missing, patience_s)
        except TokenUnavailable:
            self._consider()
            raise

    def _attempt(
        self, act: Callable[[ck.Session], T], attempts: int, missing: Unavailable | None, patience_s: float
    ) -> T:
        failure: Exception
        for _ in range(attempts):
            session = self._pool.take()
            session.patience_s = patience_s
            generation = self._pool.generation
            try:
                return act(session)
            except (CryptokiError, ObjectMissing, ObjectAmbiguous) as error:
                failure = error
            finally:
                self._pool.give(session)
            self._pool.reopen(generation)
        raise _explain(failure, missing) from failure

    def _on_key(self, version: KeyVersion, act: Callable[[ck.Session, int], T], *, input_is_ours: bool = True) -> T:
        """Run `act` with the handle of `version`: again after a search, and again after a fresh start."""
        if self.breaker.is_open:
            self.breaker.require_closed()
        if time.monotonic() < self._missing_until.get(version.id, 0):
            raise KeyMaterialMissing(_MISSING)
        try:
            return self._attempt_on_key(version, act, input_is_ours=input_is_ours)
        except TokenUnavailable:
            self._consider()
            raise

    def _attempt_on_key(self, version: KeyVersion, act: Callable[[ck.Session, int], T], *, input_is_ours: bool) -> T:
        failure: Exception
        for last in (False, False, True):
            session = self._pool.take()
            generation = self._pool.generation
            try:
                return act(session, self._resolve(session, generation, version))
            except (CryptokiError, ObjectMissing, ObjectAmbiguous) as error:
                failure = error
            finally:
                self._pool.give(session)
            if not input_is_ours and self._is_bad_input(failure):
                raise UnprocessableCiphertext from failure
            if not last:
                self._recover(failure, generation, version)
        if isinstance(failure, ObjectMissing):
            raise self._explain_missing(version) from failure
        raise _explain(failure) from failure

    def _resolve(self, session: ck.Session, generation: int, version: KeyVersion) -> int:
        handle = self._index.trusted(generation, version)
        if handle is not None:
            return handle
        with self._objects_lock:
            return self._index.resolve(session, generation, version)

    def _is_bad_input(self, failure: Exception) -> bool:
        """Whether the blob is to blame; in doubt a canary tells."""
        if not isinstance(failure, CryptokiError):
            return False
        if failure.meaning is not Meaning.DOUBTFUL:
            return failure.meaning is Meaning.DATA
        if not self._canary_sings():
            return False
        if time.monotonic() < self._in_doubt_until:
            # The device fails now and then, so that this ciphertext is bad is not proved; nor is it by opening anew.
            raise TokenUnavailable(_UNAVAILABLE) from failure
        return True

    def _open_surely(self, session: ck.Session, handle: int, sealed: bytes) -> bytes:
        """Bad input fails every time; a device that fails now and then does not, and is in doubt from then on."""
        try:
            return session.open(handle, sealed)
        except CryptokiError as error:
            if error.meaning is not Meaning.DOUBTFUL:
                raise
            failure = error
        for _ in range(_DOUBTFUL_AGAIN):
            try:
                opened = session.open(handle, sealed)
            except CryptokiError as error:
                if error.returned != failure.returned:
                    raise
            else:
                self._in_doubt_until = time.monotonic() + _IN_DOUBT_S
                return opened
        raise failure

    def _recover(self, failure: Exception, generation: int, version: KeyVersion) -> None:
        """Make another try worth it. The failing session is home already."""
        if isinstance(failure, CryptokiError) and failure.meaning is Meaning.OBJECT:
            # Destroyed and made again by another process, or gone: a search tells, without a fresh start.
            self._forget(version.id)
            return
        self._pool.reopen(generation)

    def _explain_missing(self, version: KeyVersion) -> HsmkmsError:
        """After a fresh start an object was not found: it alone is gone if the sentinel is there beside it.

        Asked twice, with another fresh start between: a token that goes away while the module reads its objects has
        some of them and not others.
        """
        for again in (False, True):
            if again:
                self._pool.reopen(self._pool.generation)
            ids = self._call(self._object_ids)
            if templates.object_id(SENTINEL_ID) not in ids or templates.object_id(version.id) in ids:
                return TokenUnavailable(_OTHER_TOKEN)
        # A fresh start may take half a second on a large token, so a lost key may not demand one with every request.
        self._missing_until = {version.id: time.monotonic() + _MISSING_VALID_S}
        return KeyMaterialMissing(_MISSING)

    def _object_ids(self, session: ck.Session) -> set[bytes]:
        """CKA_ID of every AES object, by one search: two may be answered by a token that went away in between."""
        with self._objects_lock:
            return {session.read(handle, (ck.CKA_ID,)).get(ck.CKA_ID, b"") for handle in session.find(AES_OBJECTS)}

    def _is_there(self, session: ck.Session, version_id: str) -> bool:
        try:
            self._find(session, version_id)
        except ObjectMissing:
            return False
        return True

    def _canary_sings(self, *, fresh: bool = False) -> bool:
        """True if the token opened a known good blob just now, or within the last 50 ms: clients can provoke this.
        `fresh` has the blob made anew, now."""
        now = time.monotonic()
        if now < self._canary_good_until and not fresh:
            return True
        session = self._pool.take()
        try:
            generation = self._pool.generation
            handle = self._find(session, SENTINEL_ID)
            if fresh or self._canary is None or self._canary[0] != generation:
                self._canary = (generation, session.seal(handle, _CANARY_FRAME))
            sang = session.open(handle, self._canary[1]) == _CANARY_FRAME
        except (CryptokiError, ObjectMissing, ObjectAmbiguous):
            return False
        finally:
            self._pool.give(session)
        if sang:
            self._canary_good_until = now + _CANARY_VALID_S
        return sang


def _explain(failure: Exception, missing: Unavailable | None = None) -> HsmkmsError:
    """What a second failure proved."""
    if isinstance(failure, ObjectAmbiguous):
        return TokenRefused("The token holds several keys under one CKA_ID. Remove the ones that are not yours.")
    return missing if missing is not None and isinstance(failure, ObjectMissing) else TokenUnavailable(_UNAVAILABLE)
