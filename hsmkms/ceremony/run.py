"""A ceremony from its first step to its last, also when the power fails in between.

Whatever is about to happen on the token is written down before, with the id of the object; the object itself is made by
one call, after everything was checked. So a start after a power cut finds in the record what may be on the token: it
removes a key that was announced and not recorded as made, and goes on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import hsmkms
from hsmkms.ceremony import making, software
from hsmkms.ceremony.made import ANNOUNCED, MADE, REMOVED, WRAPPED, version_of
from hsmkms.ceremony.making import Making, Means
from hsmkms.ceremony.plan import OutputKind, ReadPlan, SourceKind
from hsmkms.ceremony.record import CLOSED, FORMAT, OPENED, Record, Step, fingerprint
from hsmkms.ceremony.refusals import CeremonyRefused, PlanRefused
from hsmkms.ceremony.screen import Console, expect, page
from hsmkms.ceremony.steps import CUSTODIAN, LEADER, Room
from hsmkms.domain.ids import is_uuid, new_id
from hsmkms.token.room import Token
from hsmkms.token.sessions import TokenInfo

PRESENT, WITNESSED = "present", "witnessed"
_WITNESS: Final = "witness"
_PLAN_DIGITS: Final = 8


def is_throwaway(info: TokenInfo) -> bool:
    """Whether a token is SoftHSM's: only there may answers come from a file and memory stay unlocked."""
    return info.manufacturer == "SoftHSM project"


def require_allowed(info: TokenInfo, *, memory_locked: bool, answers: bool) -> None:
    """Raise CeremonyRefused when a token that is no throw-away one would get its key carelessly."""
    if is_throwaway(info):
        return
    if answers:
        raise CeremonyRefused("Answers from a file are for rehearsals on a SoftHSM token. On this one people answer.")
    if not memory_locked:
        raise CeremonyRefused(
            "Memory cannot be locked. Start again as root, or raise the limit (`ulimit -l unlimited`)."
        )


def hold(
    read: ReadPlan,
    token: Token,
    means: Means,
    console: Console,
    clock: Callable[[], datetime],
    *,
    rehearsal: bool,
) -> Step:
    """Hold the ceremony of a plan, or go on with it; its last step. Raises CeremonyRefused, PlanRefused, RecordBroken,
    Unavailable."""
    if not rehearsal and token.info.serial != read.plan.token.serial:
        raise PlanRefused(f"The plan is for the token {read.plan.token.serial}; this one is {token.info.serial}.")
    record = Record(means.record, clock)
    with contextlib.closing(record):
        return _Ceremony(read, token, record, means, console, clock, rehearsal=rehearsal).hold()


class _Ceremony:
    def __init__(
        self,
        read: ReadPlan,
        token: Token,
        record: Record,
        means: Means,
        console: Console,
        clock: Callable[[], datetime],
        *,
        rehearsal: bool,
    ) -> None:
        self._read, self._plan, self._token = read, read.plan, token
        self._record, self._path, self._console = record, means.record, console
        self._mark = means.record.with_name(means.record.name + ".opening")
        self._rehearsal, self._locked = rehearsal, means.locked
        self._leader = read.plan.people.leader
        heading = f"hsmkms key ceremony: {read.plan.title}" + (" -- REHEARSAL" if rehearsal else "")
        self._room = Room(read.plan, console, record.append, heading, making.check_values_by(token), self._last)
        self._making = Making(self._room, token, clock, means)

    def hold(self) -> Step:
        if self._record.steps:
            self._go_on()
        else:
            self._open()
        made = self._last(MADE, WRAPPED)
        if made is None:
            self._attend()
            made = self._making.make()
        self._making.tidy()
        self._witness(made)
        return self._close(made)

    def _open(self) -> None:
        """Agree on the plan, then make the key that signs the record, then write the first step."""
        self._show_plan()
        self._drop_unused_signing_key()
        key_id = new_id()
        _write_down(self._mark, key_id)
        pem = self._token.generate_signing_key(key_id).decode()
        self._record.sign_by(lambda message: self._token.sign(key_id, message))
        opened = {
            "format": FORMAT,
            "signing_key": pem,
            "signing_key_id": key_id,
            "plan": self._plan.model_dump(mode="json"),
            "plan_sha256": self._read.digest,
            "rehearsal": self._rehearsal,
            **self._circumstances(),
        }
        self._record.append(self._leader, LEADER, OPENED, opened)
        self._mark.unlink()

    def _drop_unused_signing_key(self) -> None:
        """A start that ended before its first step was written left a signing key for nothing."""
        if self._mark.exists():
            key_id = self._mark.read_text()
            # A mark that was itself cut off was never followed by a key.
            if is_uuid(key_id):
                self._token.destroy_signing_key(key_id)
            self._mark.unlink()

    def _go_on(self) -> None:
        """After an interruption: the same plan and token, and nothing on the token that is not in the record."""
        opened = self._record.steps[0].data
        if opened["plan_sha256"] != self._read.digest:
            raise PlanRefused("The record is that of another plan. Take the one that it was opened with.")
        if opened["token"]["serial"] != self._token.info.serial:
            raise PlanRefused("The record is that of another token.")
        if opened["rehearsal"] is not self._rehearsal:
            raise PlanRefused("A rehearsal does not become a ceremony, nor the other way round.")
        if self._record.steps[-1].what == CLOSED:
            raise CeremonyRefused(f"This ceremony was held and closed. Its record is {self._path}.")
        self._mark.unlink(missing_ok=True)
        key_id = opened["signing_key_id"]
        self._record.sign_by(lambda message: self._token.sign(key_id, message))
        self._show_plan()
        data = {"dropped_bytes": self._record.torn_bytes, **self._circumstances()}
        self._record.append(self._leader, LEADER, "resumed", data)
        made = self._last(MADE)
        if made is not None:
            self._token.verify_key(version_of(made))
        announced = self._last(ANNOUNCED, REMOVED)
        if made is None and announced is not None and announced.what == ANNOUNCED:
            self._making.remove(announced.data["version"])

    def _show_plan(self) -> None:
        plan, source = self._plan, self._plan.source
        how = {
            SourceKind.GENERATE: "generated in the token",
            SourceKind.COMPONENTS: f"{source.n} components, combined by exclusive or",
            SourceKind.SHARES: f"shares, {source.k} of {source.n} (SLIP-39)",
            SourceKind.WRAPPED: f"a file that another HSM wraps ({source.padding.value})",
            SourceKind.SPLIT: f"drawn by the token, split into {source.n} shares of which {source.k} make it (SLIP-39)",
        }[source.kind]
        where = {
            OutputKind.TOKEN: "onto this token",
            OutputKind.BUNDLE: "wrapped to the import token of a service on another token",
        }[plan.output.to]
        lines = [
            f"Key:         {plan.key.name}, {8 * plan.key.bytes} bits",
            f"Purpose:     {plan.key.purpose}",
            f"Source:      {how}",
            f"Goes:        {where}",
            f"Token:       {self._token.info.label!r}, serial {self._token.info.serial}",
            f"Leader:      {plan.people.leader}",
            f"Witnesses:   {', '.join(plan.people.witnesses)}",
            f"Custodians:  {', '.join(plan.people.custodians) or 'none'}",
            f"Plan:        SHA-256 {self._read.digest}",
        ]
        if not self._locked:
            lines.append("WARNING:     memory is not locked. Do not enter real parts.")
        page(self._console, self._room.heading, self._leader, LEADER, lines)
        prompt = f"First {_PLAN_DIGITS} digits of the plan's SHA-256, from the paper copy"
        expect(self._console, self._leader, prompt, self._read.digest[:_PLAN_DIGITS])

    def _attend(self) -> None:
        """Everybody types his or her name."""
        people = self._plan.people
        there = {step.actor for step in self._record.steps if step.what == PRESENT}
        roles = {people.leader: LEADER, **dict.fromkeys(people.witnesses, _WITNESS)}
        for who, role in {**roles, **dict.fromkeys(people.custodians, CUSTODIAN)}.items():
            if who in there:
                continue
            lines = ["Type your name to say that you are here and agree to the plan."]
            if role == CUSTODIAN:
                lines.append("A custodian who could not come types nothing." if self._may_miss() else "")
            page(self._console, self._room.heading, who, role, lines)
            if self._is_here(who, may_miss=role == CUSTODIAN and self._may_miss()):
                self._record.append(who, role, PRESENT, {})

    def _may_miss(self) -> bool:
        return self._plan.source.kind is SourceKind.SHARES

    def _is_here(self, who: str, *, may_miss: bool) -> bool:
        while (answer := self._console.ask(who, "Your name")).casefold() != who.casefold():
            if not answer and may_miss:
                return False
            self._console.say("That is not the name in the plan. Type it again.")
        return True

    def _witness(self, made: Step) -> None:
        """Each witness confirms, once."""
        done = {step.actor for step in self._record.steps if step.what == WITNESSED}
        values = made.data["check_values"]
        where = f"on the token {self._token.info.serial}" if made.what == MADE else "in the bundle, and nowhere else"
        for who in self._plan.people.witnesses:
            if who in done:
                continue
            lines = [
                f"The key is {where}.",
                f"Key check values: CMAC {values['cmac'] or 'not known'}, ECB {values['ecb'] or 'not known'}.",
                "Type your name to say that everything went by the plan.",
            ]
            page(self._console, self._room.heading, who, _WITNESS, lines)
            expect(self._console, who, "Your name", who)
            self._record.append(who, _WITNESS, WITNESSED, {})

    def _close(self, made: Step) -> Step:
        closed = self._record.append(self._leader, LEADER, CLOSED, {"key": made.data["key"]})
        signer = fingerprint(self._record.steps[0].data["signing_key"].encode())
        lines = [
            "The ceremony is over. Write these two down on paper, and have them signed:",
            f"Record ends with  {closed.hash}",
            f"Signed by key     {signer}",
            f"The record is     {self._path}",
        ]
        page(self._console, self._room.heading, self._leader, LEADER, lines)
        return closed

    def _circumstances(self) -> dict[str, Any]:
        info = self._token.info
        return {
            "token": {
                "label": info.label,
                "serial": info.serial,
                "manufacturer": info.manufacturer,
                "model": info.model,
                "firmware": info.firmware,
                "mechanisms": self._token.mechanism_names(),
            },
            "software": {"name": "hsmkms", "version": hsmkms.__version__, "sha256": software.digest()},
            "memory_locked": self._locked,
        }

    def _last(self, *what: str) -> Step | None:
        return next((step for step in reversed(self._record.steps) if step.what in what), None)


def _write_down(path: Path, text: str) -> None:
    """Write a small file that survives a power cut."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
