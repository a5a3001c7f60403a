"""kill -9 at random moments under load: no key, rotation or deletion that a client was told of is lost, every answer
that a client got has its audit record, and what the crash left behind is settled."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
import uuid

import pytest

from tests.support.audited import unrecorded
from tests.support.deployment import Service, State
from tests.support.load import Load, seed_of_today
from tests.token.test_objects import pkcs11_tool

SERVES_WITHIN_S = 180


@pytest.mark.alone
@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow, id="full-50")])
def test_killed_during_load(state: State, kills: int) -> None:
    """All at once mostly; sometimes a worker alone, or the parent, whom its workers then follow."""
    seed = seed_of_today()
    print("seed", seed)
    rng = random.Random(seed)
    service = Service(state, workers=2, tls_ca="", HSMKMS_SHORTEN_WAITS_FOR_TESTS="true", HSMKMS_AUDIT_CHECKPOINT_S="1")
    with service:
        load = Load(lambda: [service.url], state.api_key, state.instance_id, clients=4, seed=seed, pause_s=0.01)
        with load:
            for number in range(kills):
                load.first(lambda call: call.good, time.monotonic(), SERVES_WITHIN_S)
                wait_for_calls(load, rng.randrange(20, 200))
                time.sleep(rng.random() * 0.03)
                kill(service, rng.choice(("all", "all", "worker", "parent")) if number else "all")
            load.first(lambda call: call.good, time.monotonic(), SERVES_WITHIN_S)
            load.stop()
            service.wait_until_ready()
            assert load.wrong == []
            assert load.lost() == []
        assert sum(call.good for call in load.calls) > 20 * kills
        assert unrecorded(load.calls, [state.path / "audit"]) == []
    verified = state.run("audit", "verify")
    assert verified.returncode == 0, verified.stdout.decode()
    examined = state.run("doctor", "--repair", "--pending-older-than", "0")
    assert examined.returncode == 0, examined.stdout.decode()
    assert b"row without object" not in examined.stdout
    again = state.run("doctor")
    assert again.returncode == 0, again.stdout.decode()
    assert b"pending" not in again.stdout


def wait_for_calls(load: Load, count: int) -> None:
    """Until so many more calls were made."""
    wanted, deadline = len(load.calls) + count, time.monotonic() + SERVES_WITHIN_S
    while len(load.calls) < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kill(service: Service, what: str) -> None:
    """A supervisor starts what is gone as a whole."""
    if what == "worker" and service.workers():
        os.kill(service.workers()[0], signal.SIGKILL)
        return
    if what == "parent":
        workers = service.workers()
        service.process.kill()
        service.process.wait()
        deadline = time.monotonic() + SERVES_WITHIN_S
        while any(os.path.exists(f"/proc/{worker}") for worker in workers):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    else:
        service.kill()
    service.start()


def test_doctor_settles_a_pending_object(state: State) -> None:
    """The two leftovers a crash can leave: an object without a row, and a pending row without an object."""
    made, never_made = str(uuid.uuid4()), str(uuid.uuid4())
    pkcs11_tool(state, "--keygen", "--key-type", "aes:32", "--id", uuid.UUID(made).hex, "--label", "hsmkms x y")
    database = sqlite3.connect(state.path / "hsmkms.db")
    with database:
        for version_id in (made, never_made):
            database.execute("INSERT INTO pending_object VALUES (?, 'x y', 1)", (version_id,))
    database.close()
    found = state.run("doctor")
    assert found.returncode == 1
    assert made in found.stdout.decode()
    repaired = state.run("doctor", "--repair").stdout.decode()
    assert f"{made} settled: object destroyed" in repaired
    assert f"{never_made} settled: no object to destroy" in repaired
    assert state.run("doctor").returncode == 0
    listing = pkcs11_tool(state, "--list-objects", "--type", "secrkey")
    assert uuid.UUID(made).hex not in listing


def test_doctor_reports_and_keeps_what_no_crash_leaves(state: State) -> None:
    """An object without any row (an old database) and a row without its object (an old token) are reported and kept."""
    unknown = uuid.uuid4()
    pkcs11_tool(state, "--keygen", "--key-type", "aes:32", "--id", unknown.hex, "--label", "hsmkms x y")
    assert state.run("keys", "create", "to be lost").returncode == 0
    database = sqlite3.connect(state.path / "hsmkms.db")
    ((lost,),) = database.execute("SELECT id FROM key_version").fetchall()
    database.close()
    pkcs11_tool(state, "--delete-object", "--type", "secrkey", "--id", uuid.UUID(lost).hex)
    examined = state.run("doctor", "--repair", "--pending-older-than", "0")
    assert examined.returncode == 1
    report = examined.stdout.decode()
    assert any("object without row" in line and str(unknown) in line for line in report.splitlines())
    assert any("row without object" in line and lost in line for line in report.splitlines())
    assert unknown.hex in pkcs11_tool(state, "--list-objects", "--type", "secrkey")
    assert "to be lost" in state.run("keys", "list").stdout.decode()
