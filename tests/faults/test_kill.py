"""kill -9 at random moments during creates and rotates: no key that a client was told about is lost."""

from __future__ import annotations

import random
import sqlite3
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import pytest

from tests.support.deployment import Service, State, create_body
from tests.token.test_objects import pkcs11_tool

CLIENTS = 4


@dataclass
class Told:
    """What clients were told: for each key its ciphertexts and the DEKs in them."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    wrapped: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    operations: int = 0

    def add(self, key: str) -> None:
        with self.lock:
            self.wrapped.setdefault(key, [])

    def wrap(self, client: httpx.Client, key: str) -> None:
        answer = client.post(f"/keys/{key}/actions/wrap")
        assert answer.status_code == 200, answer.text
        with self.lock:
            self.wrapped[key].append((answer.json()["ciphertext"], answer.json()["plaintext"]))

    def count(self) -> None:
        with self.lock:
            self.operations += 1


def work(service: Service, token: str, told: Told, rounds: int, wanted: int) -> None:
    """Create and rotate until the service dies under us."""
    headers = {"Authorization": f"Bearer {token}", "Bluemix-Instance": service.state.instance_id}
    mine: list[str] = []
    with httpx.Client(base_url=f"{service.url}/api/v2", headers=headers, timeout=30) as client:
        try:
            while told.operations < wanted * rounds:
                if mine and random.random() < 0.5:
                    assert client.post(f"/keys/{mine.pop()}/actions/rotate").status_code == 204
                else:
                    answer = client.post("/keys", json=create_body("told"))
                    assert answer.status_code == 201, answer.text
                    key = answer.json()["resources"][0]["id"]
                    told.add(key)
                    told.wrap(client, key)
                    mine.append(key)
                told.count()
        except httpx.TransportError:
            return


def check(service: Service, told: Told) -> None:
    """Every key wraps, every ciphertext opens."""
    with service.client() as client:
        for key, wrapped in told.wrapped.items():
            assert client.post(f"/keys/{key}/actions/wrap").status_code == 200
            for ciphertext, plaintext in wrapped:
                answer = client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": ciphertext})
                assert answer.status_code == 200, answer.text
                assert answer.json()["plaintext"] == plaintext


@pytest.mark.parametrize(
    ("kills", "operations"), [(4, 100), pytest.param(20, 500, marks=pytest.mark.slow, id="full-20-500")]
)
def test_no_key_is_lost(state: State, kills: int, operations: int) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    random.seed(seed)
    told = Told()
    for turn in range(1, kills + 1):
        service = Service(state)
        with service:
            token = service.token()
            wanted = operations // kills
            check(service, told)
            with ThreadPoolExecutor(CLIENTS) as threads:
                clients = [threads.submit(work, service, token, told, turn, wanted) for _ in range(CLIENTS)]
                reached = threading.Event()
                # The moment is random in operations and, within the next one, in time.
                limit = wanted * (turn - 1) + random.randrange(wanted // 2, wanted)
                while told.operations < limit and not reached.wait(0.002):
                    assert service.process.poll() is None
                    assert not all(client.done() for client in clients), [client.exception() for client in clients]
                reached.wait(random.random() * 0.03)
                service.kill()
            for client in clients:
                client.result()
    with Service(state) as service:
        check(service, told)
    assert len(told.wrapped) > operations // 4
    examined = state.run("doctor", "--repair", "--pending-older-than", "0")
    assert examined.returncode == 0, examined.stdout.decode()
    assert b"row without object" not in examined.stdout
    again = state.run("doctor")
    assert again.returncode == 0, again.stdout.decode()
    assert b"pending" not in again.stdout
    with Service(state) as service:
        check(service, told)


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
