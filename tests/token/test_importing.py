"""Keys that are brought to a token: each way in, what stays on it, and that nothing tells why a key was refused."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from hypothesis import given
from hypothesis import strategies as st

from hsmkms.ceremony import components
from hsmkms.domain.ids import new_id
from hsmkms.domain.importing import ImportToken, Oaep, Passage, WrappedMaterial, transport_owner
from hsmkms.domain.keys import KeyVersion
from hsmkms.domain.secrets import SecretBytes
from hsmkms.errors import ImportTokenExpired, IncorrectNonce, IncorrectNonceIv, TokenBusy, TokenUnavailable
from hsmkms.token import carrying, templates
from hsmkms.token import cryptoki as ck
from hsmkms.token.importing import oaep_decode
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool
from tests.support.bringing import Fetched
from tests.support.deployment import State
from tests.token.conftest import Cable, pkcs11_tool
from tests.token.test_objects import described
from tests.token.test_token_away import eventually

OWNER = "the owner"
SOON_S = 30
NOW = datetime(2030, 1, 1, tzinfo=UTC)
Bring = Callable[[WrappedMaterial], KeyVersion]


@pytest.fixture
def import_token(token: Token) -> ImportToken:
    instance_id, key_id = new_id(), new_id()
    pem = token.generate_transport_key(key_id, transport_owner(instance_id), by_process=True)
    return ImportToken(key_id, instance_id, pem, os.urandom(12), NOW, NOW + timedelta(hours=1), 1, 0)


@pytest.fixture
def fetched(import_token: ImportToken) -> Fetched:
    return Fetched(import_token.public_pem, import_token.nonce)


@pytest.fixture
def bring(token: Token, import_token: ImportToken) -> Bring:
    return lambda material: token.import_key(new_id(), OWNER, NOW, material, import_token)


def test_what_softhsm_can(token: Token) -> None:
    assert token.passage(Oaep.SHA_1) is Passage.TOKEN
    assert token.passage(Oaep.SHA_256) is Passage.PROCESS


@pytest.mark.parametrize("length", [16, 24, 32])
@pytest.mark.parametrize("oaep", Oaep)
def test_a_brought_key_wraps_as_it_does_elsewhere(
    token: Token, bring: Bring, fetched: Fetched, pool: SessionPool, state: State, oaep: Oaep, length: int
) -> None:
    """RFC 3394 under the same bytes gives the same; and an outside program sees a key that cannot be read."""
    material = os.urandom(length)
    version = bring(fetched.bring(material, oaep))
    with pool.session() as session:
        (handle,) = session.find({ck.CKA_ID: templates.object_id(version.id), ck.CKA_TOKEN: True})
        assert session.seal(handle, bytes(32)) == aes_key_wrap(material, bytes(32))
    assert version.check_value == aes_key_wrap(material, bytes(16))[:8]
    found = described(state, "secrkey", version.id)
    assert (found["access"], found["usage"]) == ({"sensitive"}, {"wrap", "unwrap"})
    sealed = token.seal(version, b"a DEK", [])
    assert token.open(version, version.id, sealed, []).reveal() == b"a DEK"


def test_a_key_in_clear(token: Token, state: State) -> None:
    material = os.urandom(32)
    version = token.create_key(new_id(), OWNER, NOW, SecretBytes(material))
    assert version.check_value == aes_key_wrap(material, bytes(16))[:8]
    assert described(state, "secrkey", version.id)["access"] == {"sensitive"}


def test_the_transport_key_is_kept(state: State, import_token: ImportToken, token: Token) -> None:
    found = described(state, "privkey", import_token.id)
    assert found["access"] == {"sensitive", "always sensitive", "never extractable", "local"}
    assert found["usage"] == {"decrypt", "unwrap"}
    # Nothing but the private half is on the token.
    assert "RSA" not in pkcs11_tool(state, "--list-objects", "--type", "pubkey")
    assert token.destroy_transport_key(import_token.id)
    assert not token.destroy_transport_key(import_token.id)
    assert "RSA" not in pkcs11_tool(state, "--list-objects", "--type", "privkey")


def test_a_pair_that_was_refused_opens_nothing_anew(
    token: Token, pool: SessionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to prove that it is not there: all would wait until the pair is made that it waited for."""
    assert token.passage(Oaep.SHA_1)
    monkeypatch.setattr(carrying, "_TRANSPORT_KEY_WAIT_S", 0.0)
    key_id, generation = new_id(), pool.generation
    with token._transport_key_lock, pytest.raises(TokenBusy):
        token.generate_transport_key(key_id, "hsmkms test", by_process=True)
    assert not token.destroy_transport_key(key_id)
    assert pool.generation == generation


def test_few_wait_for_their_pair_and_more_come_again(token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    assert token.passage(Oaep.SHA_1)
    callers = threading.Semaphore(2)
    monkeypatch.setattr(token, "_transport_key_callers", callers)

    def make(key_id: str) -> bytes:
        return token.generate_transport_key(key_id, "hsmkms test", by_process=True)

    with ThreadPoolExecutor(2) as threads:
        with token._transport_key_lock:
            made = [threads.submit(make, new_id()) for _ in range(2)]
            deadline = time.monotonic() + SOON_S
            while callers.acquire(blocking=False):
                callers.release()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with pytest.raises(TokenBusy):
                make(new_id())
        assert len({one.result() for one in made}) == 2


def test_a_transport_key_that_need_not_decrypt_cannot(state: State, token: Token, pool: SessionPool) -> None:
    key_id = new_id()
    token.generate_transport_key(key_id, "o", by_process=False)
    assert described(state, "privkey", key_id)["usage"] == {"unwrap"}


@pytest.mark.parametrize("oaep", Oaep)
def test_what_is_refused_leaves_nothing(token: Token, bring: Bring, fetched: Fetched, state: State, oaep: Oaep) -> None:
    key = os.urandom(32)
    good = fetched.bring(key, oaep)
    with pytest.raises(IncorrectNonce):
        bring(fetched.bring(key, oaep, nonce=os.urandom(12)))
    with pytest.raises(IncorrectNonce):
        bring(fetched.bring(key, oaep, nonce=fetched.nonce + b"x"))
    other_key = fetched.bring(os.urandom(32), oaep)
    wrong = {
        "another IV": replace(good, iv=os.urandom(len(good.iv))),
        "no IV": replace(good, iv=b""),
        "a short IV": replace(good, iv=good.iv[:-1]),
        "an IV of 17 bytes": replace(good, iv=bytes(17)),
        "no nonce": replace(good, encrypted_nonce=b""),
        "a cut nonce": replace(good, encrypted_nonce=good.encrypted_nonce[:-1]),
        "a nonce under another key": replace(good, encrypted_nonce=other_key.encrypted_nonce, iv=other_key.iv),
        "an empty text": replace(good, wrapped=b""),
        "a short text": replace(good, wrapped=good.wrapped[:-1]),
        "a long text": replace(good, wrapped=good.wrapped + b"x"),
        "a text of ones": replace(good, wrapped=b"\xff" * 512),
        "a text of zeros": replace(good, wrapped=bytes(512)),
        "a changed text": replace(good, wrapped=good.wrapped[:-1] + bytes([good.wrapped[-1] ^ 1])),
        "the other hash": replace(good, wrapped=fetched.wrap(key, next(one for one in Oaep if one is not oaep))),
        "12 bytes": fetched.bring(bytes(12), oaep),
        "33 bytes": fetched.bring(bytes(33), oaep),
        "20 bytes": fetched.bring(bytes(20), oaep),
        "0 bytes": fetched.bring(b"", oaep),
    }
    # CBC has no tag: of 256 wrong keys or IVs one gives a valid padding, and so a nonce that is another one.
    refusals = (IncorrectNonceIv,) if oaep is Oaep.SHA_256 else (IncorrectNonceIv, IncorrectNonce)
    before = token.list_keys()
    for material in wrong.values():
        with pytest.raises(refusals):
            bring(material)
    assert token.list_keys() == before
    assert bring(good).check_value


def test_another_instances_transport_key_is_none(token: Token, import_token: ImportToken, fetched: Fetched) -> None:
    foreign = replace(import_token, instance_id=new_id())
    with pytest.raises(ImportTokenExpired):
        token.import_key(new_id(), OWNER, NOW, fetched.bring(bytes(32)), foreign)
    token.destroy_transport_key(import_token.id)
    with pytest.raises(ImportTokenExpired):
        token.import_key(new_id(), OWNER, NOW, fetched.bring(bytes(32)), import_token)


def test_a_token_that_is_away_is_no_bad_input(bring: Bring, fetched: Fetched, cable: Cable, pool: SessionPool) -> None:
    material = fetched.bring(os.urandom(32))
    cable.pull()
    with pytest.raises(TokenUnavailable):
        pool.reopen(pool.generation)
    with pytest.raises(TokenUnavailable):
        bring(material)
    cable.plug()
    eventually(lambda: bring(material))


SPARE = bytes(32)


@given(st.sampled_from([16, 24, 32]), st.sampled_from(list(Oaep)), st.data())
def test_oaep_decoding_against_another_implementation(length: int, oaep: Oaep, data: st.DataObject) -> None:
    """What `cryptography` pads comes out; with any change of the padded text the spare key does, and nothing else."""
    message = data.draw(st.binary(min_size=length, max_size=length))
    encoded = encode(message, oaep, data.draw(st.binary(min_size=32, max_size=32)))
    name = "sha256" if oaep is Oaep.SHA_256 else "sha1"
    assert oaep_decode(bytearray(encoded), name, bytearray(SPARE)) == message
    place = data.draw(st.integers(0, len(encoded) - 1))
    changed = bytearray(encoded)
    changed[place] ^= data.draw(st.integers(1, 255))
    assert oaep_decode(changed, name, bytearray(SPARE)) == SPARE


@pytest.mark.parametrize("length", [0, 1, 15, 17, 33, 446])
def test_oaep_decoding_of_what_is_no_aes_key(length: int) -> None:
    encoded = encode(bytes(length), Oaep.SHA_256, bytes(32))
    assert oaep_decode(bytearray(encoded), "sha256", bytearray(SPARE)) == SPARE


def encode(message: bytes, oaep: Oaep, seed: bytes) -> bytes:
    """EME-OAEP encoding (RFC 8017 section 7.1.1 step 2) for a modulus of 512 bytes, written plainly."""
    name = "sha256" if oaep is Oaep.SHA_256 else "sha1"
    size = hashlib.new(name).digest_size
    seed = seed[:size]

    def mask(source: bytes, length: int) -> bytes:
        blocks = [hashlib.new(name, source + n.to_bytes(4, "big")).digest() for n in range(length // size + 1)]
        return b"".join(blocks)[:length]

    def xor(one: bytes, other: bytes) -> bytes:
        return bytes(a ^ b for a, b in zip(one, other, strict=True))

    zeros = bytes(512 - len(message) - 2 * size - 2)
    block = hashlib.new(name, b"").digest() + zeros + b"\x01" + message
    masked = xor(block, mask(seed, len(block)))
    return b"\x00" + xor(seed, mask(masked, size)) + masked


@pytest.mark.parametrize("length", [16, 24, 32])
def test_check_values_of_the_token_are_those_of_software(token: Token, length: int) -> None:
    key = bytearray(os.urandom(length))
    assert token.check_values(key) == components.check_values(key)


def test_describing_a_key(token: Token) -> None:
    """What the token keeps of a key is the older check value, also of one that may only wrap."""
    born = token.generate_key(new_id(), OWNER, NOW)
    described = token.describe_key(born.id)
    assert described.attributes["CKA_EXTRACTABLE"] is False
    assert described.attributes["CKA_LOCAL"] is True
    assert described.label == "hsmkms the owner"
    assert len(described.check_values.ecb or "") == 6
    material = os.urandom(32)
    brought = token.create_key(new_id(), OWNER, NOW, SecretBytes(material))
    assert token.describe_key(brought.id).check_values.ecb == components.check_values(bytearray(material)).ecb
    assert "CKM_AES_CMAC" in token.mechanism_names()
