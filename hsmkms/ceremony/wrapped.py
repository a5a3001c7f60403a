"""A key that another HSM wraps: a pair on the token whose public half travels, and the file that comes back.

The way to the other HSM and back may take days. The pair outlives an interruption, because the record names it; it is
destroyed when the key is on the token, or when the leader gives up.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from hsmkms.ceremony import components
from hsmkms.ceremony.record import fingerprint
from hsmkms.ceremony.refusals import CeremonyRefused, EntryRefused, WrappedFileRefused
from hsmkms.ceremony.screen import is_confirmed, page
from hsmkms.ceremony.steps import LEADER, Room
from hsmkms.domain.check_values import CheckValues
from hsmkms.domain.ids import new_id
from hsmkms.domain.importing import TRANSPORT_KEY_BITS, Carried, Passage, transport_owner
from hsmkms.errors import WrappedKeyUnreadable
from hsmkms.token.room import Token

PAIR_ANNOUNCED, PAIR_MADE, PAIR_DESTROYED = "pair announced", "pair made", "pair destroyed"
_GIVE_UP: Final = "destroy"
_BYTES: Final = TRANSPORT_KEY_BITS // 8


class WrappedFile:
    """One key in a file, RSA-OAEP (RFC 8017 section 7.1) with an empty label and the plan's hash."""

    def __init__(self, room: Room, token: Token, public_path: Path) -> None:
        """`public_path` is where the public key is written, for the other HSM."""
        self._room, self._token, self._public_path = room, token, public_path
        self._oaep = room.plan.source.padding
        self._owner = transport_owner(room.plan.key.instance)

    def open(self) -> tuple[Carried, CheckValues]:
        """The file's key, checked and agreed to, as the token takes it. Raises CeremonyRefused when it is given up."""
        pair = self._pair()
        page(self._room.console, self._room.heading, self._room.leader, LEADER, self._lines(pair))
        while True:
            answer = self._room.console.ask(self._room.leader, f"Path of the wrapped key, or {_GIVE_UP}")
            if answer.casefold() == _GIVE_UP:
                self.destroy()
                raise CeremonyRefused("The pair was destroyed. Start again with the same plan to make another.")
            try:
                return self._check(pair, Path(answer))
            except EntryRefused as refusal:
                self._room.refuse(self._room.leader, refusal)

    def destroy(self) -> None:
        """Destroy the pair that the record names, if there may be one."""
        step = self._room.last(PAIR_ANNOUNCED, PAIR_MADE, PAIR_DESTROYED)
        if step is None or step.what == PAIR_DESTROYED:
            return
        pair = step.data["pair"]
        was_there = self._token.destroy_transport_key(pair)
        self._public_path.unlink(missing_ok=True)
        self._room.note(self._room.leader, LEADER, PAIR_DESTROYED, {"pair": pair, "was_on_the_token": was_there})

    def _pair(self) -> str:
        """Id of the pair on the token: that of an earlier start, or a new one."""
        made = self._room.last(PAIR_ANNOUNCED, PAIR_MADE, PAIR_DESTROYED)
        if made is None or made.what != PAIR_MADE:
            self.destroy()
            made = self._room.note(self._room.leader, LEADER, PAIR_ANNOUNCED, {"pair": new_id()})
            passage = self._token.passage(self._oaep)
            if passage is None:
                raise CeremonyRefused("This token cannot open RSA-OAEP. Bring the key as components or shares.")
            pair: str = made.data["pair"]
            pem = self._token.generate_transport_key(pair, self._owner, by_process=passage is Passage.PROCESS)
            data = {"pair": pair, "public_key": pem.decode(), "fingerprint": fingerprint(pem)}
            made = self._room.note(self._room.leader, LEADER, PAIR_MADE, data)
        _write(self._public_path, made.data["public_key"].encode())
        kept: str = made.data["pair"]
        return kept

    def _lines(self, pair: str) -> list[str]:
        made = self._room.last(PAIR_MADE)
        return [
            f"Public key for the other HSM, RSA-{TRANSPORT_KEY_BITS}:  {self._public_path}",
            f"SHA-256 of it:  {made.data['fingerprint'] if made is not None else ''}",
            f"Have the key wrapped to it there: {self._oaep.value}, the same hash for MGF1, no label.",
            f"Bring back the {_BYTES} bytes that come out, and its check value on paper.",
            "Until then you may stop with Ctrl-C, and start again with the same plan.",
            f"Object on the token: {pair}",
        ]

    def _check(self, pair: str, path: Path) -> tuple[Carried, CheckValues]:
        """Raises EntryRefused."""
        carried = Carried(pair, self._owner, _read(path), self._oaep)
        try:
            found, length = self._token.wrapped_check_values(carried)
        except WrappedKeyUnreadable as error:
            raise WrappedFileRefused(error.message) from None
        plan, console = self._room.plan, self._room.console
        if length not in (None, plan.key.bytes):
            raise WrappedFileRefused(f"This key has {length} bytes, and the plan says {plan.key.bytes}.")
        console.say(f"Key check value: {found.of(plan.source.check)}")
        if plan.source.expected is not None:
            components.require_check_value(found, plan.source.check, plan.source.expected)
        if not is_confirmed(console, self._room.leader, "Is it right, and shall the key be put on the token?"):
            raise WrappedFileRefused("The leader does not agree to this key check value.")
        self._room.note(
            self._room.leader,
            LEADER,
            "wrapped key opened",
            {"file_sha256": hashlib.sha256(carried.wrapped).hexdigest(), "check_value": found.of(plan.source.check)},
        )
        return carried, found


def _read(path: Path) -> bytes:
    """Raises WrappedFileRefused."""
    try:
        content = path.read_bytes()
    except (OSError, ValueError):
        raise WrappedFileRefused("That file cannot be read.") from None
    if content.isascii():
        raise WrappedFileRefused("That file holds text, not bytes. Decode it first: `base64 -d`, or `xxd -r -p`.")
    if len(content) != _BYTES:
        raise WrappedFileRefused(f"That file has {len(content)} bytes. A key wrapped to this pair has {_BYTES}.")
    return content


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
