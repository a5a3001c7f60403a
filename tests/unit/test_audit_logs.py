"""The journal's files: grouped, chained, signed; and `verify` finds whatever is done to them."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from hsmkms.audit import chain, logfile
from hsmkms.audit.journal import Journal, Limits
from hsmkms.audit.logfile import logs_in
from hsmkms.audit.search import Filter, search
from hsmkms.audit.verify import verify
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
    (after,) = crashed.verify()
    assert after.sound
    assert after.closed
    assert [one.event.id for one in search([crashed.directory], Filter())] == [f"event-{n}" for n in range(8)]


def test_closed_logs_are_not_read_again(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Years of them must not be in the way of a process that starts."""
    journal = deployment.journal()
    write(journal, 5)
    journal.close()
    (path,) = logs_in([deployment.directory])

    def unread(_: Path) -> object:
        raise AssertionError("it was read whole")

    monkeypatch.setattr(logfile, "lines_of", unread)
    assert logfile.LogFile.take_over(path) is None


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

    journal = Journal(deployment.directory, "node", deployment.pem, slow, deployment.exchange, OFTEN, system_clock)
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
