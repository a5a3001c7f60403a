"""Sinks get every record, whatever happens to them, and keep nobody waiting."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from cryptography import x509
from msgspec import structs
from structlog.testing import capture_logs

from hsmkms.audit.event import Event, RequestData, Values
from hsmkms.audit.logfile import logs_in
from hsmkms.audit.shipping import Shipper, shipped_whole
from hsmkms.audit.sinks import HttpReceiver, Syslog, client_context
from hsmkms.audit.verify import verify
from hsmkms.domain.secrets import SecretText
from hsmkms.service.groups import MAX_MEMBERS
from hsmkms.telemetry import metrics
from tests.support.certificates import Authority
from tests.support.deployment import Service, State, create_key
from tests.support.journals import OFTEN, RARELY, Deployment, event, write
from tests.support.receivers import FLOOD, Receiver, Rsyslog, once


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path / "audit")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found


def ship_to(deployment: Deployment, receiver: Receiver) -> Shipper:
    sink = HttpReceiver("http", receiver.url, client_context(None, None, None), lambda: SecretText("word"))
    shipper = Shipper(deployment.directory, sink)
    shipper.start()
    return shipper


def until(ask: Callable[[], bool], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not ask():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def files(deployment: Deployment) -> dict[str, list[bytes]]:
    return {path.stem: path.read_bytes().splitlines() for path in logs_in([deployment.directory])}


def sample(metric: str, sink: str) -> float:
    """AssertionError when there is none."""
    value = metrics.REGISTRY.get_sample_value(f"hsmkms_audit_sink_{metric}", {"sink": sink})
    assert value is not None
    return value


def test_every_record_arrives_once_and_in_order(deployment: Deployment, receiver: Receiver) -> None:
    """Also of a log that was closed before anybody shipped; what arrived is whole by itself."""
    earlier = deployment.journal(OFTEN, "one")
    write(earlier, 30)
    earlier.close()
    shipper = ship_to(deployment, receiver)
    journal = deployment.journal(OFTEN, "two")
    write(journal, 300, 30)
    journal.close()
    shipper.close(60)
    assert receiver.lines == files(deployment)
    assert receiver.bearers == {"Bearer word"}
    assert (shipper.failing, shipper.behind_bytes, shipper.failures, shipper.dropped_logs) == (None, 0, 0, 0)
    assert shipper.shipped == sum(map(len, receiver.lines.values()))


def test_what_failed_comes_when_the_sink_is_back(deployment: Deployment, receiver: Receiver) -> None:
    receiver.mode = "fail"
    shipper = ship_to(deployment, receiver)
    journal = deployment.journal(RARELY)
    write(journal, 100)
    until(lambda: shipper.failing is not None and shipper.failures > 1)
    assert shipper.failing == "The receiver answers 503."
    write(journal, 100, 100)
    # The lag that an operator looks at: all that there is, while nothing is taken.
    until(lambda: shipper.behind_bytes == sum(path.stat().st_size for path in logs_in([deployment.directory])))
    assert sample("behind_bytes", "http") == shipper.behind_bytes > 0
    receiver.mode = "take"
    until(lambda: shipper.failing is None)
    journal.close()
    shipper.close(60)
    assert receiver.lines == files(deployment)


def test_what_was_never_a_whole_record_is_no_lag(deployment: Deployment, receiver: Receiver) -> None:
    journal = deployment.journal(RARELY)
    write(journal, 5)
    journal.close()
    (path,) = logs_in([deployment.directory])
    whole = files(deployment)
    with path.open("ab") as file:
        file.write(b'{"hash":"')
    shipper = ship_to(deployment, receiver)
    until(lambda: receiver.lines == whole and shipper.behind_bytes == 0)
    shipper.close(60)


def test_what_a_sink_does_is_told_from_the_start(deployment: Deployment) -> None:
    """An alert on what rises needs the 0 before the 1."""
    Shipper(deployment.directory, Dull("quiet"))
    for metric in ("behind_bytes", "failures_total", "records_total", "dropped_logs_total"):
        assert sample(metric, "quiet") == 0


def test_a_receiver_that_answers_a_byte_at_a_time_has_failed(
    deployment: Deployment, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes in time, the answer does not."""
    monkeypatch.setattr("hsmkms.audit.sinks.TIMEOUT_S", 1.0)
    receiver.mode = "drip"
    shipper = ship_to(deployment, receiver)
    journal = deployment.journal(RARELY)
    write(journal, 10)
    until(lambda: shipper.failures >= 1)
    assert shipper.failing == "The receiver does not answer (ReadTimeout)."
    assert shipper.behind_bytes > 0
    receiver.release()
    journal.close()
    until(lambda: shipper.failing is None)
    shipper.close(60)
    assert receiver.lines == files(deployment)


def test_an_answer_without_end_is_not_read(deployment: Deployment, receiver: Receiver) -> None:
    receiver.mode = "flood"
    shipper = ship_to(deployment, receiver)
    journal = deployment.journal(RARELY)
    write(journal, 10)
    until(lambda: shipper.shipped >= 11)
    receiver.mode = "take"
    journal.close()
    shipper.close(60)
    assert receiver.lines == files(deployment)
    assert receiver.flooded < FLOOD


class Dull:
    """A sink that fails in a way that nobody has thought of, once it is told to."""

    settles_s = 0.0

    def __init__(self, name: str) -> None:
        self.name = name
        self.taken: list[bytes] = []
        self.broken = True

    def send(self, log: str, lines: Sequence[bytes]) -> None:
        if self.broken:
            raise RuntimeError("a bearer token")
        self.taken.extend(lines)

    def check(self) -> None:
        return

    def close(self) -> None:
        return


def test_what_nobody_has_thought_of_ends_no_shipping(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    sink = Dull("dull")
    shipper = Shipper(deployment.directory, sink)
    shipper.start()
    journal = deployment.journal(RARELY)
    write(journal, 10)
    until(lambda: shipper.failures >= 2)
    assert str(shipper.failing).startswith(f"RuntimeError at {__name__}:")
    assert sample("failures_total", "dull") >= 2
    sink.broken = False
    journal.close()
    until(lambda: shipper.failing is None)
    shipper.close(60)
    assert [sink.taken] == list(files(deployment).values())
    assert "a bearer token" not in "".join(capsys.readouterr())


def test_a_bearer_token_that_no_header_can_hold_is_told(deployment: Deployment, receiver: Receiver) -> None:
    """And read anew for the next try."""
    bearer = ["wort\u0144"]
    shipper = Shipper(
        deployment.directory,
        HttpReceiver("http", receiver.url, client_context(None, None, None), lambda: SecretText(bearer[0])),
    )
    shipper.start()
    journal = deployment.journal(RARELY)
    write(journal, 10)
    until(lambda: shipper.failures >= 1)
    assert "bearer_file" in str(shipper.failing)
    bearer[0] = "word"
    journal.close()
    until(lambda: shipper.failing is None)
    shipper.close(60)
    assert receiver.lines == files(deployment)


def test_a_sink_that_hangs_keeps_nobody_waiting(deployment: Deployment, receiver: Receiver) -> None:
    """Neither who records nor who stops; the next process goes on behind what arrived."""
    receiver.mode = "hang"
    shipper = ship_to(deployment, receiver)
    journal = deployment.journal(RARELY)
    write(journal, 1)
    assert receiver.asked.wait(20)
    write(journal, 500, 1)
    journal.close()
    shipper.close(0.2)
    assert receiver.lines == {}
    receiver.release()
    again = ship_to(deployment, receiver)
    until(lambda: again.ships, 60)
    again.close(60)
    assert receiver.lines == files(deployment)


def test_the_next_process_sends_nothing_twice(deployment: Deployment, receiver: Receiver) -> None:
    for first in (0, 50):
        shipper = ship_to(deployment, receiver)
        journal = deployment.journal(RARELY)
        write(journal, 50, first)
        journal.close()
        until(lambda shipper=shipper: shipper.ships)  # type: ignore[misc]
        shipper.close(60)
    assert receiver.lines == files(deployment)


def test_one_process_ships_and_the_next_takes_its_place(deployment: Deployment, receiver: Receiver) -> None:
    one = ship_to(deployment, receiver)
    until(lambda: one.ships)
    other = ship_to(deployment, receiver)
    journal = deployment.journal(RARELY)
    write(journal, 20)
    until(lambda: one.shipped >= 21)
    assert not other.ships
    one.close(60)
    write(journal, 20, 20)
    journal.close()
    until(lambda: other.ships)
    other.close(60)
    assert receiver.lines == files(deployment)


@pytest.mark.parametrize("more", [0, 40])
def test_a_log_that_lost_what_was_shipped_is_shipped_again(
    deployment: Deployment, receiver: Receiver, more: int
) -> None:
    """After it the log ends before what was shipped, or goes on beyond that with other records."""
    shipper = ship_to(deployment, receiver)
    journal = deployment.journal(RARELY)
    write(journal, 20)
    (path,) = logs_in([deployment.directory])
    until(lambda: len(receiver.lines.get(path.stem, [])) >= 21 and shipper.behind_bytes == 0)
    shipper.close(60)
    shipped = len(receiver.lines[path.stem])
    reached = path.stat().st_size
    os.truncate(path, sum(map(len, path.read_bytes().splitlines(keepends=True)[:10])))
    write(journal, more, 100)
    journal.close()
    left = path.read_bytes()
    assert (len(left) > reached) == bool(more)
    assert left[reached - 1 : reached] != b"\n"
    with capture_logs() as lines:
        again = ship_to(deployment, receiver)
        until(lambda: path.stem in shipped_whole(deployment.directory, "http"))
        again.close(60)
    assert receiver.lines[path.stem][shipped:] == left.splitlines()
    assert [line["log"] for line in lines if line["log_level"] == "error"] == [path.stem]


def test_a_log_that_was_taken_away_too_early_is_counted(deployment: Deployment, receiver: Receiver) -> None:
    journal = deployment.journal(RARELY)
    write(journal, 5)
    shipper = ship_to(deployment, receiver)
    until(lambda: shipper.shipped >= 6)
    receiver.mode = "fail"
    write(journal, 5, 5)
    until(lambda: shipper.failing is not None)
    (path,) = logs_in([deployment.directory])
    path.unlink()
    until(lambda: shipper.dropped_logs == 1)
    journal.close()
    shipper.close(60)


def longest() -> Event:
    """What a request leaves that exchanges the members of a group of the most that there can be."""
    old, new = (Values(members=tuple(f"iam-ServiceId-{uuid.uuid4()}" for _ in range(MAX_MEMBERS))) for _ in range(2))
    return structs.replace(event(0), request_data=RequestData(initial_value=old, new_value=new))


def test_rsyslog_has_logs_that_verify(deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real syslog server over TLS that knows who sends, killed in the middle: what it wrote, each record once, is
    proved by the public key."""
    monkeypatch.setattr(Syslog, "settles_s", 1.0)
    authority = Authority(tmp_path, "authority")
    server_certificate = authority.issue("server", [x509.DNSName("localhost")])
    client_certificate = authority.issue("hsmkms", [x509.DNSName("hsmkms")])
    server = Rsyslog(tmp_path / "rsyslog", authority, server_certificate)
    context = client_context(authority.file, client_certificate.certificate, client_certificate.key)
    shipper = Shipper(deployment.directory, Syslog("syslog", "localhost", server.port, context, "node"))
    try:
        shipper.start()
        journal = deployment.journal(OFTEN)
        write(journal, 50)
        journal.record_blocking(longest())
        until(lambda: shipper.failing is not None)
        server.start()
        until(lambda: shipper.failing is None)
        write(journal, 50, 50)
        until(lambda: any(server.logs.iterdir()))
        server.kill()
        write(journal, 50, 100)
        server.start()
        write(journal, 50, 150)
        journal.close()
        (path,) = logs_in([deployment.directory])
        wanted = path.read_bytes().splitlines()
        there = server.logs / path.name
        until(lambda: there.exists() and once(there.read_bytes().splitlines()) == wanted)
    finally:
        shipper.close(10)
        server.stop()
    there.write_bytes(b"".join(line + b"\n" for line in once(there.read_bytes().splitlines())))
    assert [log.sound and log.closed for log in verify([server.logs], deployment.public_key, {})] == [True]


def test_a_server_of_somebody_else_gets_nothing(deployment: Deployment, tmp_path: Path) -> None:
    """Its certificate is from another authority, or for another name."""
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    certificates = [theirs.issue("theirs", [x509.DNSName("localhost")]), ours.issue("ours", [x509.DNSName("other")])]
    journal = deployment.journal(RARELY)
    write(journal, 1)
    for number, certificate in enumerate(certificates):
        server = Rsyslog(tmp_path / f"rsyslog-{number}", ours, certificate)
        server.start()
        sink = Syslog(f"syslog-{number}", "localhost", server.port, client_context(ours.file, None, None), "node")
        shipper = Shipper(deployment.directory, sink)
        try:
            shipper.start()
            until(lambda shipper=shipper: shipper.failing is not None)  # type: ignore[misc]
            assert "certificate" in str(shipper.failing).lower()
            assert list(server.logs.iterdir()) == []
        finally:
            shipper.close(10)
            server.stop()
    journal.close()


def test_the_service_ships_to_all_its_sinks(state: State, receiver: Receiver, tmp_path: Path) -> None:
    """Standard output and HTTP, set in the environment."""
    bearer = tmp_path / "bearer"
    bearer.write_text("a bearer token\n")
    bearer.chmod(0o600)
    sinks = [{"kind": "stdout"}, {"kind": "http", "url": receiver.url, "bearer_file": str(bearer)}]
    service = Service(state, HSMKMS_AUDIT_SINKS=json.dumps(sinks))
    with service, service.client() as client:
        key = create_key(client)
        for _ in range(20):
            assert client.post(f"/keys/{key}/actions/wrap").status_code == 200
    wanted = {path.stem: path.read_bytes().splitlines() for path in logs_in([state.path / "audit"])}
    assert receiver.lines == wanted
    assert receiver.bearers == {"Bearer a bearer token"}
    shown: dict[str, list[bytes]] = {}
    for line in service.log.read_bytes().splitlines():
        if line.startswith(b'{"log":'):
            log, _, rest = line.removeprefix(b'{"log":"').partition(b'",')
            shown.setdefault(log.decode(), []).append(b"{" + rest)
    assert shown == wanted
    assert b"a bearer token" not in b"".join(path.read_bytes() for path in state.path.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("sinks", "wrong"),
    [
        ([{"kind": "http", "url": "http://elsewhere.example/audit"}], "https URL"),
        ([{"kind": "stdout"}, {"kind": "stdout"}], "one name"),
        ([{"kind": "carrier-pigeon"}], "audit_sinks"),
    ],
)
def test_a_sink_that_cannot_be_is_refused_at_the_start(state: State, sinks: list[dict[str, str]], wrong: str) -> None:
    done = state.run("serve", HSMKMS_AUDIT_SINKS=json.dumps(sinks))
    assert done.returncode == 1
    assert wrong in done.stderr.decode()
