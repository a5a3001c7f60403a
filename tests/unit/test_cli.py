"""The command line as a newcomer meets it."""

from __future__ import annotations

import base64
import json
import re

import pytest

from tests.support.deployment import State

COMMANDS = ["", "init", "serve", "up", "keys", "wrap", "unwrap", "doctor", "call", "version"]
COMMANDS += [f"keys {name}" for name in ("list", "create", "show", "rotate", "delete")]


@pytest.fixture(scope="module")
def here(seed_state: State, tmp_path_factory: pytest.TempPathFactory) -> State:
    """One deployment for this file."""
    return seed_state.copy_to(tmp_path_factory.mktemp("cli") / "state")


def ok(state: State, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run to a good end without a word on standard error."""
    done = state.run(*arguments, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def create(state: State, *arguments: str) -> str:
    return str(json.loads(ok(state, "keys", "create", *arguments, "--json"))["id"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help(here: State, command: str) -> None:
    shown = ok(here, *command.split(), "--help").decode()
    assert "Usage:" in shown
    assert "Traceback" not in shown


def test_life_of_a_key(here: State) -> None:
    key = create(here, "cli key", "--alias", "cli-alias")
    assert key in ok(here, "keys", "list").decode()
    shown = json.loads(ok(here, "keys", "show", "cli-alias", "--json"))
    assert (shown["id"], shown["kind"], shown["state"], shown["versions"]) == (key, "root", "active", 1)
    assert "cli-alias" in ok(here, "keys", "show", key).decode()
    assert json.loads(ok(here, "keys", "rotate", key, "--json"))["versions"] == 2
    assert json.loads(ok(here, "keys", "delete", key, "--yes", "--json"))["state"] == "destroyed"


def test_delete_asks_first(here: State) -> None:
    key = create(here, "not deleted")
    assert here.run("keys", "delete", key, stdin=b"n\n").returncode == 1
    assert json.loads(ok(here, "keys", "show", key, "--json"))["state"] == "active"


def test_wrap_and_unwrap_by_pipe(here: State) -> None:
    key = create(here, "cli wrap")
    secret = bytes(range(256))
    wrapped = ok(here, "wrap", key, "--aad", "one", "--aad", "two", stdin=secret)
    assert ok(here, "unwrap", key, "--aad", "one", "--aad", "two", stdin=wrapped) == secret
    done = here.run("unwrap", key, "--aad", "two", "--aad", "one", stdin=wrapped)
    assert done.returncode == 1
    assert done.stdout == b""


def test_json_forms(here: State) -> None:
    key = create(here, "cli json")
    wrapped = json.loads(ok(here, "wrap", key, "--generate", "--json"))
    opened = json.loads(ok(here, "unwrap", key, "--json", stdin=wrapped["ciphertext"].encode()))
    assert len(base64.b64decode(opened["plaintext"])) == 32
    assert opened["keyVersion"] == wrapped["keyVersion"]


def test_doctor_is_content(here: State) -> None:
    report = ok(here, "doctor").decode()
    for subject in ("token", "mechanisms", "sentinel", "database", "clock", "keys"):
        assert re.search(rf"^ok     {subject} ", report, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("keys", "show", "nobody"), 1),
        (("wrap", "nobody"), 1),
        (("unwrap", "nobody"), 1),
        (("keys", "create", "x"), 1),
        (("keys", "list", "--instance", "x"), 1),
        (("call", "GET", "/keys"), 1),
        (("dance",), 2),
        (("keys", "create"), 2),
    ],
)
def test_errors_are_short(here: State, arguments: tuple[str, ...], code: int) -> None:
    """Exit code 1 and one line; wrong usage is 2."""
    done = here.run(*arguments)
    assert done.returncode == code
    text = done.stderr.decode()
    assert "Traceback" not in text
    if code == 1:
        assert re.fullmatch(r"hsmkms: [^\n]+\n", text), text
