"""Components: what is taken, what is refused, and that the check values are those of other implementations."""

from __future__ import annotations

import contextlib
import os

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from hsmkms.ceremony import components
from hsmkms.ceremony.refusals import (
    EntriesDiffer,
    EntryRefused,
    EqualComponents,
    NotHexadecimal,
    WeakComponent,
    WeakKey,
    WrongCheckValue,
    WrongLength,
)
from hsmkms.domain.check_values import CheckKind, CheckValues


def test_check_values_of_published_vectors() -> None:
    """FIPS 197 has no zero block, so: AES-128 of zeros under zeros (GFSbox family of NIST's AESAVS: 66E94BD4…), and
    RFC 4493's subkey L, which is AES-128(K, 0^128) = 7df76b0c1ab899b33e42f047b91b546f."""
    assert components.check_values(bytearray(16)).ecb == "66E94B"
    rfc4493 = bytearray.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    assert components.check_values(rfc4493).ecb == "7DF76B"
    # CMAC of the zero block by RFC 4493's definition: AES(K, 0 xor K1), K1 = L << 1 = fbeed618357133667c85e08f7236a8de.
    k1 = bytes.fromhex("fbeed618357133667c85e08f7236a8de")
    by_definition = Cipher(algorithms.AES(rfc4493), modes.ECB()).encryptor().update(k1)
    assert components.check_values(rfc4493).cmac == by_definition[:3].hex().upper()


@pytest.mark.parametrize("length", [16, 24, 32])
def test_typing_with_spaces_and_in_either_case(length: int) -> None:
    value = os.urandom(length)
    typed = value.hex(" ", 2).upper() + "  "
    assert components.parse(typed, length) == value
    assert components.parse(value.hex(), length) == value


@pytest.mark.parametrize(
    ("typed", "refusal"),
    [
        ("", NotHexadecimal),
        ("   ", NotHexadecimal),
        ("A", NotHexadecimal),
        ("AB" * 16 + "C", NotHexadecimal),
        ("0x" + "AB" * 16, NotHexadecimal),
        ("O" + "A" * 31, NotHexadecimal),
        ("\u0661" * 32, NotHexadecimal),
        ("AB" * 15, WrongLength),
        ("AB" * 17, WrongLength),
        ("AB" * 32, WrongLength),
        ("00" * 16, WeakComponent),
        ("0000 " * 8, WeakComponent),
    ],
)
def test_typing_errors(typed: str, refusal: type[EntryRefused]) -> None:
    with pytest.raises(refusal) as raised:
        components.parse(typed, 16)
    # Whoever reads the message over a shoulder learns nothing of the entry.
    assert len(typed.strip()) < 2 or typed.strip() not in raised.value.message


@given(st.text())
def test_whatever_is_typed_is_taken_or_refused(typed: str) -> None:
    with contextlib.suppress(EntryRefused):
        assert len(components.parse(typed, 16)) == 16


def test_double_entry() -> None:
    components.require_same("AB cd", " ab  CD ")
    for second in ("AB ce", "AB", "", "ABcdd"):
        with pytest.raises(EntriesDiffer):
            components.require_same("AB cd", second)


def test_equal_components() -> None:
    one, other = bytearray(os.urandom(32)), bytearray(os.urandom(32))
    components.require_new(one, [other])
    with pytest.raises(EqualComponents):
        components.require_new(bytearray(one), [other, one])


@given(st.lists(st.binary(min_size=32, max_size=32).filter(any), min_size=2, max_size=9, unique=True))
def test_combining(parts: list[bytes]) -> None:
    wanted = 0
    for part in parts:
        wanted ^= int.from_bytes(part)
    if wanted:
        assert components.combine(map(bytearray, parts)) == wanted.to_bytes(32)
    else:
        with pytest.raises(WeakKey):
            components.combine(map(bytearray, parts))


def test_components_that_cancel_out() -> None:
    one, other = bytearray(os.urandom(16)), bytearray(os.urandom(16))
    with pytest.raises(WeakKey):
        components.combine([one, other, components.combine([one, other])])


def test_wrong_check_value() -> None:
    found = CheckValues("ABCDEF", None)
    components.require_check_value(found, CheckKind.CMAC, "ABCDEF")
    for kind, wanted in ((CheckKind.CMAC, "ABCDEE"), (CheckKind.ECB, "ABCDEF")):
        with pytest.raises(WrongCheckValue):
            components.require_check_value(found, kind, wanted)


def test_wiping() -> None:
    secret = bytearray(b"secret")
    components.wipe(secret)
    assert secret == bytes(6)
