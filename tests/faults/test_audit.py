"""What was answered was recorded, whatever dies; and what cannot be recorded is not done."""

from __future__ import annotations

import json
import random
import resource
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.deployment import Service, State, create_body, create_key

CLIENTS = 4


def outcomes(state: State) -> dict[str, list[dict[str, object]]]:
    """The outcomes of the whole deployment by correlation id."""
    found: dict[str, list[dict[str, object]]] = {}
    for path in sorted((state.path / "audit").glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            if b'"event":' in line and line.endswith(b"}"):
                event = json.loads(line)["event"]
                if event["outcome"] != "pending":
                    found.setdefault(event["correlationId"], []).append(event)
    return found


class Answers:
    """What clients were told: status by correlation id."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.statuses: dict[str, int] = {}

    def call(self, client: httpx.Client, method: str, path: str, body: object = None) -> httpx.Response:
        correlation_id = str(uuid.uuid4())
        answer = client.request(method, path, json=body, headers={"Correlation-Id": correlation_id})
        with self.lock:
            self.statuses[correlation_id] = answer.status_code
        return answer


def work(service: Service, token: str, key: str, answers: Answers, seed: int) -> None:
    """Good and bad calls until the service dies."""
    rng = random.Random(seed)
    headers = {"Authorization": f"Bearer {token}", "Bluemix-Instance": service.state.instance_id}
    with httpx.Client(base_url=f"{service.url}/api/v2", headers=headers, timeout=30) as client:
        try:
            while True:
                match rng.randrange(8):
                    case 0:
                        answers.call(client, "POST", "/keys", create_body("told"))
                    case 1:
                        answers.call(client, "POST", f"/keys/{key}/actions/unwrap", {"ciphertext": "AAAA"})
                    case 2:
                        answers.call(client, "GET", f"/keys/{uuid.uuid4()}/metadata")
                    case _:
                        answers.call(client, "POST", f"/keys/{key}/actions/wrap", {})
        except httpx.TransportError:
            return


@pytest.mark.alone
@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow, id="full-50")])
def test_every_answer_has_its_record(state: State, kills: int) -> None:
    seed = random.randrange(1 << 32)
    rng, answers = random.Random(seed), Answers()
    for round_number in range(kills):
        service = Service(state, workers=2)
        with service, service.client() as client:
            key, token = create_key(client), service.token()
            enough = len(answers.statuses) + rng.randrange(20, 300)
            with ThreadPoolExecutor(CLIENTS) as threads:
                running = [
                    threads.submit(work, service, token, key, answers, seed + round_number * CLIENTS + number)
                    for number in range(CLIENTS)
                ]
                tick = threading.Event()
                while len(answers.statuses) < enough and not any(one.done() for one in running):
                    tick.wait(0.01)
                service.kill()
                for one in running:
                    one.result()
    recorded = outcomes(state)
    assert len(answers.statuses) > 20 * kills
    for correlation_id, status in answers.statuses.items():
        codes = [event["reason"]["reasonCode"] for event in recorded.get(correlation_id, [])]  # type: ignore[index]
        assert codes == [status], f"seed {seed}: {correlation_id} was answered {status} and recorded as {codes}"
    # The last service died too: the next one takes its logs over, and all is whole.
    with Service(state) as service, service.client() as client:
        create_key(client)
    done = state.run("audit", "verify")
    assert done.returncode == 0, done.stdout.decode()


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


def test_old_logs_are_retired(state: State) -> None:
    """Deleted, and missed neither by the database nor by those who have the files and the public key alone."""
    assert state.run("keys", "create", "some key").returncode == 0
    place = state.path / "audit"
    before = sorted(path.name for path in place.glob("*.jsonl"))
    assert len(before) >= 2
    done = state.run("audit", "retire", "--before", "2000-01-01", "--yes")
    assert (done.returncode, done.stdout) == (0, b"There are no logs that old.\n")
    done = state.run("audit", "retire", "--before", "2999-01-01", "--yes")
    assert done.returncode == 0, done.stderr.decode()
    left = next(path for path in place.glob("*.jsonl") if b'"retired":' in path.read_bytes())
    assert not any((place / name).exists() for name in before)
    assert state.run("keys", "list").returncode == 0
    (public_key := state.path / "audit.pem").write_bytes(state.run("audit", "public-key").stdout)
    for arguments in ((), ("--public-key", str(public_key))):
        done = state.run("audit", "verify", *arguments)
        assert done.returncode == 0, done.stdout.decode()
    left.write_bytes(left.read_bytes().replace(b"retired", b"remired"))
    refused = state.run("audit", "retire", "--before", "2999-01-01", "--yes")
    assert refused.returncode == 1
    assert b"is wrong" in refused.stderr
    assert left.exists()
