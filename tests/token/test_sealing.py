"""Seal and open on a real token: every length, every AAD, every changed byte."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from hsmkms.domain.ids import new_id
from hsmkms.domain.keys import KeyVersion
from hsmkms.errors import UnprocessableCiphertext
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool

DEK = bytes(range(32))
AAD = ("volume-1", "région")


@pytest.mark.parametrize("length", [*range(1, 65), 4_095, 4_096, 7_500])
def test_every_length_comes_back(token: Token, key: KeyVersion, length: int) -> None:
    dek = os.urandom(length)
    sealed = token.seal(key, dek, AAD)
    assert token.open(key, key.id, sealed, AAD).reveal() == dek


@pytest.mark.parametrize(
    "other",
    [
        (),
        ("volume-1",),
        ("volume-1région",),
        ("région", "volume-1"),
        ("volume-1", "région", ""),
        ("volume-1", "region"),
    ],
)
def test_other_aad_is_refused(token: Token, key: KeyVersion, other: tuple[str, ...]) -> None:
    sealed = token.seal(key, DEK, AAD)
    with pytest.raises(UnprocessableCiphertext):
        token.open(key, key.id, sealed, other)


def test_every_changed_byte_is_refused(token: Token, pool: SessionPool, key: KeyVersion) -> None:
    """And none of them is taken for a broken device: the module is not opened anew."""
    sealed = token.seal(key, DEK, AAD)
    generation = pool.generation
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1 << (place % 8)
        with pytest.raises(UnprocessableCiphertext):
            token.open(key, key.id, bytes(changed), AAD)
    assert pool.generation == generation


def test_every_truncation_is_refused(token: Token, pool: SessionPool, key: KeyVersion) -> None:
    sealed = token.seal(key, DEK, AAD)
    generation = pool.generation
    for length in range(len(sealed)):
        with pytest.raises(UnprocessableCiphertext):
            token.open(key, key.id, sealed[:length], AAD)
    with pytest.raises(UnprocessableCiphertext):
        token.open(key, key.id, sealed + bytes(8), AAD)
    assert pool.generation == generation


def test_other_key_is_refused(token: Token, make_key: Callable[[], KeyVersion]) -> None:
    mine, other = make_key(), make_key()
    with pytest.raises(UnprocessableCiphertext):
        token.open(other, mine.id, token.seal(mine, DEK, AAD), AAD)


def test_other_handle_is_refused(token: Token, make_key: Callable[[], KeyVersion]) -> None:
    """The frame is bound to the version id that the ciphertext names."""
    mine, other = make_key(), make_key()
    with pytest.raises(UnprocessableCiphertext):
        token.open(mine, other.id, token.seal(mine, DEK, AAD), AAD)


def test_plain_key_wrap_is_not_ours(token: Token, pool: SessionPool, key: KeyVersion) -> None:
    """A blob that the same root key wrapped without our frame does not parse as one."""
    with pool.session() as session:
        blob = session.seal(token._index.look_up(session, pool.generation, key.id), bytes(48))
    with pytest.raises(UnprocessableCiphertext):
        token.open(key, key.id, blob, ())


def test_random_and_signature(token: Token) -> None:
    assert token.random(32).reveal() != token.random(32).reveal()
    key_id = new_id()
    public = load_pem_public_key(token.generate_signing_key(key_id))
    assert isinstance(public, ec.EllipticCurvePublicKey)
    signature = token.sign(key_id, b"message")
    r, s = (int.from_bytes(half) for half in (signature[:32], signature[32:]))
    public.verify(utils.encode_dss_signature(r, s), b"message", ec.ECDSA(hashes.SHA256()))
