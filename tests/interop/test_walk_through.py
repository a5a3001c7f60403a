"""`hsmkms authorizations create` on a terminal: the guide's steps, answered as a person would."""

from __future__ import annotations

import json
import os
import pty
import select
import time

from tests.support.deployment import PROGRAM, ROOT, State

ANSWER_S = 60


def on_a_terminal(state: State, *arguments: str, answers: list[tuple[str, str]]) -> tuple[int, str]:
    """Run a command on a pseudo-terminal; each answer is given when its question is on the screen."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execve(PROGRAM, [str(PROGRAM), *arguments], state.environment())
    screen, waiting, deadline = "", list(answers), time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            shown = os.read(terminal, 4_096)
        except OSError:
            break
        if not shown:
            break
        screen += shown.decode()
        if waiting and waiting[0][0] in screen:
            os.write(terminal, waiting.pop(0)[1].encode() + b"\n")
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert not waiting, screen
    return os.waitstatus_to_exitcode(status), screen


def test_five_questions_make_an_authorization(state: State) -> None:
    code, screen = on_a_terminal(
        state,
        "authorizations",
        "create",
        answers=[
            ("1. Source service", "2"),
            ("2. Source instance", "storage-1"),
            ("3. Target key instance", "1"),
            ("4. Role", "1"),
            ("5. Give instance storage-1 of cloudantnosqldb the role Reader", "y"),
        ],
    )
    assert code == 0, screen
    listed = json.loads(state.run("authorizations", "list", "--json", stdin=b"").stdout)
    assert [(one["source"], one["source instance"], one["target"], one["roles"]) for one in listed] == [
        ("cloudantnosqldb", "storage-1", state.instance_id, "Reader")
    ]


def test_no_at_the_end_makes_nothing(state: State) -> None:
    answers = [
        ("1. Source service", "1"),
        ("2. Source instance", ""),
        ("3. Target key instance", "2"),
        ("4. Role", "1"),
        ("5. Give every instance of", "n"),
    ]
    code, screen = on_a_terminal(state, "authorizations", "create", answers=answers)
    assert code == 1, screen
    assert json.loads(state.run("authorizations", "list", "--json", stdin=b"").stdout) == []


def test_a_wrong_answer_says_what_is_possible(state: State) -> None:
    code, screen = on_a_terminal(state, "authorizations", "create", answers=[("1. Source service", "9")])
    assert code == 1
    assert "Answer with a number from 1 to 4." in screen


def test_without_a_terminal_the_source_must_be_named(state: State) -> None:
    done = state.run("authorizations", "create", stdin=b"")
    assert done.returncode == 1
    assert b"--source" in done.stderr
