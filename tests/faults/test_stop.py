"""A stop cuts nobody off, leaves nothing open, and is bounded; a rolling restart is not noticed."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.audited import recorded, unrecorded
from tests.support.deployment import Service, State, create_key
from tests.support.injector import Injector
from tests.support.load import Load, seed_of_today
from tests.support.postgresql import PostgresServer

pytestmark = pytest.mark.alone

STOPS_WITHIN_S = 20


def signed_and_closed(state: State) -> None:
    """Every log of the audit trail ends with a signature."""
    for path in (state.path / "audit").glob("*.jsonl"):
        last = json.loads(path.read_bytes().splitlines()[-1])
        assert json.loads(json.dumps(last))["checkpoint"]["checkpoint"]["final"] is True
    done = state.run("audit", "verify")
    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_under_way_is_answered(state: State, injector: Injector, workers: int) -> None:
    """A call in the token, a body of which half has come, and a request on a connection that was idle."""
    injector.count_calls()
    names = {name: str(uuid.uuid4()) for name in ("in the token", "half of a body", "on an idle connection")}
    settings = {"HSMKMS_PKCS11_MODULE": str(injector.library), **injector.environment}
    service = Service(state, workers=workers, tls_ca="", **settings)
    with service, service.client() as client, ThreadPoolExecutor(2) as threads:
        key = create_key(client)
        body = b'{"plaintext":"aGVsbG8gSFNN"}'
        half = open_request(service, client, f"/keys/{key}/actions/wrap", names["half of a body"], len(body), body[:9])
        idle = httpx.Client(base_url=client.base_url, headers=client.headers, timeout=60)
        assert idle.get("/keys").status_code == 200
        before = injector.calls()
        injector.fail("C_WrapKey", wait_ms=1_000)
        slow = threads.submit(
            client.post, f"/keys/{key}/actions/wrap", json={}, headers={"Correlation-Id": names["in the token"]}
        )
        injector.wait_for_one()
        injector.cure()
        service.process.send_signal(signal.SIGTERM)
        stopped = threads.submit(service.process.wait, STOPS_WITHIN_S)
        half.sendall(body[9:])
        while (answer := idle.get("/keys", headers={"Correlation-Id": names["on an idle connection"]})).is_success:
            if answer.headers.get("Connection") == "close":
                break
        assert answer.status_code == 200
        wait_until_refused(service)
        assert slow.result().status_code == 200
        assert b"200 OK" in half.recv(65_536)
        assert stopped.result() in (0, -signal.SIGTERM)
        half.close()
        idle.close()
    told = recorded([state.path / "audit"])
    assert [told[names[name]] for name in ("in the token", "half of a body")] == [[200]] * 2
    assert told[names["on an idle connection"]][-1] == 200
    after = injector.calls()
    done = {function: count - before[function] for function, count in after.items()}
    # Each worker, and no process else, closes its sessions and leaves the module. One to which the new key is not to be
    # seen has entered it anew before.
    assert done["C_CloseAllSessions"] == workers
    assert done["C_Finalize"] == workers + done["C_Initialize"]
    signed_and_closed(state)
    log = service.log.read_text()
    assert "Traceback" not in log
    assert "rror" not in log


def test_without_a_token(state: State, injector: Injector) -> None:
    """Nothing can be signed then: the log says so, and the next process does it."""
    settings = {"HSMKMS_PKCS11_MODULE": str(injector.library), **injector.environment}
    service = Service(state, workers=2, tls_ca="", **settings)
    with service, service.client() as client:
        key = create_key(client)
        injector.fail("*", code=0x30)
        assert client.post(f"/keys/{key}/actions/wrap", json={}).status_code == 503
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(STOPS_WITHIN_S) == 0
    assert "Traceback" not in service.log.read_text()
    injector.cure()
    with Service(state) as again, again.client() as client:
        assert client.post(f"/keys/{key}/actions/wrap", json={}).status_code == 200
    signed_and_closed(state)


def open_request(
    service: Service, client: httpx.Client, path: str, correlation_id: str, length: int, begin: bytes
) -> socket.socket:
    """A POST of which only the first bytes of the body are sent."""
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    lines = [f"POST /api/v2{path} HTTP/1.1", "Host: localhost", f"Content-Length: {length}"]
    lines += [f"{name}: {client.headers[name]}" for name in ("Authorization", "Bluemix-Instance")]
    lines += [f"Correlation-Id: {correlation_id}", "", ""]
    connection.sendall("\r\n".join(lines).encode() + begin)
    return connection


def wait_until_refused(service: Service) -> None:
    deadline = time.monotonic() + STOPS_WITHIN_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", service.port), timeout=5).close()
        except ConnectionRefusedError:
            return
        except OSError:
            pass
        assert time.monotonic() < deadline


def test_a_client_that_never_finishes_does_not_hold_it_up(state: State) -> None:
    with Service(state, workers=2, tls_ca="", HSMKMS_STOP_WITHIN_S="1") as service, service.client() as client:
        key = create_key(client)
        stuck = open_request(service, client, f"/keys/{key}/actions/wrap", str(uuid.uuid4()), 1_000, b"{")
        assert client.get("/keys").status_code == 200
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(STOPS_WITHIN_S) == 0
        stuck.close()
    signed_and_closed(state)


def test_a_worker_that_stands_still_does_not_hold_it_up(state: State) -> None:
    """It is killed, and who begins a log next signs what it left."""
    with Service(state, workers=2, HSMKMS_STOP_WITHIN_S="1") as service, service.client() as client:
        create_key(client)
        service.wait_until_all_serve()
        os.kill(service.workers()[0], signal.SIGSTOP)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(STOPS_WITHIN_S) == 0
    assert "did not stop and is killed" in service.log.read_text()
    with Service(state) as service, service.client():
        # Logged in: that is an event.
        pass
    signed_and_closed(state)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_control_socket_that_cannot_be_taken_away_leaves_nothing_open(state: State, workers: int) -> None:
    with Service(state, workers=workers) as service, service.client() as client:
        create_key(client)
        (state.path / "run").rename(state.path / "gone")
        (state.path / "run").write_text("in the way")
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(STOPS_WITHIN_S) in (0, -signal.SIGTERM)
    assert "Traceback" not in service.log.read_text()
    signed_and_closed(state)


def test_workers_do_not_outlive_their_parent(state: State) -> None:
    """It could not be started again on its address, and nobody would replace or stop them."""
    service = Service(state, workers=2)
    with service, service.client() as client:
        key = create_key(client)
        workers = service.workers()
        assert len(workers) == 2
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait()
        deadline = time.monotonic() + STOPS_WITHIN_S
        while any(map(alive, workers)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        service.start()
        service.wait_until_ready()
        with service.client() as again:
            assert again.post(f"/keys/{key}/actions/wrap", json={}).status_code == 200
    signed_and_closed(state)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_rolling_restart_is_not_noticed(
    state: State, postgres: PostgresServer, run_service: Callable[..., Service]
) -> None:
    """Two nodes, one database, one token; clients go to the other node when nobody listens, and do nothing else."""
    seed = seed_of_today()
    print("seed", seed)
    settings = {
        "HSMKMS_DATABASE_URL": postgres.new_database("rolling"),
        "HSMKMS_SHORTEN_WAITS_FOR_TESTS": "true",
    }
    (state.path / "client.env").unlink()
    assert state.run("init", stdin=b"", **settings).returncode == 0
    nodes = [run_service(state, workers=workers, tls_ca="", **settings) for workers in (2, 1)]
    urls = [node.url for node in nodes]
    with Load(lambda: urls, state.api_key, state.instance_id, clients=8, seed=seed) as load:
        began = time.monotonic()
        for node in random.Random(seed).sample(nodes, 2):
            load.first(lambda call: call.good, time.monotonic(), 30)
            node.stop()
            node.start()
            node.wait_until_ready()
        load.first(lambda call: call.good, time.monotonic(), 30)
        load.stop()
        assert load.wrong == []
        assert {call.status for call in load.calls if not call.good} == set(), load.seen_since(began)
        assert len(load.calls) > 100
        assert load.lost() == []
        assert unrecorded(load.calls, [state.path / "audit"]) == []
