"""The power fails at every step: before a line is written, in its middle, after it, and at every question.

After each the ceremony is taken up again with a token opened anew, and ends with one whole key and a record that
verifies. Everything that a process would lose is thrown away; the files are what the disk would have.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hsmkms.ceremony import record as records
from hsmkms.ceremony.record import Record
from hsmkms.ceremony.screen import Answers
from hsmkms.ceremony.shares import split
from hsmkms.token.room import Token
from tests.ceremony.conftest import CUSTODIANS, LEADER, Table
from tests.ceremony.test_run import require_right, twice
from tests.token.conftest import pkcs11_tool

ALICE, BOB, CAROL, *_ = CUSTODIANS


class PowerCut(BaseException):
    """Nothing catches this."""


class Interrupted(Answers):
    """Answers until the power fails at a question; then from the start again."""

    def __init__(self, answers: dict[str, list[str]], fail_at: int) -> None:
        super().__init__(answers)
        self.asked = 0
        self._fail_at = fail_at

    def _next(self, who: str, prompt: str) -> str:
        self.asked += 1
        if self.asked == self._fail_at:
            raise PowerCut
        return super()._next(who, prompt)


@pytest.fixture
def key() -> bytes:
    return os.urandom(32)


@pytest.fixture
def answers(table: Table, key: bytes) -> Callable[[], dict[str, list[str]]]:
    """What is still to be answered, read off the record: who was there is not asked for a name again."""
    shares = split(bytearray(key), 3, 5)
    given = {ALICE: twice(shares[0]), BOB: twice(shares[1]), CAROL: twice(shares[2])}

    def remaining() -> dict[str, list[str]]:
        steps = list(records.check(_whole(table.record)))
        there = [step.actor for step in steps if step.what == "present"]
        witnessed = [step.actor for step in steps if step.what == "witnessed"]
        full = table.answers(given)
        for who in there:
            full[who].remove(who)
        for who in witnessed:
            full[who].remove(who)
        return full

    return remaining


def _whole(path: Path) -> bytes:
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def end(table: Table, answers: Callable[[], dict[str, list[str]]], key: bytes) -> records.Verified:
    """The machine is started again and the ceremony brought to its end."""
    table.pool.reopen(table.pool.generation)
    table.token = Token(table.pool)
    table.hold(Answers(answers()))
    verified = records.verify(table.record)
    require_right(table, verified, key)
    # The record's key is the only other thing that the ceremony leaves.
    listed = pkcs11_tool(table.state, "--list-objects", "--type", "privkey")
    assert verified.steps[0].data["signing_key_id"].replace("-", "") in listed
    assert not (table.record.parent / "record.jsonl.opening").exists()
    return verified


def signing_keys(table: Table) -> int:
    return pkcs11_tool(table.state, "--list-objects", "--type", "privkey").count("Private Key Object")


# 18 questions: the plan, 8 names, 3 shares twice, agreement, 2 witnesses.
@pytest.mark.parametrize("question", range(1, 19))
def test_at_every_question(
    table: Table, answers: Callable[[], dict[str, list[str]]], key: bytes, question: int
) -> None:
    before = signing_keys(table)
    console = Interrupted(answers(), question)
    with pytest.raises(PowerCut):
        table.hold(console)
    end(table, answers, key)
    assert signing_keys(table) == before + 1


# Of 17 lines: opened, 8 times present, 3 shares, announced, made, 2 times witnessed, closed.
@pytest.mark.parametrize("moment", ["before", "torn", "after"])
@pytest.mark.parametrize("line", range(1, 18))
def test_at_every_line_of_the_record(
    table: Table,
    answers: Callable[[], dict[str, list[str]]],
    key: bytes,
    monkeypatch: pytest.MonkeyPatch,
    line: int,
    moment: str,
) -> None:
    before = signing_keys(table)
    whole_write = Record._write
    written = 0

    def cut(self: Record, data: bytes) -> None:
        nonlocal written
        written += 1
        if written == line and moment == "before":
            raise PowerCut
        if written == line and moment == "torn":
            os.write(self._file, data[: len(data) // 2])
            raise PowerCut
        whole_write(self, data)
        if written == line:
            raise PowerCut

    with monkeypatch.context() as patched:
        patched.setattr(Record, "_write", cut)
        with pytest.raises(PowerCut):
            table.hold(Answers(answers()))
    if (line, moment) == (17, "after"):
        require_right(table, records.verify(table.record), key)
        return
    verified = end(table, answers, key)
    assert signing_keys(table) == before + 1
    if line > 1 or moment == "after":
        resumed = verified.last("resumed")
        assert resumed is not None
        assert (resumed.data["dropped_bytes"] > 0) == (moment == "torn")
    if line == 14 and moment != "after":
        # The key was on the token and not in the record: it went, and another was made.
        removed = verified.last("key removed")
        assert removed is not None
        assert removed.data["was_on_the_token"] is True


def test_between_the_signing_key_and_the_first_line(
    table: Table, answers: Callable[[], dict[str, list[str]]], key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signing_keys(table)
    generate = Token.generate_signing_key

    def cut(self: Token, key_id: str) -> bytes:
        generate(self, key_id)
        raise PowerCut

    with monkeypatch.context() as patched:
        patched.setattr(Token, "generate_signing_key", cut)
        with pytest.raises(PowerCut):
            table.hold(Answers(answers()))
    assert signing_keys(table) == before + 1
    end(table, answers, key)
    assert signing_keys(table) == before + 1


@pytest.mark.parametrize("torn", ["", "6f1d9d5a-8f0e"])
def test_a_torn_mark(table: Table, answers: Callable[[], dict[str, list[str]]], key: bytes, torn: str) -> None:
    (table.record.parent / "record.jsonl.opening").write_text(torn)
    end(table, answers, key)
    assert LEADER in answers()
