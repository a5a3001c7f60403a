"""Two workers, 64 clients that create, wrap, unwrap, rotate and delete: no surprise, and every DEK comes back."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.deployment import Service, State, create_body

pytestmark = pytest.mark.alone

CLIENTS = 64


class LoadClient:
    """One client with keys of its own and what it wrapped under them."""

    def __init__(self, http: httpx.Client, seed: int) -> None:
        self.http = http
        self.random = random.Random(seed)
        self.keys: dict[str, list[tuple[str, str, list[str]]]] = {}
        self.rotated: set[str] = set()
        self.deleted: set[str] = set()
        self.outcomes: Counter[str] = Counter()

    def run(self, until: float) -> Counter[str]:
        while time.monotonic() < until:
            actions: list[Callable[[], None]] = [self.wrap] * 8 + [self.unwrap] * 8
            actions += [self.create, self.rotate, self.delete, self.use_deleted]
            self.create() if len(self.keys) < 2 else self.random.choice(actions)()
        return self.outcomes

    def create(self) -> None:
        answer = self.http.post("/keys", json=create_body("load"))
        self.expect("create", answer, 201)
        self.keys[answer.json()["resources"][0]["id"]] = []

    def wrap(self) -> None:
        key = self.random.choice(list(self.keys))
        aad = [str(self.random.random())]
        answer = self.http.post(f"/keys/{key}/actions/wrap", json={"aad": aad})
        self.expect("wrap", answer, 200)
        self.keys[key].append((answer.json()["ciphertext"], answer.json()["plaintext"], aad))

    def unwrap(self) -> None:
        key = self.random.choice(list(self.keys))
        if not self.keys[key]:
            return
        ciphertext, plaintext, aad = self.random.choice(self.keys[key])
        answer = self.http.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": ciphertext, "aad": aad})
        self.expect("unwrap", answer, 200)
        assert answer.json()["plaintext"] == plaintext
        if "ciphertext" in answer.json():
            self.keys[key].append((answer.json()["ciphertext"], plaintext, aad))

    def rotate(self) -> None:
        key = self.random.choice(list(self.keys))
        answer = self.http.post(f"/keys/{key}/actions/rotate")
        self.expect("rotate", answer, 409 if key in self.rotated else 204)
        self.rotated.add(key)

    def delete(self) -> None:
        key = self.random.choice(list(self.keys))
        self.expect("delete", self.http.delete(f"/keys/{key}"), 204)
        self.deleted.add(key)
        del self.keys[key]

    def use_deleted(self) -> None:
        """Another worker may not have heard of a deletion for a second, so only old ones must be refused by now."""
        if not self.deleted:
            return
        answer = self.http.delete(f"/keys/{self.random.choice(list(self.deleted))}")
        self.expect("delete again", answer, 410)

    def expect(self, action: str, answer: httpx.Response, status: int) -> None:
        assert answer.status_code == status, f"{action}: {answer.status_code} {answer.text}"
        self.outcomes[action] += 1


@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_mixed_load(state: State, seconds: int) -> None:
    with Service(state, workers=2) as service:
        with httpx.Client(
            base_url=f"{service.url}/api/v2",
            headers={"Authorization": f"Bearer {service.token()}", "Bluemix-Instance": state.instance_id},
            timeout=60,
            limits=httpx.Limits(max_connections=CLIENTS),
        ) as http:
            until = time.monotonic() + seconds
            with ThreadPoolExecutor(CLIENTS) as threads:
                outcomes = sum(threads.map(lambda seed: LoadClient(http, seed).run(until), range(CLIENTS)), Counter())
        print(dict(outcomes))
        assert service.process.poll() is None
    assert min(outcomes[action] for action in ("create", "wrap", "unwrap", "rotate", "delete")) > 10
    assert state.run("doctor").returncode == 0
