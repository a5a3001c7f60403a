"""What `verify` says of logs that are being written, are elsewhere, cannot be read, or that a crash left."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hsmkms.audit import chain
from hsmkms.audit import verify as module
from hsmkms.audit.logfile import logs_in
from hsmkms.audit.reader import Verified
from hsmkms.audit.verify import verify
from hsmkms.cli.audit import app
from hsmkms.wiring import node_name
from tests.support.journals import OFTEN, RARELY, Deployment, write


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path / "audit")


def closed_log(deployment: Deployment, node: str, events: int = 3) -> Path:
    before = logs_in([deployment.directory])
    journal = deployment.journal(RARELY, node)
    write(journal, events)
    journal.close()
    (path,) = set(logs_in([deployment.directory])) - set(before)
    return path


def log_of(deployment: Deployment, node: str) -> Path:
    return next(path for path in logs_in([deployment.directory]) if f"-{node}-" in path.name)


def wait_for(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def crashed(deployment: Deployment, node: str, unsigned: int) -> Path:
    """A log with a signature and so many events behind its checkpoint, as a process leaves it that dies then."""
    journal = deployment.journal(RARELY, node)
    write(journal, 3)
    path = log_of(deployment, node)
    wait_for(lambda: b'"checkpoint":' in path.read_bytes())
    write(journal, unsigned, 3)
    left = path.read_bytes()
    journal.close()
    path.write_bytes(left)
    del deployment.heads[path.stem]
    return path


def end_what_was_left(deployment: Deployment) -> None:
    """As the next process of that node does."""
    journal = deployment.journal(RARELY, "one")
    write(journal, 1)
    journal.close()


def test_what_a_crash_left_unsigned_is_told(deployment: Deployment) -> None:
    path = crashed(deployment, "one", 4)
    records = path.read_bytes().count(b"\n")
    end_what_was_left(deployment)
    closed = path.read_bytes()
    log = {one.log: one for one in deployment.verify()}[path.stem]
    assert (log.sound, log.closed) == (True, True)
    (part,) = log.unproved
    # The checkpoint may stand behind events that it does not sign.
    assert part.last == records
    assert b'"event-3"' in path.read_bytes().splitlines()[records - 4]
    assert records - 6 <= part.first <= records - 3
    assert part.after is not None
    assert part.after < part.until
    said, other = (b'"unsignedFrom":%d' % number for number in (part.first, part.last + 1))
    rechained(path, lambda body: body.replace(said, other))
    changed = {one.log: one for one in deployment.verify()}[path.stem]
    assert changed.problem == "it says something else of what was signed before it"
    path.write_bytes(closed)
    (deployment.directory / "audit.pem").write_bytes(deployment.pem())
    arguments = ["verify", "--public-key", str(deployment.directory / "audit.pem"), str(deployment.directory)]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0
    note = f"note   {path.stem}  records {part.first} to {part.last} were first signed after a restart, at "
    assert any(line.startswith(note) for line in shown.stdout.splitlines())


def test_a_checkpoint_alone_is_no_record_without_proof(deployment: Deployment) -> None:
    path = crashed(deployment, "one", 0)
    lines = path.read_bytes().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if b'"checkpoint":' in line)
    body = chain.split(lines[at][:-1])
    assert body is not None
    signed = int(body[1].partition(b'"upto":')[2].partition(b",")[0])
    before = chain.split(lines[signed - 1][:-1])
    assert before is not None
    # What was written while it was being signed is cut off.
    kept = b'"seq":%d,' % (signed + 1) + body[1].partition(b",")[2]
    digest = chain.link(bytes.fromhex(before[0].decode()), kept)
    path.write_bytes(b"".join([*lines[:signed], chain.line(digest, kept)]))
    end_what_was_left(deployment)
    log = {one.log: one for one in deployment.verify()}[path.stem]
    assert (log.sound, log.unproved) == (True, [])


@pytest.mark.parametrize("retired", [False, True])
def test_what_one_saw_is_not_forgotten_for_a_later_one(deployment: Deployment, retired: bool) -> None:
    """Two logs say different things of one record: the first saw it before it was written anew."""
    path = closed_log(deployment, "a")
    head = deployment.heads[path.stem]
    deployment.heads[path.stem] = replace(head, digest="0" * 64)
    closed_log(deployment, "b")
    deployment.heads[path.stem] = head
    closed_log(deployment, "c")
    if retired:
        journal = deployment.journal(RARELY, "d")
        journal.retire_blocking({path.stem: (head.sequence, head.digest)})
        journal.close()
        path.unlink()
    one = next(one for one in deployment.verify_with_heads() if one.log == path.stem)
    assert (one.sound, one.broken_at) == (False, head.sequence)
    assert one.problem == (
        "what was retired is not what another log saw" if retired else "another log saw another record here"
    )


def test_other_nodes_logs_are_elsewhere(deployment: Deployment, tmp_path: Path) -> None:
    """On each host; whoever brings all logs to one place sees them all, and misses what is gone."""
    here, there = closed_log(deployment, "a"), closed_log(deployment, "b")
    heads = {head.log: (head.sequence, head.digest) for head in deployment.heads.values()}
    other = tmp_path / "b"
    other.mkdir()
    shutil.move(there, other)

    def found(*places: Path, here: str | None = None) -> dict[str, tuple[bool, bool]]:
        logs = verify(places, deployment.public_key, heads, here)
        return {one.log: (one.sound, one.elsewhere) for one in logs}

    assert found(deployment.directory, here="a") == {here.stem: (True, False), there.stem: (False, True)}
    assert found(deployment.directory, other) == {here.stem: (True, False), there.stem: (True, False)}
    assert found(deployment.directory) == {here.stem: (True, False), there.stem: (False, False)}
    # On a host with another name now, as after a restore: one log that is left tells that the others were here as well.
    second = closed_log(deployment, "a")
    heads[second.stem] = (deployment.heads[second.stem].sequence, deployment.heads[second.stem].digest)
    here.unlink()
    for name in ("a", "new"):
        assert found(deployment.directory, here=name)[here.stem] == (False, False)
    second.unlink()
    assert found(deployment.directory, here="a")[here.stem] == (False, False)


def test_a_host_verifies_its_own(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command without directories; with them every node's logs have to be there."""
    closed_log(deployment, "elsewhere1")
    closed_log(deployment, node_name())
    log_of(deployment, "elsewhere1").unlink()
    monkeypatch.setenv("HSMKMS_AUDIT_DIR", str(deployment.directory))
    (key := deployment.directory / "audit.pem").write_bytes(deployment.pem())
    shown = CliRunner().invoke(app, ["verify", "--public-key", str(key)])
    assert shown.exit_code == 0, shown.stdout
    assert "note   1 logs of elsewhere1 are not here and were not looked at" in shown.stdout
    shown = CliRunner().invoke(app, ["verify", "--public-key", str(key), str(deployment.directory)])
    assert shown.exit_code == 1
    assert "the whole log is missing" in shown.stdout


def rechained(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Each record's body as `change` makes it, with right hashes."""
    digest, lines = chain.genesis(path.stem), []
    for line in path.read_bytes().splitlines():
        parts = chain.split(line)
        assert parts is not None
        body = change(parts[1])
        digest = chain.link(digest, body)
        lines.append(chain.line(digest, body))
    path.write_bytes(b"".join(lines))


DEEP = b'"x":' + b"[" * 20_000 + b"]" * 20_000 + b","


def pem_spoilt(path: Path) -> None:
    rechained(path, lambda body: body.replace(b"BEGIN PUBLIC", b"BEGIN PUBLIK"))


def nested(path: Path) -> None:
    rechained(path, lambda body: body.replace(b'"retired":{', b'"retired":{' + DEEP))


def nested_checkpoint(path: Path) -> None:
    rechained(path, lambda body: body.replace(b'"checkpoint":{"checkpoint":{', b'"checkpoint":{"checkpoint":{' + DEEP))


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "number", "problem"),
    [
        (pem_spoilt, 1, "its public key is none"),
        (nested, 2, "it cannot be read"),
        (nested_checkpoint, None, "it cannot be read"),
        (a_directory, None, "it is no file"),
        (a_link_to_nothing, None, "it is no file"),
        (a_pipe, None, "it is no file"),
    ],
)
def test_what_cannot_be_read_is_named(
    deployment: Deployment, spoil: Callable[[Path], None], number: int | None, problem: str
) -> None:
    """By its log and record, and the others are verified."""
    journal = deployment.journal(RARELY, "one")
    journal.retire_blocking({})
    journal.close()
    path, sound = log_of(deployment, "one"), closed_log(deployment, "two")
    deployment.heads.clear()
    spoil(path)
    found = {one.log: one for one in deployment.verify()}
    assert found[sound.stem].sound
    assert (found[path.stem].sound, found[path.stem].problem) == (False, problem)
    assert number is None or found[path.stem].broken_at == number


def test_logs_that_come_while_others_are_read_are_not_missed(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that was read tells of one that began behind the list, and of records behind those that were read."""
    first, last = (deployment.journal(OFTEN, node) for node in ("a", "z"))
    for journal in (first, last):
        write(journal, 1)
    real: Callable[[bytes, bool, Path], Verified | None] = module._read
    reads: list[str] = []

    def slow(pem: bytes, locks_count: bool, path: Path) -> Verified | None:
        if "-z-" in path.name and not reads:
            reads.append(path.name)
            write(first, 5, 1)
            new = closed_log(deployment, "m")
            grown = deployment.heads[log_of(deployment, "a").stem].sequence

            def is_told() -> bool:
                write(last, 1)
                text = path.read_bytes()
                return new.stem.encode() in text and deployment.heads[path.stem].sequence > grown

            wait_for(is_told)
        return real(pem, locks_count, path)

    monkeypatch.setattr(module, "_read", slow)
    found = verify([deployment.directory], deployment.public_key, {})
    assert reads
    assert [(one.sound, one.problem) for one in found] == [(True, None)] * 3
    for journal in (first, last):
        journal.close()


@pytest.fixture
def held(deployment: Deployment) -> Iterator[Path]:
    """A log that was cut behind its second record while any process holds a lock on it."""
    path = closed_log(deployment, "one", 10)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield path
    os.close(descriptor)


def test_a_lock_proves_nothing(deployment: Deployment, held: Path) -> None:
    """With the database's heads a log that is being written may lack a signature, but no record that was seen; without
    them nobody knows what was."""

    def words(heads: dict[str, tuple[int, str]] | None) -> Sequence[object]:
        (log,) = verify([deployment.directory], deployment.public_key, heads)
        return log.sound, log.held, log.problem

    head = deployment.heads[held.stem]
    assert words(None) == (False, False, None)
    assert words({}) == (True, True, None)
    problem = f"records up to {head.sequence} were seen by another log and are gone"
    assert words({head.log: (head.sequence, head.digest)}) == (False, True, problem)
    # Half a record that is being written.
    with held.open("ab") as file:
        file.write(b'{"hash":"12')
    assert words({}) == (True, True, None)
    assert words(None) == (False, False, "it is no whole record")
