"""The token room's face: root keys by version id, seal and open, random bytes, signatures, MACs, health."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from hsmkms.domain import frame
from hsmkms.domain.check_values import CheckValues
from hsmkms.domain.ids import is_uuid
from hsmkms.domain.keys import KeyVersion
from hsmkms.domain.secrets import SecretBytes
from hsmkms.errors import SigningKeyMissing, TokenUnavailable, UnprocessableCiphertext
from hsmkms.token import cryptoki as ck
from hsmkms.token import describing, integrity, signing, templates
from hsmkms.token.carrying import CarryingToken
from hsmkms.token.objects import AES_OBJECTS, ObjectMissing, aes_object, check_value
from hsmkms.token.recovery import OTHER_TOKEN, SENTINEL_ID
from hsmkms.token.sessions import SessionPool

_NO_MAC_KEY: Final = "The key that seals rights is not on the token. Run `hsmkms doctor`."

_PROOF: Final = b"hsmkms: a new key is proved"
_NOT_PROVED: Final = "The HSM does not open what it sealed with a new key, so the key is not used. Try again."

_LIST_PATIENCE_S: Final = 120.0
"""One call of C_FindObjectsInit may look at a hundred thousand objects."""

_INLINE_BELOW_S: Final = 0.001
"""A token that answers faster than this is called on the event loop: handing a call of 50 µs to a thread costs more
than the call. A slower one, such as an HSM in the network, gets threads so that its wait is nobody else's."""


@dataclass(frozen=True, slots=True)
class TokenObject:
    """A wrapping key on the token, as `doctor` sees it. `unsafe` says what is wrong with its attributes, or is None."""

    version_id: str
    label: str
    unsafe: str | None


@dataclass(frozen=True, slots=True)
class TokenStatus:
    """A token as one process sees it. `away`: callers are told so; `openings`: how often its module was opened."""

    address: str
    module: str
    label: str | None
    serial: str | None
    firmware: str | None
    proved: bool
    refused: bool
    away: bool
    pin_refused: str | None
    sessions: int
    sessions_lent: int
    openings: int


class Token(CarryingToken):
    """One token, opened and proved. Methods raise TokenUnavailable or TokenBusy when the device does not answer."""

    def __init__(self, pool: SessionPool, part: str = "primary") -> None:
        """Prove the token. Raises TokenRefused when it lacks a mechanism or does not keep its keys."""
        self._signing_handles: dict[tuple[int, str], int] = {}
        self._mac_handle: tuple[int, int] | None = None
        super().__init__(pool, part)

    @property
    def parts(self) -> dict[str, Token]:
        """The tokens that this is made of, by their part in it: the primary alone, unless there is a standby."""
        return {"primary": self}

    @property
    def is_usable(self) -> bool:
        """Whether it was proved, and not refused afterwards."""
        return self.is_proved and not self.breaker.is_refused

    @property
    def is_away(self) -> bool:
        """Whether keys can be neither made nor destroyed, as far as is known: this asks no token."""
        return any(part.breaker.is_open for part in self.parts.values())

    @property
    def open_sessions(self) -> int:
        """How many sessions there are with this token, without those of a standby."""
        return self._pool.open_sessions

    @property
    def lent_sessions(self) -> int:
        """How many of them somebody has."""
        return self._pool.lent_sessions

    @property
    def call_s(self) -> float:
        """Median seconds of one seal, as the self-test found; infinite before it."""
        return self.capabilities.call_s

    @property
    def is_fast(self) -> bool:
        """Whether its calls belong on the event loop, by what the self-test measured."""
        return self.call_s < _INLINE_BELOW_S

    def status(self) -> dict[str, TokenStatus]:
        """How each part is, from memory: this asks no token."""
        return {part: token.describe() for part, token in self.parts.items()}

    def describe(self) -> TokenStatus:
        """How this token is."""
        pool = self._pool
        info = pool.info if self.is_proved else None
        return TokenStatus(
            address=str(pool.address),
            module=pool.address.module,
            label=None if info is None else info.label,
            serial=None if info is None else info.serial,
            firmware=None if info is None else info.firmware,
            proved=self.is_proved,
            refused=self.breaker.is_refused,
            away=self.breaker.is_open,
            pin_refused=pool.guard.refusal,
            sessions=pool.open_sessions,
            sessions_lent=pool.lent_sessions,
            openings=pool.generation,
        )

    def has_key(self, version_id: str) -> bool:
        """Whether a search finds an object under this id; its attributes are not looked at."""
        return self._call(lambda session: self._is_there(session, version_id))

    def check_value_of(self, version_id: str) -> bytes:
        """The check value of an object (`objects.check_value`)."""
        return self._call(lambda session: check_value(session, self._find(session, version_id)))

    def prove_key(self, version: KeyVersion) -> None:
        """Wrap and unwrap with a new key, before anybody is told of it. Raises TokenUnavailable when that fails."""
        try:
            opened = Token.open(self, version, version.id, Token.seal(self, version, _PROOF, ()), ())
        except UnprocessableCiphertext as error:
            raise TokenUnavailable(_NOT_PROVED) from error
        if opened.reveal() != _PROOF:
            raise TokenUnavailable(_NOT_PROVED)

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

    def mechanism_names(self) -> list[str]:
        """What C_GetMechanismList says."""
        return describing.mechanism_names(self.mechanisms)

    def check_values(self, value: bytearray) -> CheckValues | None:
        """Check values of an AES key, computed in the token; None where it cannot."""
        if not describing.has_check_mechanisms(self.mechanisms):
            return None
        return self._call(lambda session: describing.check_values(session, value))

    def describe_key(self, version_id: str) -> describing.KeyDescription:
        """A root key's object as it is read back."""
        return self._call(lambda session: describing.describe(session, self._find(session, version_id)))

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

        found = self._destroyed(destroy, aes_object(version_id))
        if not found and self._sentinel_check is None:
            raise TokenUnavailable(OTHER_TOKEN)
        return found

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

    def has_signing_key(self, key_id: str) -> bool:
        """Whether the private key is there."""

        def find(session: ck.Session) -> bool:
            try:
                with self._objects_lock:
                    signing.find(session, key_id)
            except ObjectMissing:
                return False
            return True

        return self._call(find)

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

    def signing_public_key(self, key_id: str) -> bytes:
        """PEM of a signing key's public half. Raises SigningKeyMissing."""

        def read(session: ck.Session) -> bytes:
            with self._objects_lock:
                return signing.public_key(session, key_id)

        return self._call(read, missing=SigningKeyMissing(key_id))

    def destroy_signing_key(self, key_id: str) -> None:
        """Destroy both halves of a signing key; none may be there."""

        def destroy(session: ck.Session) -> bool:
            with self._objects_lock:
                found = signing.destroy(session, key_id)
                self._signing_handles = {}
            return found

        self._destroyed(destroy, signing.private_of(key_id))

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

    def verify_key(self, version: KeyVersion) -> None:
        """Look the object up, check its attributes and check value. Raises KeyMaterialMissing or TokenRefused."""
        with self._objects_lock:
            self._index.distrust(version.id)
        self._on_key(version, lambda *_: None)

    def list_keys(self) -> list[TokenObject]:
        """All wrapping keys on the token whose CKA_ID is a UUID and whose label is ours, except the sentinel."""
        return self._call(self._list_keys, patience_s=_LIST_PATIENCE_S)

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
