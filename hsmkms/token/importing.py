"""Keys on their way into the token: RSA pairs that carry them, and C_UnwrapKey or, where a token cannot, our own OAEP.

In the token: C_UnwrapKey from the OAEP text into a session object that may only decrypt, which proves the nonce; then
again into the token object that may only wrap and unwrap. So the key's bytes never are in this process.

By way of the process, for a token without OAEP SHA-256 (SoftHSM 2.6.1): the token does raw RSA, and the padding of
RFC 8017 section 7.1.2 is removed here, without a branch or an answer that depends on which check failed. Whatever
fails ends as a wrong nonce does, under a random key: there is no oracle (Manger, CRYPTO 2001).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from hsmkms.domain.check_values import CheckValues
from hsmkms.domain.ids import new_id
from hsmkms.domain.importing import ROOT_KEY_BYTES, TRANSPORT_KEY_BITS, Oaep, WrappedMaterial
from hsmkms.errors import WrappedKeyUnreadable
from hsmkms.token import cryptoki as ck
from hsmkms.token import describing, templates
from hsmkms.token.objects import ObjectMissing
from hsmkms.token.returned import CryptokiError
from hsmkms.token.selftest import refuses

_MECHANISMS: Final = {
    Oaep.SHA_1: (ck.CKM_SHA_1, ck.CKG_MGF1_SHA1),
    Oaep.SHA_256: (ck.CKM_SHA256, ck.CKG_MGF1_SHA256),
}
_HASHES: Final[dict[Oaep, hashes.HashAlgorithm]] = {
    # OAEP does not need what SHA-1 has lost (RFC 8017 section 8.1 and appendix B.1).
    Oaep.SHA_1: hashes.SHA1(),  # noqa: S303
    Oaep.SHA_256: hashes.SHA256(),
}
_NAMES: Final = {Oaep.SHA_1: "sha1", Oaep.SHA_256: "sha256"}
_EXPONENT: Final = 65_537
_PROBE_BITS: Final = 2_048
_NO_AES_KEY: Final = frozenset({0x62, 0x70})
"""CKR_KEY_SIZE_RANGE, and what SoftHSM 2.6.1 says to a key of another length than AES has: CKR_MECHANISM_INVALID, of a
mechanism that `probe` saw."""
_UNREADABLE: Final = "This is no AES key wrapped to the key pair that was made for it, under the hash of the plan."
_MAX_NONCE_BYTES: Final = 512
"""Of an encrypted nonce; that of an import token has 28 or 16."""
_IV_BYTES: Final = {Oaep.SHA_256: 12, Oaep.SHA_1: 16}


class NonceUnreadable(Exception):
    """Key, IV or encrypted nonce do not fit each other or the transport key; which of them is not said."""


class NonceWrong(Exception):
    """The nonce was read, and is not that of the import token."""


@dataclass(frozen=True, slots=True)
class ImportSupport:
    """What a token can do: unwrap inside, and raw RSA for the way round."""

    inside: frozenset[Oaep]
    raw: bool


def probe(session: ck.Session, *, mechanisms: frozenset[int]) -> ImportSupport:
    """Try each way with a throw-away pair: a mechanism list does not tell which hash its OAEP takes."""
    if ck.CKM_RSA_PKCS_KEY_PAIR_GEN not in mechanisms:
        return ImportSupport(frozenset(), raw=False)
    public, private = _generate(session, new_id(), "hsmkms self-test", _PROBE_BITS, inside=True, raw=True)
    try:
        key = _public_key(session, public)
        inside = {one for one in Oaep if _unwraps(session, private, key, one)}
        nonce_mechanisms = {Oaep.SHA_1: ck.CKM_AES_CBC_PAD, Oaep.SHA_256: ck.CKM_AES_GCM}
        known = frozenset(one for one in inside if nonce_mechanisms[one] in mechanisms)
        return ImportSupport(known, raw=ck.CKM_RSA_X_509 in mechanisms)
    finally:
        session.destroy(private)
        session.destroy(public)


def generate_transport_key(session: ck.Session, key_id: str, owner: str, *, inside: bool, raw: bool) -> bytes:
    """Make an RSA pair as session objects, which may take seconds; the caller then calls `keep`. PEM of the public key.

    `inside` and `raw` say what the private key may be used for.
    """
    public, _ = _generate(session, key_id, templates.label_of(owner), TRANSPORT_KEY_BITS, inside=inside, raw=raw)
    return _public_key(session, public).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def keep(session: ck.Session, key_id: str) -> None:
    """Copy the private key of a pair onto the token, and drop the session objects."""
    here: dict[int, ck.Value] = {ck.CKA_ID: templates.object_id(key_id), ck.CKA_TOKEN: False}
    for kind in (ck.CKO_PRIVATE_KEY, ck.CKO_PUBLIC_KEY):
        for handle in session.find({**here, ck.CKA_CLASS: kind}):
            if kind == ck.CKO_PRIVATE_KEY:
                session.copy_object(handle, {ck.CKA_TOKEN: True})
            session.destroy(handle)


def private_of(key_id: str) -> ck.Template:
    """What a transport key is found by."""
    return {
        ck.CKA_CLASS: ck.CKO_PRIVATE_KEY,
        ck.CKA_KEY_TYPE: ck.CKK_RSA,
        ck.CKA_TOKEN: True,
        ck.CKA_ID: templates.object_id(key_id),
    }


def find(session: ck.Session, key_id: str, owner: str) -> int:
    """Handle of a transport key. Raises ObjectMissing when there is not exactly one of this owner."""
    handles = session.find(private_of(key_id))
    if len(handles) != 1 or session.read(handles[0], (ck.CKA_LABEL,)).get(ck.CKA_LABEL) != _label(owner):
        raise ObjectMissing
    return handles[0]


def destroy(session: ck.Session, key_id: str) -> bool:
    """Destroy a transport key; False if there was none."""
    handles = session.find(private_of(key_id))
    for handle in handles:
        session.destroy(handle)
    return bool(handles)


def unwrap_inside(
    session: ck.Session, private: int, material: WrappedMaterial, nonce: bytes, template: ck.Template
) -> int:
    """The token object of a key that came for a nonce; nothing of it was in this process. Raises NonceUnreadable,
    NonceWrong, CryptokiError."""
    oaep = ck.oaep(*_MECHANISMS[material.oaep])
    try:
        proof = session.unwrap(oaep, private, material.wrapped, templates.nonce_key())
    except CryptokiError as error:
        if not error.may_be_input:
            raise
        proof = session.generate_key(ck.CKM_AES_KEY_GEN, {**templates.nonce_key(), ck.CKA_VALUE_LEN: 32})
    try:
        _require_nonce(session, proof, material, nonce)
    finally:
        session.destroy(proof)
    return session.unwrap(oaep, private, material.wrapped, template)


@contextlib.contextmanager
def unwrapped_here(session: ck.Session, private: int, material: WrappedMaterial, nonce: bytes) -> Iterator[bytearray]:
    """The bytes of a key that came for a nonce, wiped when the block ends. Raises NonceUnreadable, NonceWrong,
    CryptokiError."""
    with _decoded(session, private, material.wrapped, material.oaep) as (value, _):
        proof = session.create_from(templates.nonce_key(), value)
        try:
            _require_nonce(session, proof, material, nonce)
        finally:
            session.destroy(proof)
        yield value


@contextlib.contextmanager
def opened_here(session: ck.Session, private: int, wrapped: bytes, oaep: Oaep) -> Iterator[bytearray]:
    """The bytes of a key that came without a nonce, wiped when the block ends. Raises WrappedKeyUnreadable.

    This tells whether the padding was right, so it is for people at the token and never for a request.
    """
    with _decoded(session, private, wrapped, oaep) as (value, good):
        if not good:
            raise WrappedKeyUnreadable(_UNREADABLE)
        yield value


def open_inside(session: ck.Session, private: int, wrapped: bytes, oaep: Oaep, template: ck.Template) -> int:
    """The object of a key that came without a nonce; nothing of it was in this process. Raises WrappedKeyUnreadable."""
    try:
        return session.unwrap(ck.oaep(*_MECHANISMS[oaep]), private, wrapped, template)
    except CryptokiError as error:
        if not error.may_be_input and error.returned not in _NO_AES_KEY:
            raise
        raise WrappedKeyUnreadable(_UNREADABLE) from error


def checked_inside(session: ck.Session, private: int, wrapped: bytes, oaep: Oaep) -> tuple[CheckValues, int | None]:
    """Check values and, if the token tells it, length in bytes of such a key. Raises WrappedKeyUnreadable."""
    handle = open_inside(session, private, wrapped, oaep, templates.check_key())
    told = session.read(handle, (ck.CKA_VALUE_LEN,)).get(ck.CKA_VALUE_LEN, b"")
    try:
        return describing.check_values_of(session, handle), int.from_bytes(told, sys.byteorder) or None
    except CryptokiError as error:
        # SoftHSM 2.6.1 unwraps 33 bytes into an "AES key" and finds out when it is used.
        if error.returned not in _NO_AES_KEY:
            raise
        raise WrappedKeyUnreadable(_UNREADABLE) from error


@contextlib.contextmanager
def _decoded(session: ck.Session, private: int, wrapped: bytes, oaep: Oaep) -> Iterator[tuple[bytearray, bool]]:
    """The key in an OAEP text, or a random one, and which of the two it is; wiped when the block ends."""
    try:
        encoded = session.decrypt(ck.Mechanism(ck.CKM_RSA_X_509), private, wrapped)
    except CryptokiError as error:
        if not error.may_be_input:
            raise
        encoded = bytearray(TRANSPORT_KEY_BITS // 8)
    spare = bytearray(session.random(32))
    value = bytearray()
    try:
        value = oaep_decode(encoded, _NAMES[oaep], spare)
        yield value, not hmac.compare_digest(value, spare)
    finally:
        for secret in (encoded, spare, value):
            secret[:] = bytes(len(secret))


def oaep_decode(encoded: bytearray, hash_name: str, spare: bytearray) -> bytearray:
    """EME-OAEP decoding (RFC 8017 section 7.1.2 step 3) with an empty label: the message, or, if anything is wrong with
    it or it is no AES key, `spare`. `encoded` is as long as the modulus; what is worked on is overwritten."""
    h = hashlib.new(hash_name).digest_size
    seed, block = encoded[1 : 1 + h], encoded[1 + h :]
    _unmask(seed, block, hash_name)
    _unmask(block, seed, hash_name)
    bad = encoded[0]
    for found, wanted in zip(block[:h], hashlib.new(hash_name).digest(), strict=True):
        bad |= found ^ wanted
    start, looking = 0, 1
    for place in range(h, len(block)):
        one, zero = _equal(block[place], 1), _equal(block[place], 0)
        start |= place * (looking & one)
        bad |= looking & (one ^ 1) & (zero ^ 1)
        looking &= one ^ 1
    bad |= looking
    message = block[start + 1 :]
    good = _equal(min(bad, 255), 0) & int(len(message) in ROOT_KEY_BYTES)
    chosen = bytearray((spare, message)[good])
    for secret in (seed, block, message):
        secret[:] = bytes(len(secret))
    return chosen


def _equal(value: int, wanted: int) -> int:
    """1 if two bytes are equal, else 0, without a branch."""
    return ((value ^ wanted) - 1) >> 8 & 1


def _unmask(target: bytearray, source: bytearray, hash_name: str) -> None:
    """XOR MGF1 of `source` onto `target` (RFC 8017 appendix B.2.1), leaving a copy of neither in memory."""
    size = hashlib.new(hash_name).digest_size
    for counter, start in enumerate(range(0, len(target), size)):
        digest = hashlib.new(hash_name, source)
        digest.update(counter.to_bytes(4))
        for place, byte in zip(range(start, len(target)), digest.digest(), strict=False):
            target[place] ^= byte


def _require_nonce(session: ck.Session, key: int, material: WrappedMaterial, nonce: bytes) -> None:
    if len(material.iv) != _IV_BYTES[material.oaep] or len(material.encrypted_nonce) > _MAX_NONCE_BYTES:
        raise NonceUnreadable
    how = ck.gcm(material.iv) if material.oaep is Oaep.SHA_256 else ck.cbc_pad(material.iv)
    try:
        found = session.decrypt(how, key, material.encrypted_nonce)
    except CryptokiError as error:
        if not error.may_be_input and error.returned not in _NO_AES_KEY:
            raise
        raise NonceUnreadable from error
    if not hmac.compare_digest(bytes(found), nonce):
        raise NonceWrong


def _unwraps(session: ck.Session, private: int, public: rsa.RSAPublicKey, oaep: Oaep) -> bool:
    algorithm = _HASHES[oaep]
    wrapped = public.encrypt(bytes(range(32)), padding.OAEP(padding.MGF1(algorithm), algorithm, None))
    how = ck.oaep(*_MECHANISMS[oaep])
    return not refuses(lambda: session.destroy(session.unwrap(how, private, wrapped, templates.nonce_key())))


def _generate(session: ck.Session, key_id: str, label: str, bits: int, *, inside: bool, raw: bool) -> tuple[int, int]:
    public, private = templates.transport_key_pair(key_id, label, bits, _EXPONENT, inside=inside, raw=raw)
    return session.generate_key_pair(ck.CKM_RSA_PKCS_KEY_PAIR_GEN, public, private)


def _public_key(session: ck.Session, handle: int) -> rsa.RSAPublicKey:
    modulus = session.read(handle, (ck.CKA_MODULUS,))[ck.CKA_MODULUS]
    return rsa.RSAPublicNumbers(_EXPONENT, int.from_bytes(modulus)).public_key()


def _label(owner: str) -> bytes:
    return templates.label_of(owner).encode()
