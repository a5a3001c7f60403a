"""The journal when its disk, its directory, its token or the place of its log lines is not as it should be."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hsmkms.audit import chain
from hsmkms.audit import journal as module
from hsmkms.audit.journal import Journal, Limits
from hsmkms.audit.logfile import logs_in
from hsmkms.clock import system_clock
from hsmkms.errors import AuditUnavailable, TokenUnavailable
from tests.support.journals import RARELY, Deployment, event, write


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path / "audit")


MUTE = """
import os, sys, time
from pathlib import Path
from hsmkms.errors import AuditUnavailable
from hsmkms.telemetry import logs
from tests.support.journals import RARELY, Deployment, write
logs.configure()
journal = Deployment(Path(sys.argv[1])).journal(RARELY)
write(journal, 1)
real = os.fdatasync
def broken(_):
    raise OSError(5, "Input/output error")
os.fdatasync = broken
try:
    write(journal, 1, 1)
except AuditUnavailable:
    print("refused")
os.fdatasync = real
while journal.failure is not None:
    time.sleep(0.02)
write(journal, 1, 2)
journal.close()
print("written")
"""

MAD = """
import sys
from pathlib import Path
from hsmkms.telemetry import logs
from tests.support.journals import RARELY, Deployment, write
logs.configure()
def clock():
    raise RuntimeError("nobody expects this")
write(Deployment(Path(sys.argv[1])).journal(RARELY, clock=clock), 1)
"""


def test_log_lines_that_nobody_takes_end_no_thread(deployment: Deployment) -> None:
    """Standard error on a full disk, while the journal has to say that events cannot be written and can again."""
    with Path("/dev/full").open("w") as full:
        done = run(MUTE, deployment, full.fileno())
    assert done.stdout == b"refused\nwritten\n"


def test_a_journal_that_cannot_go_on_ends_its_process(deployment: Deployment) -> None:
    """Another takes its place; in this one nobody would be answered again."""
    done = run(MAD, deployment, subprocess.PIPE)
    assert done.returncode == os.EX_SOFTWARE
    assert b"has to be started again" in done.stderr
    assert b"nobody expects this" not in done.stderr


def run(program: str, deployment: Deployment, stderr: int) -> subprocess.CompletedProcess[bytes]:
    arguments = [sys.executable, "-c", program, str(deployment.directory)]
    return subprocess.run(arguments, stdout=subprocess.PIPE, stderr=stderr, timeout=60, check=False)


def test_a_log_that_was_deleted_is_not_written_to(deployment: Deployment) -> None:
    """Events would be durable in a file that nobody can open."""
    journal = deployment.journal(RARELY)
    write(journal, 1)
    (path,) = logs_in([deployment.directory])
    path.unlink()
    with pytest.raises(AuditUnavailable):
        write(journal, 1, 1)
    while journal.failure is not None:
        time.sleep(0.02)
    write(journal, 1, 2)
    (new,) = logs_in([deployment.directory])
    journal.close()
    assert b"event-2" in new.read_bytes()


def test_nobody_begins_to_wait_for_a_disk_that_hangs(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    real, waits, go_on = os.fdatasync, threading.Event(), threading.Event()
    journal = deployment.journal(RARELY)
    write(journal, 1)

    def hang(descriptor: int) -> None:
        waits.set()
        assert go_on.wait(60)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", hang)
    first = threading.Thread(target=write, args=(journal, 1, 1), daemon=True)
    first.start()
    assert waits.wait(60)
    monkeypatch.setattr(module, "HANGS_S", 3_600.0)
    assert journal.writes
    monkeypatch.setattr(module, "HANGS_S", 0.0)
    assert not journal.writes
    with pytest.raises(AuditUnavailable):
        journal.record_blocking(event(2))
    go_on.set()
    first.join(60)
    while not journal.writes:
        time.sleep(0.02)
    monkeypatch.undo()
    write(journal, 1, 3)
    journal.close()
    assert all(one.sound for one in deployment.verify_with_heads())


@pytest.mark.parametrize("slow", [1, 2, 3])
def test_nobody_begins_to_wait_for_the_end_of_a_log_that_hangs(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, slow: int
) -> None:
    """Of its first checkpoint, of the last one, and of the word of its end, the database takes long to hear."""
    heard, go_on = 0, threading.Event()

    def tell(head: chain.Head, before: Mapping[int, str]) -> bool:
        nonlocal heard
        heard += 1
        if heard == slow:
            assert go_on.wait(60)
        return deployment.tell(head, before)

    limits = Limits(checkpoint_s=3_600, log_bytes=4_096, log_age_s=3_600)
    journal = Journal(deployment.directory, "node", limits, system_clock)
    journal.call(replace(deployment.witness, tell=tell))
    first = threading.Thread(target=write, args=(journal, 10), daemon=True)
    first.start()
    give_up_at = time.monotonic() + 10
    while journal.lag_s < 0.3:
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
    assert journal.writes
    monkeypatch.setattr(module, "HANGS_S", 0.0)
    assert not journal.writes
    with pytest.raises(AuditUnavailable):
        journal.record_blocking(event(99))
    monkeypatch.undo()
    go_on.set()
    first.join(60)
    journal.close()
    assert all(one.sound and one.closed for one in deployment.verify_with_heads())


def test_a_log_ends_when_it_is_full(deployment: Deployment) -> None:
    """However long it is until the next checkpoint."""
    journal = deployment.journal(Limits(checkpoint_s=3_600, log_bytes=4_096, log_age_s=3_600))
    write(journal, 40)
    journal.close()
    # With the event that made it full, and its end.
    sizes = [path.stat().st_size for path in logs_in([deployment.directory])]
    assert len(sizes) > 5
    assert max(sizes) < 4_096 + 8_192
    assert all(one.sound and one.closed for one in deployment.verify_with_heads())


def test_a_full_log_waits_for_its_token_once_an_interval(deployment: Deployment) -> None:
    """Each event would wait for a token that is away."""
    asked = 0

    def away(_: bytes) -> bytes:
        nonlocal asked
        asked += 1
        raise TokenUnavailable("away")

    journal = Journal(
        deployment.directory, "node", Limits(checkpoint_s=3_600, log_bytes=4_096, log_age_s=3_600), system_clock
    )
    journal.call(replace(deployment.witness, sign=away))
    write(journal, 40)
    # The first checkpoint, and the end.
    assert asked <= 2
    assert len(logs_in([deployment.directory])) == 1
    journal.close()


def test_what_is_said_late_of_a_log_is_not_behind_its_end(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is still under way, for a slow database, when its log is left in trouble and closed."""
    asked, ended, go_on, real = threading.Event(), threading.Event(), threading.Event(), os.fdatasync

    def tell(head: chain.Head, before: Mapping[int, str]) -> bool:
        if not asked.is_set():
            asked.set()
            assert go_on.wait(10)
        if head.closed:
            ended.set()
        return deployment.tell(head, before)

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    journal = Journal(deployment.directory, "node", RARELY, system_clock)
    journal.call(replace(deployment.witness, tell=tell))
    with capture_logs() as lines:
        write(journal, 2)
        assert asked.wait(10)
        monkeypatch.setattr(os, "fdatasync", broken)
        with pytest.raises(AuditUnavailable):
            write(journal, 1, 2)
        monkeypatch.setattr(os, "fdatasync", real)
        while journal.failure is not None:
            time.sleep(0.02)
        write(journal, 1, 3)
        assert not ended.wait(0.5)
        go_on.set()
        journal.close()
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["audit events cannot be written"]
    assert all(one.sound and one.closed for one in deployment.verify_with_heads())
