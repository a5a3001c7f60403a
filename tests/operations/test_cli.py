"""The command line as people use it: each command through the console script, on a deployment of its own.

The promise: a `--help` that a newcomer can follow, errors of one line and no traceback, exit code 1 for what was
refused and 2 for wrong usage. A process costs a second, so help and usage, which open nothing, run inside this one.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sqlite3
import uuid
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hsmkms.cli.main import app
from tests.support.deployment import State

DEK = bytes(range(256))[::-1]  # Every byte there is, so that a text layer in between would show.

NOBODY = "4d4ff6f0-0000-4000-8000-000000000000"
COMMANDS = [
    (),
    ("init",),
    ("serve",),
    ("up",),
    ("wrap",),
    ("unwrap",),
    ("doctor",),
    ("call",),
    ("backup",),
    ("restore",),
    ("hsm",),
    *(("hsm", command) for command in ("status", "accept", "login")),
    ("jobs",),
    ("events",),
    ("webhooks",),
    ("audit",),
    *(("audit", command) for command in ("verify", "public-key", "search", "export", "tail", "retire")),
    *(("webhooks", command) for command in ("list", "add", "remove")),
    ("ceremony",),
    *(("ceremony", command) for command in ("run", "rehearse", "practice", "verify", "report", "plan")),
    ("ceremony", "plan", "sign"),
    ("adopt",),
    ("adopt", "status"),
    ("adopt", "passphrase"),
    *(("adopt", "passphrase", command) for command in ("create", "show")),
    ("adopt", "volume"),
    *(("adopt", "volume", command) for command in ("create", "open", "close", "run", "reencrypt", "remove", "status")),
    ("kubernetes-plugin",),
    *(("kubernetes-plugin", command) for command in ("install", "check", "deregister")),
    ("version",),
    ("keys",),
    *(("keys", command) for command in ("list", "create", "show", "rotate", "adopt", "delete")),
    ("import",),
    ("import", "prepare"),
    ("instances",),
    *(("instances", command) for command in ("list", "show", "create", "delete", "restore", "open-network")),
    ("authorizations",),
    *(("authorizations", command) for command in ("list", "create", "delete")),
    ("iam",),
    *(("iam", command) for command in ("recover", "rotate-signing-key", "end-tokens")),
    *(
        ("iam", group, *command)
        for group, commands in {
            "users": ("list", "create", "delete", "lock", "unlock"),
            "service-ids": ("list", "create", "delete", "lock", "unlock"),
            "api-keys": ("list", "create", "rotate", "lock", "unlock", "delete"),
            "groups": ("list", "create", "add", "remove", "delete"),
            "policies": ("list", "create", "delete"),
            "logins": ("list", "add", "remove"),
        }.items()
        for command in ((), *((name,) for name in commands))
    ),
]


@pytest.fixture(scope="module")
def here(seed_state: State, tmp_path_factory: pytest.TempPathFactory) -> State:
    """A deployment for all tests of this file, which only add to it."""
    return seed_state.copy_to(tmp_path_factory.mktemp("cli") / "state")


@pytest.fixture
def key(here: State) -> str:
    """Id of a fresh root key."""
    return str(as_json(here, "keys", "create", "a root key")["id"])


@pytest.fixture(scope="module")
def wrapping_key(here: State) -> str:
    """Alias of a root key that no test changes."""
    output(here, "keys", "create", "for wrapping only", "--alias", "cli-wrapping")
    return "cli-wrapping"


@pytest.fixture
def empty(tmp_path: Path) -> State:
    """A state directory with nothing in it."""
    return State(tmp_path)


def output(state: State, *arguments: str, stdin: bytes = b"") -> bytes:
    """Standard output of a command that has to succeed, silently but for that."""
    done = state.run(*arguments, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    return done.stdout


def as_json(state: State, *arguments: str, stdin: bytes = b"") -> Any:
    """What a command prints with --json."""
    return json.loads(output(state, *arguments, "--json", stdin=stdin))


def refusal(state: State, *arguments: str, stdin: bytes = b"", **extra: str) -> str:
    """The one line that a command ends with, and nothing else of it."""
    done = state.run(*arguments, stdin=stdin, **extra)
    assert (done.returncode, done.stdout) == (1, b""), (done.returncode, done.stdout, done.stderr)
    line = re.fullmatch(r"hsmkms: (\S[^\n]*)\n", done.stderr.decode())
    assert line, done.stderr.decode()
    return line[1]


def usage(*arguments: str) -> Result:
    """A command that opens neither token nor database, as a terminal of 100 columns shows it."""
    return CliRunner().invoke(app, arguments, prog_name="hsmkms", terminal_width=100, color=False)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(command: tuple[str, ...]) -> None:
    """Usage, then at least one sentence on what it is for."""
    shown = usage(*command, "--help")
    assert shown.exit_code == 0
    lines = [line.strip() for line in shown.output.splitlines() if line.strip()]
    assert lines[0].startswith(" ".join(("Usage: hsmkms", *command, "[OPTIONS]")))
    assert re.match(r"[A-Z].*\w\b.*", lines[1])
    assert "." in lines[1] + lines[2]


def test_help_names_every_command() -> None:
    """What is tested above is all there is."""
    assert _commands() | {()} == set(COMMANDS)


def _commands(*group: str) -> set[tuple[str, ...]]:
    """Every command below a group, from what its help lists."""
    parts = usage(*group, "--help").output.split("Commands")
    if len(parts) == 1:
        return set()
    names = re.findall(r"^│ ([\w-]+)", parts[1], re.MULTILINE)
    return {(*group, name) for name in names} | {below for name in names for below in _commands(*group, name)}


@pytest.mark.parametrize(
    "arguments",
    [(), ("keys",), ("dance",), ("keys", "dance"), ("keys", "show"), ("wrap", "a", "b"), ("doctor", "--colour")],
    ids=" ".join,
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    shown = usage(*arguments)
    assert shown.exit_code == 2
    assert "Usage: hsmkms" in shown.output


def test_wrong_usage_of_the_program(here: State) -> None:
    done = here.run("keys", "dance")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Traceback" not in done.stderr


def test_completion_script(here: State) -> None:
    """Of the shell that is named, whatever shell the tests were started from."""
    shown = here.run("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert b"hsmkms" in shown.stdout


def test_version(here: State) -> None:
    assert re.fullmatch(rb"\d+\.\d+\.\d+\n", output(here, "version"))


def test_create_list_show(here: State) -> None:
    created = as_json(here, "keys", "create", "shown", "--alias", "cli-alias", "--alias", "cli-other")
    assert str(uuid.UUID(created["id"])) == created["id"]
    assert created["aliases"] == ["cli-alias", "cli-other"]
    assert (created["kind"], created["state"], created["versions"]) == ("root", "active", 1)
    assert as_json(here, "keys", "show", "cli-other") == created
    assert created in as_json(here, "keys", "list")
    row = next(line for line in output(here, "keys", "list").decode().splitlines() if created["id"] in line)
    assert row.split() == [created["id"], "shown", "root", "active", "default", "1"]
    shown = output(here, "keys", "show", created["id"]).decode()
    assert dict(line.split(maxsplit=1) for line in shown.splitlines())["aliases"] == "cli-alias, cli-other"


def test_standard_key_is_listed_without_payload(here: State) -> None:
    created = as_json(here, "keys", "create", "extractable", "--standard")
    assert (created["kind"], created["versions"]) == ("standard", 0)
    assert "payload" not in as_json(here, "keys", "show", created["id"])
    assert "root key" in refusal(here, "wrap", created["id"], stdin=DEK)
    assert "root key" in refusal(here, "keys", "rotate", created["id"])


def test_wrap_and_unwrap_are_byte_for_byte(here: State, wrapping_key: str) -> None:
    ciphertext = output(here, "wrap", wrapping_key, stdin=DEK)
    assert base64.b64decode(ciphertext.strip(), validate=True)
    assert output(here, "unwrap", wrapping_key, stdin=ciphertext) == DEK


def test_wrap_and_unwrap_as_json(here: State, wrapping_key: str) -> None:
    wrapped = as_json(here, "wrap", wrapping_key, stdin=DEK)
    opened = as_json(here, "unwrap", wrapping_key, stdin=wrapped["ciphertext"].encode())
    assert base64.b64decode(opened["plaintext"], validate=True) == DEK
    assert opened["keyVersion"] == wrapped["keyVersion"]
    assert opened["ciphertext"] is None, "the current version made it, so there is no newer one"


def test_rotate(here: State, key: str) -> None:
    """Old ciphertexts open, and come back sealed by the new version."""
    old = as_json(here, "wrap", key, stdin=DEK)
    assert as_json(here, "keys", "rotate", key)["versions"] == 2
    opened = as_json(here, "unwrap", key, stdin=old["ciphertext"].encode())
    assert base64.b64decode(opened["plaintext"]) == DEK
    assert opened["keyVersion"] == old["keyVersion"]
    renewed = as_json(here, "unwrap", key, stdin=opened["ciphertext"].encode())
    assert base64.b64decode(renewed["plaintext"]) == DEK
    assert renewed["ciphertext"] is None, "it is the newest version's"
    assert renewed["keyVersion"] != old["keyVersion"]
    assert "Rotate it again after" in refusal(here, "keys", "rotate", key)


def test_aad_binds_in_its_order(here: State, wrapping_key: str) -> None:
    ciphertext = output(here, "wrap", wrapping_key, "--aad", "one", "--aad", "two", stdin=DEK)
    assert output(here, "unwrap", wrapping_key, "--aad", "one", "--aad", "two", stdin=ciphertext) == DEK
    for other in ([], ["--aad", "two", "--aad", "one"], ["--aad", "onetwo"]):
        assert "does not belong" in refusal(here, "unwrap", wrapping_key, *other, stdin=ciphertext)


def test_generated_dek(here: State, wrapping_key: str) -> None:
    """`--generate` reads no input and never shows the DEK: whoever needs it unwraps it."""
    wrapped = as_json(here, "wrap", wrapping_key, "--generate", stdin=DEK)
    assert set(wrapped) == {"ciphertext", "keyVersion"}
    generated = output(here, "unwrap", wrapping_key, stdin=wrapped["ciphertext"].encode())
    assert len(generated) == 32
    assert generated not in DEK


def test_delete(here: State, key: str) -> None:
    ciphertext = output(here, "wrap", key, stdin=DEK)
    assert as_json(here, "keys", "delete", key, "--yes")["state"] == "destroyed"
    assert key in output(here, "keys", "list").decode(), "deleted keys are listed too"
    for refused in (("unwrap", key), ("keys", "delete", key, "--yes")):
        assert "deleted" in refusal(here, *refused, stdin=ciphertext)


def test_delete_asks(here: State, key: str) -> None:
    """Anything but yes keeps the key, a script without an answer too."""
    for answer in (b"n\n", b""):
        done = here.run("keys", "delete", key, stdin=answer)
        assert (done.returncode, done.stdout.strip()) == (1, b"")
        assert f"Delete {key}?" in done.stderr.decode()
        assert "Traceback" not in done.stderr.decode()
    assert as_json(here, "keys", "show", key)["state"] == "active"
    assert here.run("keys", "delete", key, stdin=b"y\n").returncode == 0
    assert as_json(here, "keys", "show", key)["state"] == "destroyed"


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        (("keys", "show", "nobody"), b"", "does not exist"),
        (("keys", "rotate", NOBODY), b"", "does not exist"),
        (("keys", "delete", "nobody", "--yes"), b"", "does not exist"),
        (("keys", "create", "x"), b"", "name"),
        (("keys", "create", "fine", "--alias", "not an alias"), b"", "Aliases"),
        (("wrap", "nobody"), DEK, "does not exist"),
        (("unwrap", "nobody"), b"AAAA", "does not exist"),
        (("keys", "list", "--instance", NOBODY), b"", "--instance"),
        (("init", "--softhsm", "/nonexistent/template"), b"", "nonexistent"),
        (("call", "GET", "/keys"), b"", "running"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_refusals_are_one_line(here: State, empty: State, arguments: tuple[str, ...], stdin: bytes, says: str) -> None:
    state = empty if arguments[0] == "init" else here
    assert says in refusal(state, *arguments, stdin=stdin)


def test_alias_in_use(here: State) -> None:
    output(here, "keys", "create", "first of two", "--alias", "cli-taken")
    assert "alias" in refusal(here, "keys", "create", "second of two", "--alias", "cli-taken")


@pytest.mark.parametrize("size", [0, 4_097])
def test_wrap_of_too_little_or_too_much(here: State, wrapping_key: str, size: int) -> None:
    assert "1 to 4096 bytes" in refusal(here, "wrap", wrapping_key, stdin=b"d" * size)


@pytest.mark.parametrize("stdin", [b"", b"AAAA", DEK], ids=["empty", "AAAA", "bytes"])
def test_unwrap_of_what_is_no_ciphertext(here: State, wrapping_key: str, stdin: bytes) -> None:
    assert "ciphertext" in refusal(here, "unwrap", wrapping_key, stdin=stdin)


def test_without_a_deployment(empty: State) -> None:
    """Nobody is asked for a PIN, and nothing is made by a command that only reads."""
    for arguments in (("keys", "list"), ("call", "GET", "/keys")):
        refusal(empty, *arguments)
    assert list(empty.path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="root is refused, and this is another user")
def test_root_is_refused_where_the_service_is_another_users(state: State) -> None:
    """It could not open an audit log of root's, and would have to refuse everybody."""
    os.chown(state.path, 65_534, 65_534)
    before = sorted(state.path.rglob("*"))
    for command in (("keys", "list"), ("doctor",), ("init",), ("serve",), ("backup", str(state.path / "file"))):
        assert "Run this as nobody." in refusal(state, *command)
    assert sorted(state.path.rglob("*")) == before


def test_init_where_no_directory_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Set HSMKMS_STATE_DIR" in refusal(State(tmp_path / "file" / "state"), "init")


def test_init_twice_changes_nothing(here: State) -> None:
    before = (here.path / "client.env").read_bytes()
    assert b"initialised already" in output(here, "init")
    assert before == (here.path / "client.env").read_bytes()


def test_doctor_of_a_healthy_deployment(here: State) -> None:
    report = output(here, "doctor").decode().splitlines()
    assert all(line.startswith("ok ") for line in report)
    subjects = {line.split()[1] for line in report}
    assert {"token", "mechanisms", "sentinel", "database", "clock", "import", "keys"} <= subjects


def test_doctor_says_how_keys_come_in(here: State) -> None:
    """On SoftHSM 2.6.1, which does OAEP with SHA-1 only; and what the settings make of that."""

    def says(**settings: str) -> list[str]:
        report = here.run("doctor", **settings).stdout.decode()  # type: ignore[arg-type]
        return [way for line in re.findall(r"^ok +import +(.*)$", report, re.MULTILINE) for way in line.split("; ")]

    sha256, sha1 = "RSAES_OAEP_SHA_256 by way of this process", "RSAES_OAEP_SHA_1 inside the token"
    assert says() == [sha256, f"{sha1}, but forbidden by import_oaep_sha1=false"]
    assert says(HSMKMS_IMPORT_OAEP_SHA1="true", HSMKMS_IMPORT_BY_PROCESS="false") == [
        f"{sha256}, but forbidden by import_by_process=false",
        sha1,
    ]


def test_doctor_says_by_its_exit_code(state: State) -> None:
    """A row of the database that was changed behind the service's back: one WRONG line, exit code 1, no traceback."""
    key = as_json(state, "keys", "create", "to be spoilt")["id"]
    database = sqlite3.connect(state.path / "hsmkms.db")
    with database:
        database.execute("UPDATE key_version SET check_value = zeroblob(8) WHERE key_id = ?", (key,))
    database.close()
    done = state.run("doctor")
    assert (done.returncode, done.stderr) == (1, b"")
    wrong = [line for line in done.stdout.decode().splitlines() if line.startswith("WRONG")]
    assert any("check value" in line and key in line for line in wrong)
    assert "another key under this version's id" in refusal(state, "wrap", key, stdin=DEK)


def test_a_file_is_missing(state: State) -> None:
    """What a newcomer breaks first: the database, the token's configuration, the credentials."""
    for name in ("hsmkms.db", "softhsm2.conf", "pin", "client.env"):
        away = (state.path / name).rename(state.path / "away")
        assert refusal(state, *(("call", "GET", "/keys") if name == "client.env" else ("doctor",)))
        away.replace(state.path / name)
    assert output(state, "doctor")
