"""The sealed frame, held to constants, so that what was sealed once can be opened for ever (design, "What is sealed").

The constants were computed from the documented layout with hashlib and struct alone, not by the code under test.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkms.domain.frame import (
    HEADER_BYTES,
    MAX_DEK_BYTES,
    MAX_FRAME_BYTES,
    FrameMismatch,
    context_digest,
    pack,
    unpack,
)

VERSION_ID = "00112233-4455-4677-8899-aabbccddeeff"
OTHER_ID = "00112233-4455-4677-8899-aabbccddeefe"

VECTORS = [
    pytest.param(
        bytes(range(16)),
        (),
        "0100000000000010"
        "98440e506e6a5d9eb1e6c99a7f0c49c2c79283999439d3a31eb8dcfad90759ac"
        "000102030405060708090a0b0c0d0e0f",
        id="no AAD, no padding",
    ),
    pytest.param(
        b"\xff",
        ("a",),
        "01000000000000016ff078e60fc9ce40716defca07980bd5363407973fbcd31e737a692544014e5bff00000000000000",
        id="seven bytes of padding",
    ),
    pytest.param(
        bytes(range(32)),
        ("volume-1", "région"),
        "0100000000000020"
        "ffe96030bb822e3b22216162f56f71ea7ed5384ff0af5c107ef34fe9f9d46ceb"
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
        id="two strings, one of them not ASCII",
    ),
    pytest.param(
        bytes(range(9)),
        ("",),
        "0100000000000009"
        "19221d02296456bd1df613262b494dc465d3c7e02255baa236a4c822d4b969c5"
        "00010203040506070800000000000000",
        id="one empty string",
    ),
]

deks = st.binary(min_size=1, max_size=MAX_DEK_BYTES)
aads = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=5)


@pytest.mark.parametrize(("dek", "aad", "frame"), VECTORS)
def test_the_format_is_this(dek: bytes, aad: tuple[str, ...], frame: str) -> None:
    digest = context_digest(VERSION_ID, aad)
    assert pack(dek, digest).hex() == frame
    assert unpack(bytes.fromhex(frame), digest) == dek


@given(deks, aads)
def test_every_dek_comes_back(dek: bytes, aad: list[str]) -> None:
    digest = context_digest(VERSION_ID, aad)
    frame = pack(dek, digest)
    # CKM_AES_KEY_WRAP takes multiples of 8 bytes, and SoftHSM pads others with zeros without a word.
    assert len(frame) % 8 == 0
    assert len(frame) - HEADER_BYTES - len(dek) in range(8)
    assert unpack(frame, digest) == dek


@given(aads, aads)
def test_different_aad_is_a_different_context(one: list[str], other: list[str]) -> None:
    assert (context_digest(VERSION_ID, one) == context_digest(VERSION_ID, other)) == (one == other)


@given(aads.filter(bool))
def test_strings_are_not_merely_joined(aad: list[str]) -> None:
    """["ab"] and ["a", "b"] differ (design), and so does a list with an empty string more."""
    contexts = {tuple(aad), ("".join(aad),), (*aad, ""), ("", *aad), ()}
    assert len({context_digest(VERSION_ID, context) for context in contexts}) == len(contexts)


def test_length_of_a_string_is_bytes_not_characters() -> None:
    assert context_digest(VERSION_ID, ["é"]) != context_digest(VERSION_ID, ["e\u0301"])


def test_no_aad_and_an_empty_list_are_one_context() -> None:
    assert context_digest(VERSION_ID, ()) == context_digest(VERSION_ID, [])


def test_version_is_part_of_the_context() -> None:
    frame = pack(bytes(32), context_digest(VERSION_ID, ["a"]))
    with pytest.raises(FrameMismatch):
        unpack(frame, context_digest(OTHER_ID, ["a"]))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 32])
def test_every_bit_of_header_and_padding_counts(length: int) -> None:
    """The DEK's own bits are covered by RFC 3394 around the frame; these have one value only. The length has a test of
    its own: that of a padded DEK could also grow over the zeros, which RFC 3394 covers as well."""
    digest = context_digest(VERSION_ID, ["a"])
    frame = pack(b"\xff" * length, digest)
    for place in [*range(4), *range(8, HEADER_BYTES), *range(HEADER_BYTES + length, len(frame))]:
        for bit in range(8):
            changed = bytearray(frame)
            changed[place] ^= 1 << bit
            with pytest.raises(FrameMismatch):
                unpack(bytes(changed), digest)


@given(st.integers(0, MAX_FRAME_BYTES), st.binary(max_size=24))
def test_only_the_whole_frame_counts(kept: int, appended: bytes) -> None:
    digest = context_digest(VERSION_ID, ["a"])
    frame = pack(b"\xff" * 33, digest)
    changed = frame[:kept] + appended
    if changed == frame:
        assert unpack(changed, digest) == b"\xff" * 33
    else:
        with pytest.raises(FrameMismatch):
            unpack(changed, digest)


@pytest.mark.parametrize("claimed", [0, 1, 24, 25, 31, 33, 40, 41, 2**31, 2**32 - 1])
def test_claimed_length_must_be_the_length(claimed: int) -> None:
    digest = context_digest(VERSION_ID, ())
    with pytest.raises(FrameMismatch):
        unpack(struct.pack(">BBHI", 1, 0, 0, claimed) + digest + b"\xff" * 32, digest)


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused_by_one_error(foreign: bytes) -> None:
    with pytest.raises(FrameMismatch):
        unpack(foreign, context_digest(VERSION_ID, ()))


def test_mismatch_does_not_say_which_check_failed() -> None:
    digest = context_digest(VERSION_ID, ())
    frame = pack(bytes(32), digest)
    said = set()
    for wrong, context in [(frame[:-8], digest), (frame, bytes(32)), (b"\2" + frame[1:], digest), (b"", digest)]:
        with pytest.raises(FrameMismatch) as caught:
            unpack(wrong, context)
        said.add(str(caught.value))
    assert said == {""}


@pytest.mark.parametrize("length", [0, MAX_DEK_BYTES + 1])
def test_dek_length_is_bounded(length: int) -> None:
    with pytest.raises(ValueError, match="1 to 7680 bytes"):
        pack(bytes(length), bytes(32))


def test_frames_never_begin_with_zero() -> None:
    """The check value of a key is the wrap of zero bytes; that must never be part of a ciphertext."""
    assert {pack(bytes(length), bytes(32))[0] for length in (1, 32, MAX_DEK_BYTES)} == {1}
