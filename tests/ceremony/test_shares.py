"""Shares: refusals, and an independent implementation of SLIP-39 (bip39-slip39, of btclib) on the other side."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

import pytest
import shamir_mnemonic
from bip39_slip39 import slip39
from hypothesis import given, settings
from hypothesis import strategies as st
from shamir_mnemonic.wordlist import WORDLIST

from hsmkms.ceremony.refusals import (
    EntryRefused,
    ShareChecksumWrong,
    ShareOfAnotherSet,
    ShareRepeated,
    SharesDisagree,
    ShareUnfit,
    ShareUnreadable,
    TooFewShares,
)
from hsmkms.ceremony.shares import ShareSet, split


def entered(shares: Sequence[str], threshold: int = 3, length: int = 32) -> ShareSet:
    chosen = ShareSet(threshold, length)
    for share in shares:
        chosen.add(share)
    return chosen


@pytest.mark.parametrize("length", [16, 24, 32])
def test_an_independent_implementation_takes_ours_and_we_take_its(length: int) -> None:
    key = os.urandom(length)
    for chosen in itertools.combinations(split(bytearray(key), 3, 5), 3):
        assert slip39.master_secret_from_mnemonics(chosen) == key
    ((*theirs,),) = slip39.mnemonics_from_master_secret(key, groups=[(3, 5)], group_threshold=1)
    for chosen in itertools.combinations(theirs, 3):
        assert entered(chosen, 3, length).combine() == key


@pytest.mark.parametrize("exponent", [0, 2])
@pytest.mark.parametrize("extendable", [True, False])
def test_sets_of_either_kind_and_strength(extendable: bool, exponent: int) -> None:
    """Sets from before the `extendable` flag of 2024 use another salt and another checksum."""
    key = os.urandom(32)
    ((*theirs,),) = slip39.mnemonics_from_master_secret(
        key, groups=[(2, 3)], group_threshold=1, extendable=extendable, iteration_exponent=exponent
    )
    assert entered(theirs[:2], 2).combine() == key


def test_the_standards_own_vectors() -> None:
    """Vector 4 of SLIP-39's vectors.json: a 128-bit secret in two of three shares."""
    shares = (
        "shadow pistol academic always adequate wildlife fancy gross oasis cylinder mustang wrist rescue view short"
        " owner flip making coding armed",
        "shadow pistol academic acid actress prayer class unknown daughter sweater depict flip twice unkind craft early"
        " superior advocate guest smoking",
    )
    # The vectors' passphrase is TREZOR; without one the same shares make another secret, equally in both.
    assert entered(shares, 2, 16).combine() == slip39.master_secret_from_mnemonics(shares)
    assert slip39.master_secret_from_mnemonics(shares, "TREZOR").hex() == "b43ceb7e57a0ea8766221624d01b0864"


@pytest.fixture(scope="module")
def shares() -> Sequence[str]:
    """Five of which three make a key."""
    return split(bytearray(os.urandom(32)), 3, 5)


def test_a_repeated_share(shares: Sequence[str]) -> None:
    chosen = entered(shares[:2])
    with pytest.raises(ShareRepeated):
        chosen.add(shares[1])
    with pytest.raises(ShareRepeated):
        chosen.add("  " + shares[1].upper().replace(" ", "   "))
    chosen.add(shares[4])
    assert chosen.is_complete


def test_fewer_than_k(shares: Sequence[str]) -> None:
    with pytest.raises(TooFewShares, match="2 shares were entered and 3 are needed"):
        entered(shares[:2]).combine()


def test_shares_of_different_sets(shares: Sequence[str]) -> None:
    chosen = entered(shares[:2])
    with pytest.raises(ShareOfAnotherSet):
        chosen.add(split(bytearray(os.urandom(32)), 3, 5)[2])
    chosen.add(shares[2])
    assert len(chosen.combine()) == 32


def test_a_share_that_says_it_belongs_and_does_not(shares: Sequence[str]) -> None:
    """The checksum is right and so are all parameters: only the digest of the key tells."""
    mine = shamir_mnemonic.Share.from_mnemonic(shares[2])
    other = shamir_mnemonic.Share.from_mnemonic(split(bytearray(os.urandom(32)), 3, 5)[2])
    forged = shamir_mnemonic.Share(*mine.common_parameters()[:3], 0, 1, 1, mine.index, 3, other.value)
    chosen = entered([*shares[:2], forged.mnemonic()])
    with pytest.raises(SharesDisagree):
        chosen.combine()
    chosen.remove(forged.index + 1)
    chosen.add(shares[2])
    assert len(chosen.combine()) == 32


@given(st.data())
@settings(max_examples=200)
def test_one_wrong_word_is_always_noticed(shares: Sequence[str], data: st.DataObject) -> None:
    words = shares[0].split()
    place = data.draw(st.integers(0, len(words) - 1))
    words[place] = data.draw(st.sampled_from(WORDLIST).filter(lambda word: word != words[place]))
    with pytest.raises(ShareChecksumWrong):
        ShareSet(3, 32).add(" ".join(words))


def test_what_is_no_share(shares: Sequence[str]) -> None:
    words = shares[0].split()
    for typed in ("", " ", " ".join(words[:-1]), " ".join([*words, words[0]]), "academic " * 33):
        with pytest.raises((ShareUnreadable, ShareChecksumWrong)):
            ShareSet(3, 32).add(typed)
    with pytest.raises(ShareUnreadable, match="counted from 1: 3, 5") as raised:
        ShareSet(3, 32).add(" ".join([*words[:2], "xyzzy", words[3], "plugh", *words[5:]]))
    assert not any(word in raised.value.message.split() for word in ["xyzzy", "plugh", *words])


def test_sets_that_the_plan_does_not_mean(shares: Sequence[str]) -> None:
    with pytest.raises(ShareUnfit, match="needs 3 shares; the plan says 2"):
        ShareSet(2, 32).add(shares[0])
    with pytest.raises(ShareUnreadable, match="33 words"):
        ShareSet(3, 16).add(shares[0])
    groups = shamir_mnemonic.generate_mnemonics(2, [(2, 2), (2, 3)], os.urandom(32))
    with pytest.raises(ShareUnfit, match="several groups"):
        ShareSet(2, 32).add(groups[0][0])


@given(st.text())
def test_whatever_is_typed_is_refused(typed: str) -> None:
    with pytest.raises(EntryRefused):
        ShareSet(3, 32).add(typed)
