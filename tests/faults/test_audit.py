"""What cannot be recorded is not done. That what was answered was recorded, `test_kill` and the bench prove."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys

import httpx
import pytest

from hsmkms.clock import system_clock
from hsmkms.store.audit import AuditHeadStore
from hsmkms.store.engine import Database
from tests.support.deployment import ROOT, Service, State, create_body, create_key
from tests.support.journals import rewrite

RETIRE = ("audit", "retire", "--before", "2999-01-01", "--yes")
DIES = """
import os, sys
from {module} import {kind}
from hsmkms.cli.main import main
{kind}.{method} = lambda *_: os._exit(9)
sys.argv[0] = "hsmkms"
main()
"""
"""A command that dies at a method."""


@pytest.mark.alone
def test_what_cannot_be_recorded_is_not_done(state: State) -> None:
    """A file system that takes no byte more: refused with 503, nothing changed; and served again when it takes some."""
    with Service(state) as service, service.client() as client:
        key = create_key(client)
        before = client.get("/keys").json()["metadata"]["collectionTotal"]
        process = service.process.pid
        limit = resource.prlimit(process, resource.RLIMIT_FSIZE)
        resource.prlimit(process, resource.RLIMIT_FSIZE, (0, limit[1]))
        refused = [
            client.post(f"/keys/{key}/actions/wrap", json={}),
            client.post("/keys", json=create_body("not to be")),
            client.delete(f"/keys/{key}"),
            client.get("/keys"),
        ]
        assert [answer.status_code for answer in refused] == [503] * 4
        assert all("cannot be recorded" in answer.text and "Retry-After" in answer.headers for answer in refused)
        assert httpx.get(f"{service.url}/healthz").status_code == 200
        ready = httpx.get(f"{service.url}/readyz")
        assert (ready.status_code, ready.json()["audit"]) == (503, False)
        resource.prlimit(process, resource.RLIMIT_FSIZE, limit)
        # Nobody asks for a key meanwhile: the service finds out by itself.
        service.wait_until_ready()
        assert client.get("/keys").json()["metadata"]["collectionTotal"] == before
        assert client.get(f"/keys/{key}/metadata").json()["resources"][0]["state"] == 1
        assert client.post(f"/keys/{key}/actions/wrap", json={}).status_code == 200
    done = state.run("audit", "verify")
    assert done.returncode == 0, done.stdout.decode()


def test_nobody_has_a_log_signed_that_he_wrote_anew(state: State) -> None:
    """Who may write to the directory and has neither key nor database: what he leaves there as if a process had been
    killed is not closed by the next one, and the database goes on to say what was there."""
    assert state.run("keys", "create", "some key").returncode == 0
    newest = max((state.path / "audit").glob("*.jsonl"))
    rewrite(newest, lambda kind, content: None if kind == "checkpoint" else content, more=9)
    forged = newest.read_bytes()
    done = state.run("keys", "create", "another key")
    assert (done.returncode, newest.stem.encode() in done.stderr) == (0, True)
    assert newest.read_bytes() == forged
    done = state.run("audit", "verify")
    assert done.returncode == 1
    (wrong,) = [line for line in done.stdout.splitlines() if line.startswith(b"WRONG")]
    assert newest.stem.encode() in wrong


def test_old_logs_are_retired(state: State) -> None:
    """Deleted, and missed neither by the database nor by those who have the files and the public key alone; another
    host's stay."""
    assert state.run("keys", "create", "some key").returncode == 0
    place = state.path / "audit"
    before = sorted(path.name for path in place.glob("*.jsonl"))
    assert len(before) >= 2
    another = "20260101T000000-another-00000000"
    with contextlib.closing(Database(f"sqlite:///{state.path / 'hsmkms.db'}")) as database:
        AuditHeadStore(database).put(another, 5, "00" * 32, system_clock(), closed=True)
    done = state.run("audit", "retire", "--before", "2000-01-01", "--yes")
    assert (done.returncode, done.stdout) == (0, b"There are no logs that old.\n")
    done = state.run(*RETIRE)
    assert done.returncode == 0, done.stderr.decode()
    left = next(path for path in place.glob("*.jsonl") if b'"retired":' in path.read_bytes())
    assert not any((place / name).exists() for name in before)
    assert state.run("keys", "list").returncode == 0
    (public_key := state.path / "audit.pem").write_bytes(state.run("audit", "public-key").stdout)
    for arguments in ((), ("--public-key", str(public_key))):
        done = state.run("audit", "verify", *arguments)
        assert done.returncode == 0, done.stdout.decode()
        assert b"note   1 logs of another are not here and were not looked at\n" in done.stdout
    with contextlib.closing(Database(f"sqlite:///{state.path / 'hsmkms.db'}")) as database:
        assert another in {log for log, *_ in AuditHeadStore(database).all()}
    left.write_bytes(left.read_bytes().replace(b"retired", b"remired"))
    refused = state.run(*RETIRE)
    assert refused.returncode == 1
    assert b"is wrong" in refused.stderr
    assert left.exists()


@pytest.mark.parametrize(
    ("module", "kind", "method"),
    [("hsmkms.audit.logfile", "LogFile", "end"), ("hsmkms.store.audit", "AuditHeadStore", "forget")],
)
def test_a_retirement_that_is_cut_off_loses_nothing(state: State, module: str, kind: str, method: str) -> None:
    """Before the record of it is signed nobody has forgotten a log, and none is gone; and it can be done again."""
    place = state.path / "audit"
    before = {path.stem for path in place.glob("*.jsonl")}
    program = DIES.format(module=module, kind=kind, method=method)
    died = subprocess.run([sys.executable, "-c", program, *RETIRE], env=state.environment(), cwd=ROOT, check=False)
    assert died.returncode == 9
    with contextlib.closing(Database(f"sqlite:///{state.path / 'hsmkms.db'}")) as database:
        assert before <= {log for log, *_ in AuditHeadStore(database).all()}
    assert before <= {path.stem for path in place.glob("*.jsonl")}
    done = state.run(*RETIRE)
    assert done.returncode == 0, done.stderr.decode()
    assert not before & {path.stem for path in place.glob("*.jsonl")}
    verified = state.run("audit", "verify")
    assert verified.returncode == 0, verified.stdout.decode()
