"""Seal and open on a real token: every length, every AAD, every changed bit (design, "What is sealed")."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from hsmkms.domain.keys import KeyVersion
from hsmkms.errors import UnprocessableCiphertext
from hsmkms.token import cryptoki as ck
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool

DEK = bytes(range(32))
AAD = ("volume-1", "région")


@pytest.fixture
def refused(token: Token, pool: SessionPool, key: KeyVersion) -> Callable[..., None]:
    """Assert that a blob is refused as input, and that none was taken for a broken device: no fresh start."""

    def refused(sealed: bytes, aad: tuple[str, ...] = AAD, *, under: KeyVersion = key, named: str = key.id) -> None:
        generation = pool.generation
        with pytest.raises(UnprocessableCiphertext):
            token.open(under, named, sealed, aad)
        assert pool.generation == generation

    return refused


def test_every_length_comes_back(token: Token, key: KeyVersion) -> None:
    """Also odd ones, which SoftHSM by itself would return longer than they were, and the longest payload of a key."""
    for length in [*range(1, 65), 4_095, 4_096, 7_500, 7_680]:
        dek = os.urandom(length)
        sealed = token.seal(key, dek, AAD)
        assert len(sealed) == 48 + length + -length % 8
        assert token.open(key, key.id, sealed, AAD).reveal() == dek


@pytest.mark.parametrize("dek", [bytes(8), bytes(32), b"\0\0\0\xff", b"\xa6" * 16], ids=["8", "32", "tail", "iv"])
def test_zeros_and_lookalikes_come_back(token: Token, key: KeyVersion, dek: bytes) -> None:
    assert token.open(key, key.id, token.seal(key, dek, ()), ()).reveal() == dek


@pytest.mark.parametrize(
    ("aad", "same"),
    [
        ((), []),
        (("a",), ["a"]),
        (("",), [""]),
        (("a\0b", "🔑", "x" * 255), ["a\0b", "🔑", "x" * 255]),
        (("é" * 255,) * 255, ["é" * 255] * 255),
    ],
    ids=["none", "one", "empty string", "odd characters", "largest"],
)
def test_same_aad_opens(token: Token, key: KeyVersion, aad: tuple[str, ...], same: list[str]) -> None:
    assert token.open(key, key.id, token.seal(key, DEK, aad), same).reveal() == DEK


@pytest.mark.parametrize(
    "other",
    [
        (),
        ("volume-1",),
        ("région",),
        ("volume-1région",),
        ("volume-1r", "égion"),
        ("région", "volume-1"),
        ("volume-1", "région", ""),
        ("", "volume-1", "région"),
        ("volume-1", "", "région"),
        ("volume-1", "région", "région"),
        ("volume-1", "region"),
        ("volume-1", "re\u0301gion"),
        ("Volume-1", "région"),
        ("volume-1 ", "région"),
        ("volume-1\0", "région"),
    ],
)
def test_other_aad_is_refused(
    token: Token, key: KeyVersion, refused: Callable[..., None], other: tuple[str, ...]
) -> None:
    """Both ways round: what was sealed with either one is not opened with the other."""
    refused(token.seal(key, DEK, AAD), other)
    refused(token.seal(key, DEK, other), AAD)


def test_one_empty_string_is_not_no_aad(token: Token, key: KeyVersion, refused: Callable[..., None]) -> None:
    refused(token.seal(key, DEK, ()), ("",))
    refused(token.seal(key, DEK, ("",)), ())


def test_every_changed_bit_is_refused(token: Token, key: KeyVersion, refused: Callable[..., None]) -> None:
    sealed = token.seal(key, DEK, AAD)
    for place in range(len(sealed)):
        for bit in range(8):
            changed = bytearray(sealed)
            changed[place] ^= 1 << bit
            refused(bytes(changed))


def test_every_other_length_is_refused(token: Token, key: KeyVersion, refused: Callable[..., None]) -> None:
    """Truncated anywhere at either end, longer by anything, of odd length, empty, larger than any frame."""
    sealed = token.seal(key, DEK, AAD)
    for length in range(len(sealed)):
        refused(sealed[:length])
        refused(sealed[len(sealed) - length :])
    for extra in range(1, 17):
        refused(sealed + bytes(extra))
        refused(bytes(extra) + sealed)
    refused(sealed + sealed)
    refused(sealed * 1_000)


def test_swapped_blocks_are_refused(token: Token, key: KeyVersion, refused: Callable[..., None]) -> None:
    sealed = token.seal(key, DEK, AAD)
    blocks = [sealed[place : place + 8] for place in range(0, len(sealed), 8)]
    for place in range(1, len(blocks)):
        refused(b"".join([*blocks[: place - 1], blocks[place], blocks[place - 1], *blocks[place + 1 :]]))


def test_other_key_is_refused(
    token: Token, key: KeyVersion, make_key: Callable[[], KeyVersion], refused: Callable[..., None]
) -> None:
    """Under another key, and under the right key with the name of another: the frame is bound to the name."""
    other = make_key()
    sealed = token.seal(key, DEK, AAD)
    refused(sealed, under=other)
    refused(sealed, under=other, named=other.id)
    refused(sealed, named=other.id)


@pytest.mark.parametrize("length", [16, 24, 32, 40, 48, 64, 4_096])
def test_plain_key_wrap_is_not_ours(
    token: Token, pool: SessionPool, key: KeyVersion, refused: Callable[..., None], length: int
) -> None:
    """A DEK that the same root key wrapped without our frame, as any PKCS#11 program with the PIN could make it."""
    with pool.session() as session:
        (root,) = session.find({ck.CKA_ID: bytes.fromhex(key.id.replace("-", ""))})
        blobs = [session.seal(root, os.urandom(length)), session.seal(root, bytes(length))]
    for blob in blobs:
        refused(blob, ())


def test_same_dek_is_sealed_apart(token: Token, make_key: Callable[[], KeyVersion]) -> None:
    """Another key or another AAD gives another blob; RFC 3394 has no nonce, so the same of all gives the same."""
    one, two = make_key(), make_key()
    blobs = {token.seal(one, DEK, ()), token.seal(two, DEK, ()), token.seal(one, DEK, AAD), token.seal(one, DEK, ())}
    assert len(blobs) == 3
