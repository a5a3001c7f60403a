"""A key that is made for backup: drawn by the token, split into shares on paper, and put onto the token.

It can be split because it is not yet a root key: it is in the locked memory of this program from its making until it is
on the token, where nothing can take it out again. Sheets are written to memory, one at a time, for as long as their
custodian prints them. A ceremony that is interrupted before the key is on the token starts with another key, and the
record says that sheets of the earlier one are void.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hsmkms.ceremony import components, memory, sheets
from hsmkms.ceremony.refusals import CeremonyRefused, CheckWordsWrong
from hsmkms.ceremony.screen import expect, page
from hsmkms.ceremony.shares import ShareSet, set_number, split
from hsmkms.ceremony.steps import CUSTODIAN, LEADER, Room
from hsmkms.domain.check_values import CheckValues
from hsmkms.token.room import Token

DRAWN, HANDED_OUT, VOID = "key drawn", "share handed out", "shares void"
_CHECK_WORDS: Final = 3
"""The checksum of a share: 30 bits, 10 a word."""


class Splitting:
    """Makes a key and hands out its shares."""

    def __init__(self, room: Room, token: Token, place: Path | None) -> None:
        """`place` is the directory in memory for sheets. Raises CeremonyRefused when there is none."""
        if place is None:
            raise CeremonyRefused(
                "Say with --sheets where sheets may be written: a directory in memory, say /dev/shm/x."
            )
        memory.require_memory_only(place)
        self._room, self._token, self._place = room, token, place

    def make(self) -> tuple[bytearray, CheckValues]:
        """The key; every custodian has a sheet that was read back."""
        self._void()
        lines = [
            "The token will now draw a key at random. It is split, every custodian prints one share,",
            "and then it is put onto the token, from which nothing can take it out.",
        ]
        page(self._room.console, self._room.heading, self._room.leader, LEADER, lines)
        expect(self._room.console, self._room.leader, "Type split", "split")
        plan = self._room.plan
        key = bytearray(self._token.random(plan.key.bytes).reveal())
        try:
            found = self._room.check_values(key)
            shares = split(key, plan.source.k or 0, len(plan.people.custodians))
            _require_whole(key, shares, plan.source.k or 0)
            data = {"set": set_number(shares[0]), "check_value": found.of(plan.source.check)}
            self._room.note(self._room.leader, LEADER, DRAWN, data)
            for number, (who, share) in enumerate(zip(plan.people.custodians, shares, strict=True), 1):
                self._hand_out(who, number, share, found)
        except BaseException:
            components.wipe(key)
            raise
        return key, found

    def _void(self) -> None:
        """What an interrupted start handed out is of a key that no longer is."""
        earlier = self._room.last(DRAWN, VOID)
        if earlier is None or earlier.what == VOID:
            return
        for left in self._place.glob(sheets.file_name(self._room.plan, "*")):
            sheets.erase(left)
        number = earlier.data["set"]
        self._room.note(self._room.leader, LEADER, VOID, {"set": number})
        lines = [
            f"The sheets of set {number}, if any were printed, are void: their key was lost.",
            "Collect and destroy them. New ones follow.",
        ]
        page(self._room.console, self._room.heading, self._room.leader, LEADER, lines)
        expect(self._room.console, self._room.leader, "Type destroyed", "destroyed")

    def _hand_out(self, who: str, number: int, share: str, found: CheckValues) -> None:
        console = self._room.console
        path = self._place / sheets.file_name(self._room.plan, str(number))
        try:
            sheets.write(path, self._room.plan, who, number, share, found)
            lines = [
                "Take the seat. Everybody else looks away.",
                f"Print {path} on the printer beside you, and keep the paper.",
                "It is erased as soon as you have shown that you can read it.",
            ]
            page(console, self._room.heading, who, CUSTODIAN, lines)
            wanted = " ".join(share.split()[-_CHECK_WORDS:])
            while not self._reads(who, wanted):
                self._room.refuse(who, CheckWordsWrong())
        finally:
            sheets.erase(path)
        self._room.note(who, CUSTODIAN, HANDED_OUT, {"number": number, "set": set_number(share)})
        console.clear()

    def _reads(self, who: str, wanted: str) -> bool:
        typed = self._room.console.ask_secret(who, f"The last {_CHECK_WORDS} words on your sheet")
        return hmac.compare_digest(" ".join(typed.lower().split()).encode(), wanted.encode())


def _require_whole(key: bytearray, shares: Sequence[str], k: int) -> None:
    """Raise CeremonyRefused unless the first and the last `k` shares make the key again."""
    for chosen in (shares[:k], shares[-k:]):
        together = ShareSet(k, len(key))
        for share in chosen:
            together.add(share)
        again = together.combine()
        same = hmac.compare_digest(key, again)
        components.wipe(again)
        if not same:
            raise CeremonyRefused("The shares do not make the key again. Nothing was handed out; report this.")
