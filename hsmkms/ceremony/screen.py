"""What people in the room see and type: a plain terminal, or answers from a file in a rehearsal."""

from __future__ import annotations

import json
import sys
import termios
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from hsmkms.ceremony.refusals import CeremonyRefused

_CLEAR: Final = "\x1b[H\x1b[2J\x1b[3J"
"""Home, clear the screen, clear what was scrolled off it (ECMA-48, and xterm's extension)."""
_WIDTH: Final = 78


class Console(Protocol):
    """One terminal, before which people take turns."""

    def clear(self) -> None:
        """Leave nothing on the screen."""

    def say(self, text: str) -> None:
        """Show a line."""

    def ask(self, who: str, prompt: str) -> str:
        """What `who` types, which everybody may see."""

    def ask_secret(self, who: str, prompt: str) -> str:
        """What `who` types, which nobody sees."""


class Terminal:
    """The terminal of this process, as a context manager: inside, nothing that is typed is shown except to `ask`, also
    what somebody types before he is asked."""

    def __init__(self) -> None:
        """Raises CeremonyRefused when there is none, because then what is typed could be shown or kept."""
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise CeremonyRefused("A ceremony needs a terminal for input and output.")

    def __enter__(self) -> Terminal:
        self._before = termios.tcgetattr(sys.stdin.fileno())
        self._echo(on=False)
        return self

    def __exit__(self, *_: object) -> None:
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSAFLUSH, self._before)

    def clear(self) -> None:
        self._write(_CLEAR)

    def say(self, text: str) -> None:
        self._write(text + "\n")

    def ask(self, who: str, prompt: str) -> str:
        self._echo(on=True)
        try:
            self._write(f"{prompt}: ")
            return self._line()
        finally:
            self._echo(on=False)

    def ask_secret(self, who: str, prompt: str) -> str:
        self._echo(on=False)
        self._write(f"{prompt}: ")
        try:
            return self._line()
        finally:
            self._write("\n")

    def _echo(self, *, on: bool) -> None:
        """What was typed ahead, perhaps by the one before, is not the next one's: it is dropped."""
        descriptor = sys.stdin.fileno()
        now = termios.tcgetattr(descriptor)
        now[3] = now[3] | termios.ECHO if on else now[3] & ~termios.ECHO
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, now)

    def _line(self) -> str:
        line = sys.stdin.readline()
        if not line.endswith("\n"):
            raise CeremonyRefused("The terminal was closed. Start again with the same plan to go on.")
        return line.strip()

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


class Answers:
    """Answers by who gives them, in their order, with the same screens: for rehearsals and tests."""

    def __init__(self, answers: Mapping[str, Sequence[str]]) -> None:
        self._answers = {who: list(given) for who, given in answers.items()}

    @classmethod
    def read(cls, path: Path) -> Answers:
        """From a JSON or TOML file whose members are people and lists of texts. Raises CeremonyRefused."""
        try:
            text = path.read_text()
            members = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except (OSError, ValueError) as error:
            raise CeremonyRefused(f"The answers in {path} cannot be read.") from error
        if not isinstance(members, dict) or not all(
            isinstance(given, list) and all(isinstance(one, str) for one in given) for given in members.values()
        ):
            raise CeremonyRefused(f"The answers in {path} must be lists of texts by the names of people.")
        return cls(members)

    def clear(self) -> None:
        self.say("-" * _WIDTH)

    def say(self, text: str) -> None:
        sys.stdout.write(text + "\n")

    def ask(self, who: str, prompt: str) -> str:
        answer = self._next(who, prompt)
        self.say(f"{prompt}: {answer}")
        return answer

    def ask_secret(self, who: str, prompt: str) -> str:
        answer = self._next(who, prompt)
        self.say(f"{prompt}: ")
        return answer

    def _next(self, who: str, prompt: str) -> str:
        given = self._answers.get(who, [])
        if not given:
            raise CeremonyRefused(f"There is no answer left of {who} to: {prompt}")
        return given.pop(0).strip()


def page(console: Console, heading: str, who: str, role: str, lines: Sequence[str]) -> None:
    """Clear the screen and say whose turn it is."""
    console.clear()
    console.say(heading)
    console.say("=" * _WIDTH)
    console.say(f"Who acts: {who} ({role})")
    console.say("")
    for line in lines:
        console.say(line)
    console.say("")


def expect(console: Console, who: str, prompt: str, wanted: str) -> None:
    """Ask until `wanted` is typed, in either case."""
    while console.ask(who, prompt).casefold() != wanted.casefold():
        console.say("That is not it. Type it again, or stop with Ctrl-C.")


def is_confirmed(console: Console, who: str, question: str) -> bool:
    """Ask until yes or no is typed."""
    while True:
        answer = console.ask(who, f"{question} (yes or no)").casefold()
        if answer in ("yes", "no"):
            return answer == "yes"
        console.say("Type yes or no.")
