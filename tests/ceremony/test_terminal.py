"""As people hold it: a signed plan, 3 of 5 shares typed at a terminal, one of them wrong; record, report, proof."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from hsmkms.ceremony import components
from hsmkms.ceremony.shares import split
from tests.ceremony.conftest import CUSTODIANS, LEADER, WITNESSES
from tests.ceremony.plans import Leader, make_leader, plan_text
from tests.support.deployment import PROGRAM, ROOT, State
from tests.support.terminal import Terminal
from tests.token.conftest import pkcs11_tool

CLEAR = "\x1b[H\x1b[2J\x1b[3J"
ALICE, BOB, CAROL, DAVE, ERIN = CUSTODIANS


@pytest.fixture
def leader(tmp_path: Path) -> Leader:
    return make_leader(tmp_path)


@pytest.fixture
def key() -> bytes:
    return os.urandom(32)


@pytest.fixture
def plan(state: State, tmp_path: Path, leader: Leader, key: bytes) -> Path:
    """A plan for the token of `state`, signed by the command for it."""
    serial = re.search(r"serial (\w+)", state.run("doctor").stdout.decode())
    assert serial
    path = tmp_path / "plan.toml"
    expected = components.check_values(bytearray(key)).cmac
    path.write_text(plan_text(serial=serial[1], source=f'expected = "{expected}"\n'))
    done = state.run("ceremony", "plan", "sign", str(path), "--key", str(leader.private))
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(path.read_bytes()).hexdigest().encode() in done.stdout
    return path


def at_terminal(state: State, *arguments: str) -> Terminal:
    return Terminal([str(PROGRAM), "ceremony", *arguments], state.environment(), ROOT)


def attend(terminal: Terminal, plan: Path) -> None:
    prompt = "First 8 digits of the plan's SHA-256, from the paper copy"
    terminal.answer(prompt, "00000000")
    terminal.answer(prompt, hashlib.sha256(plan.read_bytes()).hexdigest()[:8])
    for who in (LEADER, *WITNESSES, *CUSTODIANS):
        terminal.expect(f"Who acts: {who} (")
        terminal.answer("Your name", who)


def enter(terminal: Terminal, who: str, *entries: tuple[str, str | None]) -> None:
    """Each entry twice, and what the screen says to it."""
    terminal.expect(f"Who acts: {who} (custodian)")
    for entry, refused in entries:
        terminal.answer("Your share", entry)
        if entry:
            terminal.answer("The same again", entry)
        if refused is not None:
            terminal.expect(refused)


def close(terminal: Terminal) -> None:
    terminal.answer("Is it right, and shall the key be put on the token? (yes or no)", "yes")
    for who in WITNESSES:
        terminal.expect(f"Who acts: {who} (witness)")
        terminal.answer("Your name", who)
    terminal.expect("The ceremony is over.")
    assert terminal.end() == 0


def hold(state: State, plan: Path, leader: Leader, shares: tuple[str, ...], wrong: str) -> Terminal:
    with at_terminal(state, "run", str(plan), "--leader-key", str(leader.public)) as terminal:
        attend(terminal, plan)
        enter(terminal, ALICE, (shares[0], None))
        enter(terminal, BOB, (wrong, "belongs to another set"), (shares[1], None))
        enter(terminal, CAROL, ("", None))
        enter(terminal, DAVE, (shares[3], None))
        close(terminal)
        return terminal


def test_three_of_five_with_one_wrong_share(
    state: State, plan: Path, leader: Leader, key: bytes, tmp_path: Path
) -> None:
    shares, wrong = tuple(split(bytearray(key), 3, 5)), split(bytearray(os.urandom(32)), 3, 5)[1]
    terminal = hold(state, plan, leader, shares, wrong)
    _require_unseen(terminal, [*shares, wrong])
    _require_cleared(terminal)
    record = tmp_path / "plan.record.jsonl"
    made = next(step for line in record.read_text().splitlines() if (step := json.loads(line))["what"] == "key made")
    listed = pkcs11_tool(state, "--list-objects", "--type", "secrkey")
    assert f"ID:         {made['data']['version'].replace('-', '')}" in listed

    verified = state.run("ceremony", "verify", str(record))
    assert (verified.returncode, verified.stderr) == (0, b"")
    _require_report(state, record, tmp_path, made["data"]["check_values"]["cmac"])

    # One byte, in the step that says that Bob's wrong share was refused.
    lines = record.read_bytes().splitlines(keepends=True)
    number = next(place for place, line in enumerate(lines, 1) if b"another set" in line)
    lines[number - 1] = lines[number - 1].replace(b"another set", b"another see")
    record.write_bytes(b"".join(lines))
    broken = state.run("ceremony", "verify", str(record))
    assert broken.returncode == 1
    assert broken.stderr.startswith(f"hsmkms: Step {number} of the record is broken".encode())
    assert state.run("ceremony", "report", str(record), "-o", str(tmp_path / "no.pdf")).returncode == 1
    assert not (tmp_path / "no.pdf").exists()


def test_what_is_typed_before_it_is_asked_for_is_not_shown(
    state: State, plan: Path, leader: Leader, key: bytes
) -> None:
    shares = tuple(split(bytearray(key), 3, 5))
    with at_terminal(state, "run", str(plan), "--leader-key", str(leader.public)) as terminal:
        attend(terminal, plan)
        terminal.expect("Take the seat.")
        terminal.process.send_signal(signal.SIGSTOP)
        terminal.write(shares[0])
        terminal.process.send_signal(signal.SIGCONT)
        # What is not dropped because it came too late is taken back by the terminal's own key for that, Ctrl-U.
        terminal.answer("Your share", f"\x15{shares[0]}")
        terminal.answer("The same again", shares[0])
        terminal.expect(f"Who acts: {BOB} (custodian)")
    _require_unseen(terminal, [shares[0]])


def _require_unseen(terminal: Terminal, shares: list[str]) -> None:
    """Nothing of a share was ever on the screen."""
    for share in shares:
        words = share.split()
        assert not any(" ".join(words[place : place + 2]) in terminal.shown for place in range(len(words) - 1))


def _require_cleared(terminal: Terminal) -> None:
    """The screen was cleared before each person's turn."""
    turns = terminal.shown.split("Who acts: ")
    assert len(turns) == 18
    assert all(CLEAR in turn for turn in turns[:-1])


def _require_report(state: State, record: Path, place: Path, check_value: str) -> None:
    """The PDF has what the record has, and is no blank page."""
    report = place / "report.pdf"
    done = state.run("ceremony", "report", str(record), "-o", str(report))
    assert (done.returncode, done.stderr) == (0, b"")
    text = subprocess.run(["pdftotext", "-layout", report, "-"], capture_output=True, text=True, check=True).stdout
    text = " ".join(text.split())
    last = json.loads(record.read_bytes().splitlines()[-1])["hash"]
    for wanted in (
        "Key ceremony: Root key of payments, 2027",
        "SLIP-39 shares, 3 of 5",
        check_value,
        last,
        "CKA_EXTRACTABLE no",
        "This share belongs to another set",
        "Signature",
        *(f"{name} (custodian)" for name in CUSTODIANS),
        *(f"{name} (witness)" for name in WITNESSES),
        f"{LEADER} (leader)",
    ):
        assert wanted in text, wanted
    assert "REHEARSAL" not in text
    subprocess.run(["pdftoppm", "-png", "-gray", "-r", "60", report, place / "page"], check=True)
    pages = sorted(place.glob("page*.png"))
    assert len(pages) >= 2
    for page in pages:
        pixels = subprocess.run(
            ["pdftoppm", "-gray", "-r", "60", "-f", page.stem.split("-")[1], "-singlefile", report],
            capture_output=True,
            check=True,
        ).stdout
        dark = sum(value < 128 for value in pixels[20:])
        assert page.read_bytes().startswith(b"\x89PNG")
        assert dark > 200


def test_killed_in_the_middle_and_gone_on_with(state: State, plan: Path, leader: Leader, key: bytes) -> None:
    shares = split(bytearray(key), 3, 5)
    arguments = ("run", str(plan), "--leader-key", str(leader.public))
    with at_terminal(state, *arguments) as terminal:
        attend(terminal, plan)
        enter(terminal, ALICE, (shares[0], None))
        terminal.expect(f"Who acts: {BOB} (custodian)")
        terminal.process.send_signal(signal.SIGKILL)
        terminal.process.wait()
    with at_terminal(state, *arguments) as terminal:
        terminal.answer(
            "First 8 digits of the plan's SHA-256, from the paper copy",
            hashlib.sha256(plan.read_bytes()).hexdigest()[:8],
        )
        for who, share in zip((ALICE, BOB, CAROL), shares, strict=False):
            enter(terminal, who, (share, None))
        close(terminal)
    done = state.run("ceremony", "verify", str(plan.with_suffix(".record.jsonl")))
    assert done.returncode == 0, done.stderr


def test_stopped_by_a_key(state: State, plan: Path, leader: Leader) -> None:
    """Ctrl-C while nothing is shown leaves a terminal that shows what is typed."""
    with at_terminal(state, "run", str(plan), "--leader-key", str(leader.public)) as terminal:
        attend(terminal, plan)
        terminal.expect("Your share: ")
        terminal.process.send_signal(signal.SIGINT)
        terminal.expect("Stopped. Start again with the same plan to go on.")
        assert terminal.end() == 1


def test_what_is_refused_before_anybody_is_asked(state: State, plan: Path, leader: Leader, tmp_path: Path) -> None:
    other = make_leader(tmp_path, name="other")
    run = ("ceremony", "run", str(plan))
    assert b"Give --leader-key" in state.run(*run).stderr
    assert b"not the one that its leader signed" in state.run(*run, "--leader-key", str(other.public)).stderr
    assert b"needs a terminal" in state.run(*run, "--leader-key", str(leader.public)).stderr
    plan.write_text(plan.read_text().replace("k = 3", "k = 2"))
    assert b"not the one that its leader signed" in state.run(*run, "--leader-key", str(leader.public)).stderr
    plan.write_text(plan_text())
    leader.sign(plan)
    assert b"serial" in state.run(*run, "--leader-key", str(leader.public)).stderr


def test_a_rehearsal_with_practice_parts(state: State, plan: Path, tmp_path: Path) -> None:
    """Unattended, with the plan's own screens; the real token gets nothing."""
    before = pkcs11_tool(state, "--list-objects")
    done = state.run("ceremony", "practice", str(plan))
    parts = dict(line.split(": ", 1) for line in done.stdout.decode().splitlines())
    answers = {
        LEADER: [hashlib.sha256(plan.read_bytes()).hexdigest()[:8], LEADER, "yes"],
        **{who: [who, who] for who in WITNESSES},
        **{who: [who, part, part] for who, part in parts.items()},
    }
    file = tmp_path / "answers.json"
    file.write_text(json.dumps(answers))
    script = [str(ROOT / "scripts" / "key-ceremony"), str(plan), "--rehearse", "--answers", str(file)]
    for _ in range(2):
        rehearsed = subprocess.run(script, capture_output=True, text=True, env=state.environment(), check=True)
        assert "REHEARSAL" in rehearsed.stdout
    assert not any(part in rehearsed.stdout for part in parts.values())
    record = tmp_path / "plan.rehearsal.jsonl"
    assert b"This was a REHEARSAL." in state.run("ceremony", "verify", str(record)).stdout
    assert state.run("ceremony", "report", str(record), "-o", str(tmp_path / "rehearsal.pdf")).returncode == 0
    text = subprocess.run(["pdftotext", tmp_path / "rehearsal.pdf", "-"], capture_output=True, check=True).stdout
    assert b"(REHEARSAL)" in text
    assert pkcs11_tool(state, "--list-objects") == before


@pytest.mark.parametrize("text", ["[]", '{"Lea": "yes"}', '{"Lea": [1]}', "{"])
def test_answers_that_are_none(state: State, plan: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "answers.json"
    file.write_text(text)
    done = state.run("ceremony", "rehearse", str(plan), "--answers", str(file))
    assert done.returncode == 1
    assert b"answers in" in done.stderr
