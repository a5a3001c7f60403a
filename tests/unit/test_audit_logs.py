"""The journal's files: grouped, chained, signed; and `verify` finds whatever is done to them."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from hsmkms.audit import chain, takeover
from hsmkms.audit.journal import Journal, Limits
from hsmkms.audit.logfile import head_of, logs_in
from hsmkms.audit.search import Filter, search
from hsmkms.audit.verify import last_records, verify
from hsmkms.clock import system_clock
from hsmkms.errors import AuditUnavailable
from tests.support.journals import OFTEN, RARELY, Deployment, event, write


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path / "audit")


def test_many_share_one_wait_for_the_disk(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one fdatasync runs all that come wait for the next one together, and each is told after its own."""
    real, waits, first, go_on = os.fdatasync, [0], threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        waits[0] += 1
        if waits[0] == 2:
            first.set()
            assert go_on.wait(10)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    journal = deployment.journal()

    async def load() -> None:
        one = asyncio.ensure_future(journal.record(event(0)))
        await asyncio.to_thread(first.wait, 10)
        rest = [asyncio.ensure_future(journal.record(event(number))) for number in range(1, 101)]
        await asyncio.sleep(0)
        assert not one.done()
        go_on.set()
        await asyncio.gather(one, *rest)

    asyncio.run(load())
    # The opening, the first event, the hundred others; and perhaps the first checkpoint.
    assert waits[0] in (3, 4)
    journal.close()
    assert [one.sound for one in deployment.verify()] == [True]
    assert len(list(search([deployment.directory], Filter()))) == 101


def test_threads_and_loop_write_one_chain(deployment: Deployment) -> None:
    journal = deployment.journal(OFTEN)
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(write, journal, 50, first) for first in (0, 100, 200, 300)]:
            done.result()
    journal.close()
    (log,) = deployment.verify()
    assert log.sound
    assert log.signed == log.records
    found = {one.event.id for one in search([deployment.directory], Filter())}
    assert found == {f"event-{first + number}" for first in (0, 100, 200, 300) for number in range(50)}


def test_a_full_log_is_closed_and_another_begun(deployment: Deployment) -> None:
    journal = deployment.journal(Limits(checkpoint_s=0.01, log_bytes=4_096, log_age_s=3_600))
    write(journal, 100)
    journal.close()
    logs = deployment.verify_with_heads()
    assert len(logs) > 1
    assert all(log.sound and log.closed for log in logs)
    assert [one.event.id for one in search([deployment.directory], Filter())] == [f"event-{n}" for n in range(100)]


def test_a_crashed_log_is_taken_over_without_its_torn_end(deployment: Deployment, tmp_path: Path) -> None:
    journal = deployment.journal()
    write(journal, 5)
    # As it is at this moment, and with half a record behind: what a crash leaves.
    (path,) = logs_in([deployment.directory])
    crashed = Deployment(tmp_path / "crashed")
    crashed.key = deployment.key
    crashed.directory.mkdir()
    copy = crashed.directory / path.name
    copy.write_bytes(path.read_bytes() + b'{"hash":"12')
    journal.close()
    (before,) = crashed.verify()
    records = copy.read_bytes().count(b"\n")
    assert (before.broken_at, before.problem) == (records + 1, "it is no whole record")
    again = crashed.journal()
    write(again, 3, 5)
    again.close()
    assert [(log.sound, log.closed) for log in crashed.verify_with_heads()] == [(True, True)] * 2
    assert b'"tornBytes":11,"unsignedFrom":' in copy.read_bytes()
    assert [one.event.id for one in search([crashed.directory], Filter())] == [f"event-{n}" for n in range(8)]


def test_closed_logs_are_not_read_again(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Years of them must not be in the way of a process that starts."""
    journal = deployment.journal()
    write(journal, 5)
    journal.close()
    read: list[str] = []
    monkeypatch.setattr(takeover, "_proved", lambda _, log, *__: read.append(log))
    again = deployment.journal()
    write(again, 1)
    again.close()
    assert read == []


def test_a_head_is_told_once_while_it_stays(deployment: Deployment) -> None:
    """A log's checkpoints do not grow with the number of old logs."""
    for node in ("one", "two", "three"):
        journal = deployment.journal(RARELY, node)
        write(journal, 1)
        journal.close()
    journal = deployment.journal(OFTEN, "four")
    for number in range(20):
        write(journal, 1, number)
    journal.close()
    four = next(path for path in logs_in([deployment.directory]) if "-four-" in path.name)
    assert four.read_bytes().count(b"-one-") == 1
    assert all(log.sound for log in deployment.verify())


def test_a_changed_log_is_not_gone_on_with(deployment: Deployment) -> None:
    journal = deployment.journal()
    write(journal, 5)
    journal.close()
    (path,) = logs_in([deployment.directory])
    lines = path.read_bytes().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if b"event-2" in line)
    path.write_bytes(b"".join([*lines[:at], lines[at].replace(b"event-2", b"event-9")]))
    changed = path.read_bytes()
    again = deployment.journal()
    write(again, 1)
    again.close()
    assert path.read_bytes() == changed
    assert {log.log: log.sound for log in deployment.verify()}[path.stem] is False
    assert sorted(log.sound for log in deployment.verify()) == [False, True]


def test_a_token_that_is_away_delays_signatures_only(deployment: Deployment) -> None:
    deployment.token_away = True
    journal = deployment.journal(OFTEN)
    write(journal, 20)
    deployment.token_away = False
    write(journal, 1, 20)
    journal.close()
    (log,) = deployment.verify()
    assert log.sound
    assert log.closed


def test_a_token_that_takes_long_delays_signatures_only(deployment: Deployment) -> None:
    """Events go on while a checkpoint is being signed, and what was signed late is still proved."""
    signing, go_on, sign = threading.Event(), threading.Event(), deployment.sign

    def slow(message: bytes) -> bytes:
        signing.set()
        assert go_on.wait(10)
        return sign(message)

    journal = Journal(deployment.directory, "node", OFTEN, system_clock)
    journal.call(replace(deployment.witness, sign=slow))
    write(journal, 1)
    assert signing.wait(10)
    write(journal, 50, 1)
    go_on.set()
    journal.close()
    (log,) = deployment.verify()
    assert log.sound
    assert log.closed


def test_a_disk_that_fails_refuses_and_recovers(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = deployment.journal()
    write(journal, 3)
    real = os.fdatasync

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(AuditUnavailable):
        journal.record_blocking(event(3))
    assert journal.failure is not None
    monkeypatch.setattr(os, "fdatasync", real)
    recovered = threading.Event()

    def look() -> None:
        while journal.failure is not None:
            recovered.wait(0.02)
        recovered.set()

    # Nobody asks, and it finds out by itself.
    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    watcher.join(10)
    assert journal.failure is None
    write(journal, 3, 10)
    journal.close()
    assert all(log.sound for log in deployment.verify_with_heads())
    found = {one.event.id for one in search([deployment.directory], Filter())}
    assert found >= {"event-0", "event-1", "event-2", "event-10", "event-11", "event-12"}


def test_nothing_is_written_after_close(deployment: Deployment) -> None:
    journal = deployment.journal()
    write(journal, 1)
    journal.close()
    with pytest.raises(AuditUnavailable):
        journal.record_blocking(event(1))


def test_a_key_of_somebody_else_proves_nothing(deployment: Deployment) -> None:
    journal = deployment.journal()
    write(journal, 1)
    journal.close()
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    (log,) = verify([deployment.directory], other, {})
    assert (log.broken_at, log.problem) == (1, "it names another public key")


def test_a_log_that_is_gone_is_named(deployment: Deployment) -> None:
    """By the checkpoints of the logs that saw it, without the database."""
    for node in ("one", "two", "three"):
        journal = deployment.journal(OFTEN, node)
        write(journal, 5)
        journal.close()
    first = next(path for path in logs_in([deployment.directory]) if "-one-" in path.name)
    first.unlink()
    gone = next(log for log in deployment.verify() if "-one-" in log.log)
    assert (gone.sound, gone.problem) == (False, "the whole log is missing")


def test_an_older_copy_of_a_log_is_found(deployment: Deployment, tmp_path: Path) -> None:
    """Whole, signed, and not the newest: only the heads that others saw tell."""
    journal = deployment.journal(OFTEN, "one")
    write(journal, 5)
    (path,) = logs_in([deployment.directory])
    shutil.copy(path, tmp_path / "older")
    write(journal, 5)
    journal.close()
    other = deployment.journal(RARELY, "two")
    write(other, 1)
    other.close()
    shutil.copy(tmp_path / "older", path)
    log = next(log for log in deployment.verify() if log.log == path.name.removesuffix(chain.SUFFIX))
    assert not log.sound
    assert log.problem is not None
    assert "seen by another log and are gone" in log.problem


def test_what_was_retired_is_not_missed(deployment: Deployment) -> None:
    """Once that is signed; and what was retired has to be what others saw."""
    old = deployment.journal(RARELY, "old")
    write(old, 5)
    old.close()
    (path,) = logs_in([deployment.directory])
    (before,) = deployment.verify()
    journal = deployment.journal(RARELY, "new")
    write(journal, 1)
    journal.retire_blocking({before.log: (before.records, before.digests[before.records])})
    path.unlink()
    journal.close()
    gone = next(log for log in deployment.verify() if log.log == before.log)
    assert (gone.sound, gone.retired) == (True, True)
    wrong = deployment.journal(RARELY, "wrong")
    wrong.retire_blocking({before.log: (before.records, "00" * 32)})
    wrong.close()
    gone = next(log for log in deployment.verify() if log.log == before.log)
    assert (gone.sound, gone.problem) == (False, "what was retired is not what another log saw")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_who_said_what_was_retired_can_be_retired(deployment: Deployment, tmp_path: Path, elsewhere: bool) -> None:
    """While another log, which may be another host's, still tells of what was retired before."""
    journal = deployment.journal(RARELY, "old")
    write(journal, 5)
    journal.close()
    (old,) = logs_in([deployment.directory])
    journal = deployment.journal(RARELY, "stays")
    write(journal, 1)
    journal.close()
    stays = next(path for path in logs_in([deployment.directory]) if "-stays-" in path.name)
    if elsewhere:
        stays.rename(tmp_path / "stays")
    for gone, node in ((old, "first"), (None, "second")):
        path = gone or next(path for path in logs_in([deployment.directory]) if "-first-" in path.name)
        last = last_records([log for log in deployment.verify() if log.log == path.stem])
        journal = deployment.journal(RARELY, node)
        journal.retire_blocking(last)
        journal.close()
        path.unlink()
        deployment.heads.pop(path.stem)
    if elsewhere:
        (tmp_path / "stays").rename(stays)
    seen = {log.log.split("-")[1]: (log.sound, log.retired) for log in deployment.verify()}
    assert seen == {name: (True, name in ("old", "first")) for name in ("old", "stays", "first", "second")}


def test_what_a_crash_left_retires_nothing(deployment: Deployment, tmp_path: Path) -> None:
    """Who appends to a log that its process left has a well chained record of it signed by the process that comes."""
    for node in ("one", "two"):
        journal = deployment.journal(RARELY, node)
        write(journal, 5)
        journal.close()
    first, second = logs_in([deployment.directory])
    journal = deployment.journal(OFTEN, "three")
    write(journal, 1)
    third = next(path for path in logs_in([deployment.directory]) if "-three-" in path.name)
    while b'"checkpoint":' not in third.read_bytes():
        time.sleep(0.01)
    shutil.copy(third, tmp_path / "left")
    journal.close()
    shutil.copy(tmp_path / "left", third)
    deployment.heads.pop(third.stem)
    forge_retirement(third, first)
    first.unlink()
    again = deployment.journal(RARELY, "three")
    write(again, 1)
    again.retire_blocking({second.stem: retired_as(second)})
    again.close()
    second.unlink()
    found = {log.log: log for log in deployment.verify()}
    assert found[third.stem].sound
    assert (found[first.stem].sound, found[first.stem].problem) == (False, "the whole log is missing")
    assert found[second.stem].retired


def retired_as(path: Path) -> tuple[int, str]:
    """Number and hash of the last record."""
    head = head_of(path)
    assert head is not None
    return head.sequence, head.digest


def forge_retirement(path: Path, victim: Path) -> None:
    """Append a record that `victim` was retired, as somebody would who may write to the directory."""
    sequence, digest = retired_as(path)
    record = msgspec.json.encode(chain.Retired(system_clock(), {victim.stem: retired_as(victim)}))
    text, _, _ = chain.extend(sequence, bytes.fromhex(digest), [("retired", record)])
    path.write_bytes(path.read_bytes() + text)


def test_nobody_but_the_key_can_retire(deployment: Deployment) -> None:
    """A record of it that is put between what was signed and the signature is no word of ours."""
    for node in ("one", "two"):
        journal = deployment.journal(OFTEN, node)
        write(journal, 5)
        journal.close()
    first, second = logs_in([deployment.directory])
    victim = next(log for log in deployment.verify() if log.log == first.stem)
    lines = second.read_bytes().splitlines(keepends=True)
    # The last checkpoint but the final one, which is right behind what it signs.
    at = max(n for n, line in enumerate(lines[:-1]) if b'"checkpoint":' in line)
    before, checkpoint = chain.split(lines[at - 1][:-1]), chain.split(lines[at][:-1])
    assert before is not None
    assert checkpoint is not None
    retired = msgspec.json.encode(chain.Retired(system_clock(), {first.stem: (victim.records, "00" * 32)}))
    forged = chain.body(at + 1, "retired", retired)
    digest = chain.link(bytes.fromhex(before[0].decode()), forged)
    moved = checkpoint[1].replace(b'"seq":%d,' % (at + 1), b'"seq":%d,' % (at + 2))
    put = [chain.line(digest, forged), chain.line(chain.link(digest, moved), moved)]
    first.unlink()
    second.write_bytes(b"".join([*lines[:at], *put]))
    found = {log.log: log for log in deployment.verify()}
    assert found[first.stem].problem == "the whole log is missing"
    assert not found[second.stem].sound


def test_a_full_disk_leaves_no_rubbish(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log whose first record could not be written is taken away, however often that is tried."""
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        if data.startswith(b'{"hash"'):
            real(descriptor, data[:10])
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    journal = deployment.journal()
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(AuditUnavailable):
        journal.record_blocking(event(0))
    assert logs_in([deployment.directory]) == []
    monkeypatch.setattr(os, "write", real)
    while journal.failure is not None:
        time.sleep(0.02)
    write(journal, 1)
    journal.close()
    assert [log.sound for log in deployment.verify()] == [True]


def test_a_disk_that_stays_full_costs_no_log(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is tried meanwhile, one more is begun, and the one that was being written is closed."""
    journal = deployment.journal()
    write(journal, 3)
    real, tries, often = os.write, [0], threading.Event()

    def full(descriptor: int, data: bytes) -> int:
        if data.startswith(b'{"hash"'):
            tries[0] += 1
            if tries[0] == 4:
                often.set()
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(AuditUnavailable):
        write(journal, 1, 3)
    assert often.wait(30)
    monkeypatch.setattr(os, "write", real)
    while journal.failure is not None:
        time.sleep(0.02)
    write(journal, 1, 4)
    journal.close()
    assert len(logs_in([deployment.directory])) == 2
    assert list(deployment.directory.glob("*.opening")) == []
    assert [log.sound and log.closed for log in deployment.verify_with_heads()] == [True, True]


def test_a_new_log_is_told_of_at_once(deployment: Deployment) -> None:
    """So that one that was killed young is missed all the same."""
    journal = deployment.journal(RARELY)
    write(journal, 1)
    while not deployment.heads:
        time.sleep(0.01)
    (path,) = logs_in([deployment.directory])
    path.unlink()
    assert [log.problem for log in deployment.verify_with_heads()] == ["the whole log is missing"]
    journal.close()


def test_processes_find_what_one_finds(deployment: Deployment) -> None:
    """Large logs are verified by several processes."""
    for number in range(3):
        journal = deployment.journal(RARELY, f"node{number}")
        write(journal, 20)
        journal.close()
    path = logs_in([deployment.directory])[1]
    path.write_bytes(path.read_bytes().replace(b"event-7", b"event-8"))
    place, key = [deployment.directory], deployment.public_key
    alone, together = (verify(place, key, {}, worth_processes=size) for size in (1 << 40, 0))
    assert alone == together
    assert [log.sound for log in together].count(False) == 1


def test_before_the_token_is_open(deployment: Deployment) -> None:
    """Events are written without a signature, under the key that the last log names; who signs later proves them, and
    closes what was left."""
    journal = Journal(deployment.directory, "node", RARELY, system_clock)
    with pytest.raises(AuditUnavailable):
        write(journal, 1)
    journal.close()
    deployment.token_away = True
    ended = [deployment.journal(), deployment.journal()]
    for one in ended:
        write(one, 1)
    for one in ended:
        one.close()
    deployment.token_away = False
    journal = Journal(deployment.directory, "node", RARELY, system_clock)
    write(journal, 3)
    assert [one.closed for one in deployment.verify()] == [False, False, False]
    journal.call(deployment.witness)
    journal.dismiss()
    assert [(one.sound, one.closed) for one in deployment.verify()] == [(True, True)] * 3
    write(journal, 1, 3)
    journal.close()
    assert sorted(one.records - one.signed for one in deployment.verify()) == [0, 0, 0, 2]


def test_a_directory_that_went_away_is_not_made_anew(deployment: Deployment) -> None:
    """It may lie on a disk that is not mounted now, and what was written in its place would be hidden later."""
    journal = deployment.journal()
    write(journal, 1)
    journal.dismiss()
    shutil.move(deployment.directory, deployment.directory.with_name("elsewhere"))
    with pytest.raises(AuditUnavailable):
        write(journal, 1, 1)
    journal.close()
    assert not deployment.directory.exists()
