"""Events are found again: by key, actor, action, outcome and time, in order, from any number of logs."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import os
import resource
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from hsmkms.audit import chain
from hsmkms.audit.event import PENDING, Event, Initiator, ResponseData, Target
from hsmkms.audit.search import Filter, Follower, last, search, unfinished
from hsmkms.cli.audit import app
from hsmkms.clock import system_clock
from hsmkms.errors import AuditUnreadable
from tests.support.journals import OFTEN, RARELY, Deployment, event, write


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path / "audit")


def ids(found: object) -> list[str]:
    return [one.event.id for one in found]  # type: ignore[attr-defined]


def test_logs_of_many_processes_are_one_order(deployment: Deployment) -> None:
    """More logs than this process may open at a time."""
    for number in range(0, 120, 3):
        began = system_clock() + timedelta(minutes=number)
        journal = deployment.journal(RARELY, f"node{number}", lambda began=began: began)  # type: ignore[misc]
        for at in range(number, number + 3):
            # The last event of a log is behind the first one of the next.
            dated = began + timedelta(minutes=3.5 if at == number + 2 else 0)
            journal.record_blocking(msgspec.structs.replace(event(at), event_time=dated))
        journal.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        found = list(search([deployment.directory], Filter()))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    times = [one.event.event_time for one in found]
    assert (len(found), times) == (120, sorted(times))
    assert ids(found) != [f"event-{number}" for number in range(120)]
    assert ids(last([deployment.directory], 7)) == ids(found[-7:])


def test_last_events_of_a_long_log(deployment: Deployment) -> None:
    journal = deployment.journal(OFTEN)
    write(journal, 500)
    journal.close()
    assert ids(last([deployment.directory], 300)) == [f"event-{number}" for number in range(200, 500)]
    assert len(last([deployment.directory], 10_000)) == 500


def test_filters(deployment: Deployment) -> None:
    journal, now = deployment.journal(RARELY), system_clock()
    plain = event(0)

    def make(number: int, **members: object) -> Event:
        return msgspec.structs.replace(plain, id=f"event-{number}", **members)

    written = [
        make(0, target=Target("crn:x:key:k1", "k1", "kms/secrets")),
        make(1, response_data=ResponseData(key_id="k1")),
        make(2, initiator=Initiator("iam-2", "iam-2", "user")),
        make(3, action="kms.secrets.rotate"),
        make(4, action="kms.secrets-alias.create", correlation_id="correlation-4"),
        make(5, outcome="failure"),
        make(6, event_time=now + timedelta(hours=1)),
    ]
    for one in written:
        journal.record_blocking(one)
    journal.close()

    def found(**wanted: object) -> list[str]:
        return ids(search([deployment.directory], dataclasses.replace(Filter(), **wanted)))  # type: ignore[arg-type]

    assert found(key="k1") == ["event-0", "event-1"]
    assert found(actor="iam-2") == ["event-2"]
    assert found(action="kms.secrets.rotate") == ["event-3"]
    assert found(action="kms.secrets-alias.") == ["event-4"]
    assert found(outcome="failure") == ["event-5"]
    assert found(since=now + timedelta(hours=1)) == ["event-6"]
    assert found(until=now + timedelta(hours=1)) == [f"event-{number}" for number in range(6)]
    assert found(action="kms.secrets") == []
    assert found(correlation="correlation-4") == ["event-4"]
    place = str(deployment.directory)
    for command in ("search", "tail", "export"):
        shown = CliRunner().invoke(app, [command, "--correlation-id", "Correlation-4", place]).stdout
        assert (shown.count("\n"), "kms.secrets-alias.create" in shown) == (1, True)


def test_what_is_given_is_what_stands_there(deployment: Deployment) -> None:
    journal = deployment.journal(RARELY)
    write(journal, 2)
    journal.close()
    (path,) = deployment.directory.glob("*.jsonl")
    for found in search([deployment.directory], Filter()):
        assert found.text in path.read_bytes()
        assert msgspec.json.decode(found.text, type=Event) == found.event


def test_a_follower_sees_what_is_added(deployment: Deployment) -> None:
    journal = deployment.journal(RARELY)
    write(journal, 3)
    follower = Follower([deployment.directory], Filter())
    assert follower.news() == []
    write(journal, 2, 3)
    other = deployment.journal(RARELY, "other")
    write(other, 1, 5)
    assert ids(follower.news()) == ["event-3", "event-4", "event-5"]
    assert follower.news() == []
    for one in (journal, other):
        one.close()
    assert follower.news() == []


def test_intents_without_an_outcome(deployment: Deployment) -> None:
    journal = deployment.journal(RARELY)
    for number in (1, 2):
        journal.record_blocking(msgspec.structs.replace(event(number), outcome=PENDING))
    journal.record_blocking(msgspec.structs.replace(event(3), intent="event-1"))
    journal.close()
    assert ids(unfinished(search([deployment.directory], Filter()))) == ["event-2"]


def test_a_table_holds_no_formulas(deployment: Deployment) -> None:
    """Callers choose parts of what a spreadsheet would take for one, and of what would be another line."""
    shown = {
        "=1+1": "'=1+1",
        "  =1+1": "'  =1+1",
        "\uff1d1+1": "'\uff1d1+1",
        "\t=1+1": "\\t=1+1",
        "\r=1+1": "\\r=1+1",
        'x","y\n=1+1': 'x","y\\n=1+1',
        "x;=1+1": "x\\x3b=1+1",
        "1+1": "1+1",
    }
    journal = deployment.journal(RARELY)
    for name in shown:
        journal.record_blocking(msgspec.structs.replace(event(0), target=Target("crn", name, "kms/instance")))
    journal.close()
    table = CliRunner().invoke(app, ["export", "--csv", str(deployment.directory)])
    assert table.exit_code == 0
    header, *rows = csv.reader(io.StringIO(table.stdout, newline=""))
    assert [row[header.index("target")] for row in rows] == list(shown.values())
    assert {row[header.index("action")] for row in rows} == {"kms.secrets.wrap"}


def test_a_line_is_one_event(deployment: Deployment) -> None:
    """A stranger chooses the path that he asks for: no line of his own, no column, nothing that a terminal obeys."""
    line = "2026-11-29T19:00:00.000+00:00  kms.secrets.delete  success  204"
    strange = f"x\n{line}\x1b[8m\x9b2J\r\x7f\u202e\u2028\u2029\u200b\xa0y"
    journal = deployment.journal(RARELY)
    journal.record_blocking(msgspec.structs.replace(event(0), target=Target("crn", strange, "kms/instance")))
    journal.close()
    for command in ("search", "tail"):
        shown = CliRunner().invoke(app, [command, str(deployment.directory)]).stdout
        assert shown.endswith("\n")
        assert shown[:-1].isprintable()
        columns = shown[:-1].split("  ")
        assert len(columns) == 8
        assert columns[6] == f"x\\n{line}".replace(" ", "\\x20") + (
            "\\x1b[8m\\x9b2J\\r\\x7f\\u202e\\u2028\\u2029\\u200b\\xa0y"
        )


def test_what_is_no_log_is_passed_over(deployment: Deployment) -> None:
    """`verify` names it; it is in nobody's way here."""
    journal = deployment.journal(RARELY)
    write(journal, 2)
    journal.close()
    place = deployment.directory
    (place / "a.jsonl").mkdir()
    (place / "b.jsonl").symlink_to("/nowhere")
    os.mkfifo(place / "c.jsonl")
    deep = b'"seq":1,"event":{"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}}"
    (place / "d.jsonl").write_bytes(chain.line(b"\0" * 32, deep))
    follower = Follower([place], Filter())
    assert follower.news() == []
    for command in ("search", "tail", "export"):
        shown = CliRunner().invoke(app, [command, str(place)])
        assert (shown.exit_code, shown.stdout.count("\n")) == (0, 2)


def test_a_log_that_cannot_be_read_is_named(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than that its events are missing and nobody knows; one that is gone meanwhile is not missed."""
    for node in ("one", "two"):
        journal = deployment.journal(RARELY, node)
        write(journal, 1)
        journal.close()
    real = Path.open

    def fails(number: int) -> None:
        def refused(path: Path, *arguments: object, **named: object) -> object:
            if "-one-" in path.name:
                raise OSError(number, os.strerror(number))
            return real(path, *arguments, **named)  # type: ignore[call-overload]

        monkeypatch.setattr(Path, "open", refused)

    fails(errno.EIO)
    for command in ("search", "tail"):
        shown = CliRunner().invoke(app, [command, str(deployment.directory)])
        assert isinstance(shown.exception, AuditUnreadable)
        assert "-one-" in shown.exception.message
        assert "cannot be read: Input/output error" in shown.exception.message
    fails(errno.ENOENT)
    assert ids(search([deployment.directory], Filter())) == ids(last([deployment.directory], 5)) == ["event-0"]


def test_tail_shows_the_last_that_are_wanted(deployment: Deployment) -> None:
    journal = deployment.journal(RARELY)
    for number in range(10):
        action = "kms.secrets.wrap" if number % 2 else "kms.secrets.unwrap"
        journal.record_blocking(event(number, action))
    journal.close()
    place = str(deployment.directory)
    shown = CliRunner().invoke(app, ["tail", "-n", "3", "--action", "kms.secrets.wrap", place]).stdout.splitlines()
    assert [line.rpartition("-")[2] for line in shown] == ["5", "7", "9"]
    shown = CliRunner().invoke(app, ["tail", "-n", "2", place]).stdout.splitlines()
    assert [line.rpartition("-")[2] for line in shown] == ["8", "9"]
