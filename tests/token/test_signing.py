"""Signatures and random bytes of the token, judged by `cryptography`."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from hsmkms.domain.ids import new_id
from hsmkms.errors import TokenUnavailable
from hsmkms.token import cryptoki as ck
from hsmkms.token import integrity, signing
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool
from tests.support.deployment import State
from tests.token.conftest import Cable


def verify(public_pem: bytes, signature: bytes, message: bytes) -> None:
    """Raise InvalidSignature unless it is r and s, 32 bytes each (RFC 7518 section 3.4), of that key."""
    public = load_pem_public_key(public_pem)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert isinstance(public.curve, ec.SECP256R1)
    assert len(signature) == 64
    r, s = (int.from_bytes(half) for half in (signature[:32], signature[32:]))
    public.verify(utils.encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))


def test_signature_verifies(token: Token, pool: SessionPool) -> None:
    """Many, so that some have an r or s that begins with a zero byte; also after the module was opened anew."""
    key_id = new_id()
    public = token.generate_signing_key(key_id)
    for number in range(600):
        message = number.to_bytes(2)
        verify(public, token.sign(key_id, message), message)
    pool.reopen(pool.generation)
    verify(public, token.sign(key_id, b"later"), b"later")


def test_signature_is_of_this_message_and_key(token: Token) -> None:
    """Two keys in turn: a remembered handle is never used for the other one."""
    ids = [new_id(), new_id()]
    publics = [token.generate_signing_key(key_id) for key_id in ids]
    for _ in range(3):
        for place in (0, 1):
            signature = token.sign(ids[place], b"message")
            verify(publics[place], signature, b"message")
            with pytest.raises(InvalidSignature):
                verify(publics[1 - place], signature, b"message")
            with pytest.raises(InvalidSignature):
                verify(publics[place], signature, b"massage")


def test_unknown_signing_key_is_said_to_be_missing(token: Token) -> None:
    with pytest.raises(TokenUnavailable, match=r"The signing key .* is not on the token"):
        token.sign(new_id(), b"message")


def test_lost_keys_open_the_module_anew_at_a_rate(token: Token, pool: SessionPool) -> None:
    """Each log-in asks for both: the key that signs and the one that seals rights."""
    key_id = new_id()
    token.generate_signing_key(key_id)
    if not token.has_mac_key():
        token.make_mac_key()
    with pool.session() as session:
        signing.destroy(session, key_id)
        session.destroy(integrity.find(session))
    calls: tuple[Callable[[], object], ...] = (
        lambda: token.sign(key_id, b"message"),
        lambda: token.signing_public_key(key_id),
        lambda: token.mac(b"message"),
    )
    generation, began = pool.generation, time.monotonic()
    for _ in range(5):
        for call in calls:
            with pytest.raises(TokenUnavailable, match="is not on the token"):
                call()
    assert pool.generation - generation <= 2 * (time.monotonic() - began + 1)
    assert token.random(8)


@pytest.mark.parametrize("how", ["noticed", "after an outage"])
def test_a_lost_key_that_is_back_is_used_at_once(
    state: State, token: Token, pool: SessionPool, cable: Cable, how: str
) -> None:
    """Said to be missing a moment ago, and asked for again before a fresh start is due."""
    before = set(state.path.glob("tokens/*/*.object"))
    key_id = new_id()
    token.generate_signing_key(key_id)
    lost = set(state.path.glob("tokens/*/*.object")) - before
    for file in lost:
        file.rename(file.with_suffix(".lost"))
    pool.reopen(pool.generation)
    with pytest.raises(TokenUnavailable, match="is not on the token"):
        token.sign(key_id, b"message")
    if how == "after an outage":
        cable.pull()
        with pool.session() as session:
            assert session.find({ck.CKA_CLASS: ck.CKO_SECRET_KEY}) == []
        cable.plug()
    for file in lost:
        file.with_suffix(".lost").rename(file)
    if how == "noticed":
        generation = next(iter(lost)).with_name("generation")
        number = int.from_bytes(generation.read_bytes(), "big") + 1
        generation.write_bytes(number.to_bytes(8, "big"))
    assert token.sign(key_id, b"message")


def test_none_to_destroy(pool: SessionPool) -> None:
    """Also on a token without a sentinel, as NSS's is here: a ceremony that was cut off may have made no key."""
    Token(pool).destroy_signing_key(new_id())


def test_random_bytes_differ(token: Token) -> None:
    drawn = [token.random(length) for length in (1, 32, 4_096) for _ in range(2)]
    assert [len(one) for one in drawn] == [1, 1, 32, 32, 4_096, 4_096]
    assert drawn[2].reveal() != drawn[3].reveal()
    assert len(set(drawn[4].reveal())) == 256
