"""Shamir shares of a key as words, k of n over GF(256), by SLIP-39 and its reference implementation.

A set is one group of member shares without a passphrase: what a wallet or another tool makes when it is asked for
"k of n" of 16, 24 or 32 bytes. Each share carries an RS1024 checksum, and k together a digest of the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import shamir_mnemonic
from shamir_mnemonic.shamir import ShareGroup
from shamir_mnemonic.wordlist import WORDLIST

from hsmkms.ceremony.refusals import (
    ShareChecksumWrong,
    ShareOfAnotherSet,
    ShareRepeated,
    SharesDisagree,
    ShareUnfit,
    ShareUnreadable,
    TooFewShares,
)

SHARES: Final = (2, 16)
_KNOWN: Final = frozenset(WORDLIST)
_WORDS: Final = {16: 20, 24: 27, 32: 33}
"""Words of a share by bytes of its key: 10 bits each, 40 of them for what the share says of itself, 30 of checksum."""


class ShareSet:
    """The shares of one key as they are entered. A refused share changes nothing."""

    def __init__(self, threshold: int, length: int) -> None:
        """`threshold` shares make a key of `length` bytes."""
        self._threshold = threshold
        self._length = length
        self._shares: list[shamir_mnemonic.Share] = []

    def __len__(self) -> int:
        return len(self._shares)

    @property
    def is_complete(self) -> bool:
        """Whether there are enough."""
        return len(self._shares) >= self._threshold

    def add(self, text: str) -> int:
        """Take a share; its number, from 1. Raises ShareUnreadable, ShareChecksumWrong, ShareUnfit, ShareOfAnotherSet,
        ShareRepeated."""
        share = self._read(text)
        if self._shares and share.group_parameters() != self._shares[0].group_parameters():
            raise ShareOfAnotherSet
        if any(share.index == other.index for other in self._shares):
            raise ShareRepeated
        self._shares.append(share)
        return int(share.index) + 1

    def remove(self, number: int) -> None:
        """Drop the share of that number."""
        self._shares = [share for share in self._shares if share.index + 1 != number]

    def combine(self) -> bytearray:
        """The key. Raises TooFewShares, SharesDisagree."""
        if not self.is_complete:
            raise TooFewShares(len(self._shares), self._threshold)
        group = ShareGroup()
        for share in self._shares[: self._threshold]:
            group.add(share)
        try:
            return bytearray(shamir_mnemonic.recover_ems({group.group_parameters().group_index: group}).decrypt(b""))
        except shamir_mnemonic.MnemonicError:
            raise SharesDisagree from None

    def _read(self, text: str) -> shamir_mnemonic.Share:
        words = text.lower().split()
        wanted = _WORDS[self._length]
        unknown = [str(place) for place, word in enumerate(words, 1) if word not in _KNOWN]
        if unknown:
            listed = ", ".join(unknown)
            raise ShareUnreadable(f"These are not words of the SLIP-39 list, counted from 1: {listed}. Enter it again.")
        if len(words) != wanted:
            raise ShareUnreadable(f"The share has {len(words)} words. One of this key has {wanted}.")
        try:
            share = shamir_mnemonic.Share.from_mnemonic(" ".join(words))
        except shamir_mnemonic.MnemonicError:
            raise ShareChecksumWrong from None
        if (share.group_threshold, share.group_count) != (1, 1):
            raise ShareUnfit("This share is one of several groups. Only sets of one group are taken.")
        if share.member_threshold != self._threshold:
            raise ShareUnfit(
                f"This share's set needs {share.member_threshold} shares; the plan says {self._threshold}."
            )
        return share


def split(key: bytearray, threshold: int, count: int) -> Sequence[str]:
    """`count` shares of a key of 16, 24 or 32 bytes, any `threshold` (at least 2) of which make it again."""
    (group,) = shamir_mnemonic.generate_mnemonics(1, [(threshold, count)], bytes(key))
    return tuple(group)


def set_number(share: str) -> int:
    """The number that all shares of one set have in common (SLIP-39: the identifier, 15 bits)."""
    return int(shamir_mnemonic.Share.from_mnemonic(share).identifier)
