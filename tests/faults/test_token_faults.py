"""Whatever a token does, a caller is told 503 and nothing wrong, and it goes on by itself once the token is well."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.support.deployment import Service, State, create_key
from tests.support.injector import Injector

pytestmark = pytest.mark.alone

DEK = base64.b64encode(bytes(range(32))).decode()
CRYPTO = ("C_WrapKey", "C_UnwrapKey")
FAULTS = {
    "device error": (("*",), 0x30),
    "device removed": (("*",), 0x32),
    "token not present": (("*",), 0xE0),
    "general error": (("*",), 0x05),
    "not initialised": (CRYPTO, 0x190),
    "device error in crypto only": (CRYPTO, 0x30),
    "general error in crypto only": (CRYPTO, 0x05),
    "session lost": (("C_WrapKey", "C_UnwrapKey", "C_CreateObject"), 0xB3),
    "login lost": (("C_WrapKey", "C_UnwrapKey", "C_CreateObject"), 0x101),
    "handle stale": (CRYPTO, 0x60),
}
RECOVERED_WITHIN_S = 2.0
REFUSED_WITHIN_S = 0.05


@dataclass
class Row:
    """What clients saw of one fault. Times in seconds."""

    sent: int = 0
    answered: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def count(self, answer: httpx.Response, wanted: str | None) -> None:
        self.sent += 1
        if answer.status_code == 503:
            self.refused += 1
            self.waits.append(answer.elapsed.total_seconds())
            if "Retry-After" not in answer.headers:
                self.wrong.append("no Retry-After")
        elif answer.status_code != 200 or (wanted is not None and answer.json()["plaintext"] != wanted):
            self.wrong.append(f"{answer.status_code} {answer.text[:200]}")
        else:
            self.answered += 1


@pytest.fixture
def service(state: State, injector: Injector) -> Iterator[Service]:
    with serve(state, injector) as service:
        yield service


def serve(state: State, injector: Injector, *, workers: int = 1, **settings: str) -> Service:
    """A service whose token has faults."""
    environment = {"HSMKMS_PKCS11_MODULE": str(injector.library), **injector.environment, **settings}
    return Service(state, workers=workers, tls_ca="", **environment)


@pytest.mark.parametrize("name", FAULTS)
def test_survived_without_a_restart(service: Service, injector: Injector, name: str) -> None:
    functions, code = FAULTS[name]
    with service.client() as client:
        key = create_key(client)
        sealed = client.post(f"/keys/{key}/actions/wrap", json={"plaintext": DEK}).json()["ciphertext"]
        row, crypto = Row(), f"/keys/{key}/actions"

        def both() -> None:
            row.count(client.post(f"{crypto}/wrap", json={"plaintext": DEK}), None)
            row.count(client.post(f"{crypto}/unwrap", json={"ciphertext": sealed}), DEK)

        injector.fail(*functions, code=code)
        for _ in range(50):
            both()
        assert (row.answered, row.wrong) == (0, [])
        # Now and then one of them tries the token; the others are told at once.
        assert sorted(row.waits)[int(0.8 * len(row.waits))] < REFUSED_WITHIN_S
        assert httpx.get(f"{service.url}/readyz").status_code == 503
        assert httpx.get(f"{service.url}/healthz").status_code == 200
        assert client.get(f"/keys/{key}/metadata").status_code == 200
        assert client.get("/keys").status_code == 200

        injector.cure()
        cured = time.monotonic()
        while row.answered == 0:
            both()
            assert time.monotonic() - cured < RECOVERED_WITHIN_S, "it did not recover by itself"
        row.answered = row.refused = 0
        for _ in range(20):
            both()
        assert (row.answered, row.refused, row.wrong) == (40, 0, [])
        assert httpx.get(f"{service.url}/readyz").status_code == 200
    # One line for each change of state, however many were refused.
    log = service.log.read_text()
    assert log.count("the token does not answer") == 1
    assert log.count("the token answers again") == 1


@pytest.mark.parametrize("code", [0x30, 0x05, 0xB3, 0x60])
def test_now_and_then(service: Service, injector: Injector, code: int) -> None:
    """Each 7th call fails: whoever gets an answer gets the right one."""
    with service.client() as client:
        key = create_key(client)
        sealed = client.post(f"/keys/{key}/actions/wrap", json={"plaintext": DEK}).json()["ciphertext"]
        row = Row()
        injector.fail(*CRYPTO, code=code, every=7)

        def one(_: int) -> None:
            row.count(client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": sealed}), DEK)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(200)))
        assert row.wrong == []
        assert row.answered > 150
        injector.cure()
        wait_until_ready(service)
        one(0)


def test_bad_input_never_trips(service: Service, injector: Injector) -> None:
    """A client that sends rubbish neither has the module opened anew nor stops anybody."""
    with service.client() as client:
        key = create_key(client)
        answer = client.post(f"/keys/{key}/actions/wrap", json={"plaintext": DEK}).json()["ciphertext"]
        other = create_key(client)
        for _ in range(200):
            assert client.post(f"/keys/{other}/actions/unwrap", json={"ciphertext": answer}).status_code == 422
            assert client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": answer}).status_code == 200
    assert "the token does not answer" not in service.log.read_text()


def wait_until_ready(service: Service) -> None:
    deadline = time.monotonic() + RECOVERED_WITHIN_S
    while httpx.get(f"{service.url}/readyz").status_code != 200:
        assert time.monotonic() < deadline


def test_a_call_that_hangs(state: State, injector: Injector) -> None:
    """The worker that hangs is replaced; the other one goes on meanwhile; nothing has to be restarted."""
    with serve(state, injector, workers=2, HSMKMS_TOKEN_CALL_TIMEOUT_S="2") as service, service.client() as client:
        key = create_key(client)
        sealed = client.post(f"/keys/{key}/actions/wrap", json={"plaintext": DEK}).json()["ciphertext"]
        # A function that a worker which is still starting does not call.
        injector.fail("C_GenerateRandom", wait_ms=60_000)
        with ThreadPoolExecutor(1) as pool:
            began = time.monotonic()
            hung = pool.submit(post_alone, client, f"/keys/{key}/actions/wrap", {})
            while not injector.one_waits:
                assert time.monotonic() < began + 5
                time.sleep(0.01)
            # Only this one call hangs.
            injector.cure()
            row, cut_off = Row(), 0
            while not hung.done():
                # Each on a connection of its own, which a worker that hangs does not accept; but it may have done so
                # just before, and then what is asked of it ends with it.
                try:
                    row.count(post_alone(client, f"/keys/{key}/actions/unwrap", {"ciphertext": sealed}), DEK)
                except httpx.TransportError:
                    cut_off += 1
            assert isinstance(hung.exception(), httpx.TransportError)
            assert time.monotonic() - began < 10
            assert (cut_off <= 1, row.answered > 0, row.wrong) == (True, True, [])
        wait_until_two(service)
        assert service.log.read_text().count("the token hangs") == 1
        assert client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": sealed}).json()["plaintext"] == DEK


def post_alone(client: httpx.Client, path: str, body: dict[str, str]) -> httpx.Response:
    """On a connection that nobody else uses."""
    base = str(client.base_url).rstrip("/")
    return httpx.post(f"{base}{path}", headers=client.headers, json=body, timeout=60)


def wait_until_two(service: Service) -> None:
    """Until both workers are there again."""
    deadline = time.monotonic() + 30
    while len(workers(service)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def workers(service: Service) -> list[str]:
    """Process ids of those that serve; multiprocessing has one more child, which tracks resources."""
    pid = service.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
