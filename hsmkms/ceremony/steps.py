"""How parts of a key are entered: one custodian after the other, each entry checked, none lost by another's mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hsmkms.ceremony import components
from hsmkms.ceremony.components import CheckValuesOf
from hsmkms.ceremony.plan import Plan
from hsmkms.ceremony.record import Step
from hsmkms.ceremony.refusals import EntryRefused, TooFewShares
from hsmkms.ceremony.screen import Console, is_confirmed, page
from hsmkms.ceremony.shares import ShareSet

Note = Callable[[str, str, str, dict[str, Any]], Step]
"""Write a step down: actor, role, what, data."""
LEADER, CUSTODIAN = "leader", "custodian"


@dataclass(frozen=True, slots=True)
class Room:
    """What every step needs. `heading` stands on every screen."""

    plan: Plan
    console: Console
    note: Note
    heading: str
    check_values: CheckValuesOf
    last: Callable[..., Step | None]
    """The last step of any of these kinds."""

    @property
    def leader(self) -> str:
        """Who leads."""
        return self.plan.people.leader

    def refuse(self, who: str, refusal: EntryRefused) -> None:
        """Say why an entry is not taken, and write it down."""
        role = LEADER if who == self.leader else CUSTODIAN
        self.note(who, role, "entry refused", {"why": refusal.message})
        self.console.say(refusal.message)


class Parts(Protocol):
    """Entered parts of one key, held until it is made."""

    def enter(self) -> None:
        """Let custodians enter what is missing."""

    def combine(self) -> bytearray:
        """The key. Raises EntryRefused when the parts do not make one."""

    def drop(self, who: str) -> bool:
        """Forget what a custodian entered; False when there is nothing of that name."""

    def wipe(self) -> None:
        """Forget all."""


class ComponentParts:
    """One component of each custodian."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._values: dict[str, bytearray] = {}

    def enter(self) -> None:
        """In the order of the plan; who has entered already is not asked."""
        for who in self._room.plan.people.custodians:
            if who not in self._values:
                self._page(who)
                while not self._enter_one(who):
                    pass
                self._room.console.clear()

    def combine(self) -> bytearray:
        return components.combine(self._values.values())

    def drop(self, who: str) -> bool:
        value = self._values.pop(who, None)
        if value is not None:
            components.wipe(value)
        return value is not None

    def wipe(self) -> None:
        for who in list(self._values):
            self.drop(who)

    def _page(self, who: str) -> None:
        digits = 2 * self._room.plan.key.bytes
        lines = [
            "Take the seat. Everybody else looks away.",
            f"Enter your component: {digits} hexadecimal digits, with spaces wherever they help, and Enter.",
            "Nothing is shown while you type. It is asked for twice.",
        ]
        page(self._room.console, self._room.heading, who, CUSTODIAN, lines)

    def _enter_one(self, who: str) -> bool:
        console, plan = self._room.console, self._room.plan
        first = console.ask_secret(who, "Your component")
        second = console.ask_secret(who, "The same again")
        try:
            components.require_same(first, second)
            value = components.parse(first, plan.key.bytes)
            components.require_new(value, self._values.values())
            found = self._room.check_values(value)
            wanted = plan.source.parts.get(who)
            if wanted is not None:
                components.require_check_value(found, plan.source.check, wanted)
            else:
                console.say(f"Key check value of your component: {found.of(plan.source.check)}")
                if not is_confirmed(console, who, "Is this the one on your paper?"):
                    raise EntryRefused("The custodian does not know this key check value. Enter it again.")
        except EntryRefused as refusal:
            self._room.refuse(who, refusal)
            return False
        self._values[who] = value
        self._room.note(
            who,
            CUSTODIAN,
            "component entered",
            {"check_value": found.of(plan.source.check), "kind": plan.source.check.value},
        )
        return True


class ShareParts:
    """Shares of any k custodians."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._set = ShareSet(room.plan.source.k or 0, room.plan.key.bytes)
        self._numbers: dict[str, int] = {}

    def enter(self) -> None:
        """In the order of the plan, and round again, until there are enough; a custodian may pass."""
        while not self._set.is_complete:
            for who in self._room.plan.people.custodians:
                if who not in self._numbers and not self._set.is_complete:
                    self._page(who)
                    while not self._enter_one(who):
                        pass
                    self._room.console.clear()
            if not self._set.is_complete:
                too_few = TooFewShares(len(self._set), self._room.plan.source.k or 0)
                self._room.refuse(self._room.leader, too_few)
                self._room.console.ask(self._room.leader, "Press Enter to go round again")

    def combine(self) -> bytearray:
        return self._set.combine()

    def drop(self, who: str) -> bool:
        number = self._numbers.pop(who, None)
        if number is not None:
            self._set.remove(number)
        return number is not None

    def wipe(self) -> None:
        for who in list(self._numbers):
            self.drop(who)

    def _page(self, who: str) -> None:
        source = self._room.plan.source
        lines = [
            "Take the seat. Everybody else looks away.",
            f"{len(self._set)} of the {source.k} shares that are needed are entered.",
            "Enter the words of your share with spaces between, and Enter; nothing is shown while you type.",
            "It is asked for twice. Enter nothing to pass.",
        ]
        page(self._room.console, self._room.heading, who, CUSTODIAN, lines)

    def _enter_one(self, who: str) -> bool:
        console = self._room.console
        first = console.ask_secret(who, "Your share")
        if not first:
            self._room.note(who, CUSTODIAN, "passed", {})
            return True
        second = console.ask_secret(who, "The same again")
        try:
            components.require_same(first, second)
            number = self._set.add(first)
        except EntryRefused as refusal:
            self._room.refuse(who, refusal)
            return False
        self._numbers[who] = number
        self._room.note(who, CUSTODIAN, "share entered", {"number": number})
        return True


def enter_again(room: Room, parts: Parts, names: Sequence[str]) -> None:
    """The whole is wrong: ask the leader whose entry is made again, and forget that one."""
    leader = room.leader
    while True:
        answer = room.console.ask(leader, "Whose part is entered again? A name, or all")
        if answer.casefold() == "all":
            parts.wipe()
            break
        if any(parts.drop(name) for name in names if name.casefold() == answer.casefold()):
            break
        room.console.say("Nothing of that name was entered.")
    room.note(leader, LEADER, "part dropped", {"whose": answer})
