"""What a crash left is closed, and nothing that was written anew gets a signature."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest
from structlog.testing import capture_logs

from hsmkms.audit import chain
from hsmkms.audit.logfile import logs_in
from hsmkms.audit.reader import Verified
from hsmkms.audit.takeover import Takeover
from hsmkms.clock import system_clock
from tests.support.journals import OFTEN, RARELY, Deployment, rewrite, write


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path / "audit")


def crashed(deployment: Deployment, tmp_path: Path, events: int = 5) -> Path:
    """A log as a process leaves it that is killed, with a checkpoint of the first event at least, and events behind."""
    journal = deployment.journal(RARELY)
    write(journal, events)
    (path,) = logs_in([deployment.directory])
    while path.read_bytes().count(b',"checkpoint":') == 0:
        time.sleep(0.01)
    write(journal, 2, 100)
    shutil.copy(path, tmp_path / "left")
    heads = dict(deployment.heads)
    journal.close()
    shutil.copy(tmp_path / "left", path)
    deployment.heads = heads
    return path


def again(deployment: Deployment) -> list[str]:
    """Run one more process; the errors that it logged."""
    with capture_logs() as lines:
        journal = deployment.journal(RARELY)
        write(journal, 1, 900)
        journal.close()
    return [line["reason"] for line in lines if line["log_level"] == "error"]


def stripped(kind: str, content: bytes) -> bytes | None:
    """Without a signature, and with another event in the place of one."""
    return None if kind == "checkpoint" else content.replace(b"event-0", b"event-8")


def of(deployment: Deployment, path: Path) -> Verified:
    return next(one for one in deployment.verify_with_heads() if one.log == path.stem)


def resumed_in(path: Path) -> chain.Resumed:
    parts = chain.split(path.read_bytes().splitlines()[-2])
    assert parts is not None
    content = parts[1].partition(b'"resumed":')[2].removesuffix(b"}")
    return msgspec.json.decode(content, type=chain.Resumed)


def test_what_was_unsigned_is_told(deployment: Deployment, tmp_path: Path) -> None:
    """The first record that no signature of its writer covers."""
    path = crashed(deployment, tmp_path)
    signed = of(deployment, path).signed
    records = path.read_bytes().splitlines()
    first = next(n for n, line in enumerate(records, 1) if n > signed and b',"checkpoint":' not in line)
    assert again(deployment) == []
    assert of(deployment, path).closed
    assert resumed_in(path).unsigned_from == first
    assert all(one.sound for one in deployment.verify_with_heads())


def test_a_closed_log_that_was_written_anew_is_not_signed(deployment: Deployment) -> None:
    """Its signatures gone, an event exchanged, longer than it was."""
    journal = deployment.journal(OFTEN)
    write(journal, 5)
    journal.close()
    (path,) = logs_in([deployment.directory])
    known = deployment.heads[path.stem]
    rewrite(path, stripped, more=20)
    forged = path.read_bytes()
    (reason,) = again(deployment)
    assert "it was closed" in reason
    assert path.read_bytes() == forged
    assert deployment.heads[path.stem] == known
    assert not of(deployment, path).sound


def test_a_crashed_log_that_was_written_anew_is_not_signed(deployment: Deployment, tmp_path: Path) -> None:
    path = crashed(deployment, tmp_path)
    rewrite(path, stripped, more=20)
    forged = path.read_bytes()
    (reason,) = again(deployment)
    assert "the database knows another record here" in reason
    assert path.read_bytes() == forged
    assert not of(deployment, path).sound


def test_a_crashed_log_that_was_cut_off_is_not_signed(deployment: Deployment, tmp_path: Path) -> None:
    path = crashed(deployment, tmp_path)
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    (reason,) = again(deployment)
    assert "which are gone" in reason
    assert not of(deployment, path).sound


def test_a_crashed_log_that_was_emptied_is_not_taken_away(deployment: Deployment, tmp_path: Path) -> None:
    path = crashed(deployment, tmp_path)
    path.write_bytes(b"")
    os.utime(path, (1, 1))
    (reason,) = again(deployment)
    assert "it is empty" in reason
    assert path.exists()
    assert not of(deployment, path).sound


def test_a_signature_that_is_wrong_is_not_gone_behind(deployment: Deployment, tmp_path: Path) -> None:
    """Without a row in the database the log's own checkpoints tell."""
    path = crashed(deployment, tmp_path)
    rewrite(path, lambda _, content: content.replace(b"event-0", b"event-8"), more=3)
    deployment.heads.clear()
    (reason,) = again(deployment)
    assert "what was signed is another record" in reason
    assert not of(deployment, path).sound


def test_a_checkpoint_that_nobody_signed_is_not_gone_behind(deployment: Deployment, tmp_path: Path) -> None:
    path = crashed(deployment, tmp_path)
    rewrite(path, lambda kind, content: content[:-10] + b'12345678"}' if kind == "checkpoint" else content)
    deployment.heads.clear()
    (reason,) = again(deployment)
    assert "the signature is not by the audit key" in reason
    assert not of(deployment, path).sound


def test_what_cannot_be_read_for_its_depth_is_in_nobodys_way(deployment: Deployment, tmp_path: Path) -> None:
    deep = b'{"checkpoint":{"x":' + b"[" * 20_000 + b"]" * 20_000 + b","
    path = crashed(deployment, tmp_path)
    rewrite(path, lambda kind, content: content.replace(b'{"checkpoint":{', deep) if kind == "checkpoint" else content)
    deployment.heads.clear()
    (reason,) = again(deployment)
    assert "cannot be read" in reason


def test_a_log_of_another_key_is_not_signed(deployment: Deployment, tmp_path: Path) -> None:
    other = Deployment(deployment.directory)
    path = crashed(other, tmp_path)
    (reason,) = again(deployment)
    assert "it names another public key" in reason
    assert not of(deployment, path).closed


def test_one_without_signature_or_row_is_not_proved_by_its_end(deployment: Deployment, tmp_path: Path) -> None:
    """Nothing tells it from one that crashed young, so its records are told as first signed afterwards."""
    path = crashed(deployment, tmp_path)
    rewrite(path, stripped)
    deployment.heads.clear()
    assert again(deployment) == []
    assert resumed_in(path).unsigned_from == 1


def test_logs_of_other_hosts_stay(deployment: Deployment, tmp_path: Path) -> None:
    """Brought here to be verified, say, while their host still writes them."""
    path = crashed(deployment, tmp_path)
    before = path.read_bytes()
    journal = deployment.journal(RARELY, "nodes")
    write(journal, 1)
    journal.close()
    assert path.read_bytes() == before


@pytest.mark.parametrize("part", ["database", "token"])
def test_nothing_is_signed_unchecked(deployment: Deployment, tmp_path: Path, part: str) -> None:
    """While the database or the token is away; it is tried again by itself."""
    path = crashed(deployment, tmp_path)
    before = path.read_bytes()
    setattr(deployment, f"{part}_away", True)
    with capture_logs() as lines:
        journal = deployment.journal(OFTEN)
        write(journal, 1, 900)
        while not any(line.get("log") == path.stem for line in lines):
            time.sleep(0.01)
        assert path.read_bytes() == before
        setattr(deployment, f"{part}_away", False)
        while path.read_bytes() == before:
            time.sleep(0.01)
        journal.close()
    assert all(one.sound and one.closed for one in deployment.verify_with_heads())


def test_what_holds_no_record_is_taken_away(deployment: Deployment) -> None:
    """Of a process that was killed before its first record was whole, if it was not begun a moment ago."""
    journal = deployment.journal(RARELY)
    write(journal, 1)
    journal.close()
    (known,) = logs_in([deployment.directory])
    empty, torn = (deployment.directory / f"20260101T00000{n}-node-00000000.jsonl" for n in range(2))
    empty.touch()
    torn.write_bytes(known.read_bytes()[:300])
    assert again(deployment) == []
    assert empty.exists()
    for path in (empty, torn):
        os.utime(path, (1, 1))
    assert again(deployment) == []
    assert not empty.exists()
    assert not torn.exists()
    assert all(one.sound for one in deployment.verify_with_heads())


def test_a_log_has_its_name_when_nobody_can_take_it(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its making and its lock another process would find it empty."""
    real, seen = fcntl.flock, []

    def lock(descriptor: int, kind: int) -> None:
        seen.append(logs_in([deployment.directory]))
        real(descriptor, kind)

    journal = deployment.journal(RARELY)
    monkeypatch.setattr(fcntl, "flock", lock)
    write(journal, 1)
    journal.close()
    assert seen[0] == []
    assert [one.sound for one in deployment.verify()] == [True]


def test_what_never_was_a_log_is_taken_away(deployment: Deployment) -> None:
    """Of a process that was killed while it began one; not of one that begins one now, nor of another host."""
    assert again(deployment) == []
    old, young, other = (
        deployment.directory / f"20260101T000000-{n}.opening"
        for n in ("node-0000000a", "node-0000000b", "far-00000000")
    )
    for path in (old, young, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (1, 1))
    assert again(deployment) == []
    assert [path.exists() for path in (old, young, other)] == [False, True, True]


def test_what_cannot_be_read_is_in_nobodys_way(deployment: Deployment) -> None:
    """A link to nowhere, a directory, a file of other contents."""
    journal = deployment.journal(RARELY)
    write(journal, 1)
    journal.close()
    names = [deployment.directory / f"20260101T00000{n}-node-00000000.jsonl" for n in range(3)]
    names[0].symlink_to("nowhere")
    names[1].mkdir()
    names[2].write_bytes(b"something\n")
    (deployment.directory / "foreign.jsonl").symlink_to("nowhere")
    assert again(deployment) == ["record 1: it is no whole record"]
    own = [path for path in logs_in([deployment.directory]) if path.is_file() and path != names[2]]
    assert len(own) == 2


def test_what_is_left_during_a_look_is_looked_for_again(deployment: Deployment, tmp_path: Path) -> None:
    first = crashed(deployment, tmp_path).rename(tmp_path / "first")
    second = crashed(deployment, tmp_path)
    late = second.rename(tmp_path / "second")
    first = first.rename(deployment.directory / f"{next(log for log in deployment.heads if log != second.stem)}.jsonl")
    looking, go_on = threading.Event(), threading.Event()

    def known(log: str) -> chain.Head | None:
        looking.set()
        assert go_on.wait(10)
        return deployment.known(log)

    takeover = Takeover(deployment.directory, "node", system_clock, lambda: None)
    takeover.begin(replace(deployment.witness, known=known))
    assert looking.wait(10)
    late.rename(second)
    takeover.begin(deployment.witness)
    go_on.set()
    takeover.wait()
    takeover.go_on(deployment.witness)
    takeover.close()
    assert of(deployment, first).closed
    assert of(deployment, second).closed


def test_who_asks_whether_a_log_is_held_only_puts_its_end_off(deployment: Deployment, tmp_path: Path) -> None:
    path = crashed(deployment, tmp_path)
    takeover = Takeover(deployment.directory, "node", system_clock, lambda: None)
    with path.open("rb") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        takeover.begin(deployment.witness)
        takeover.wait()
    assert not of(deployment, path).closed
    takeover.go_on(deployment.witness)
    takeover.close()
    assert of(deployment, path).closed


def test_a_directory_that_cannot_be_listed_is_listed_again(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = crashed(deployment, tmp_path)
    takeover = Takeover(deployment.directory, "node", system_clock, lambda: None)

    def broken(*_: object) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched, capture_logs() as lines:
        patched.setattr(Path, "glob", broken)
        takeover.begin(deployment.witness)
        takeover.wait()
    assert [line["reason"] for line in lines] == ["Too many open files"]
    takeover.go_on(deployment.witness)
    takeover.close()
    assert of(deployment, path).closed
