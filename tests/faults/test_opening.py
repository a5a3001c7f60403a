"""A worker that starts while the token is away or hangs says that it lives, and serves as soon as it can."""

from __future__ import annotations

import os
import signal
import time

import httpx
import pytest

from tests.support.audited import recorded
from tests.support.deployment import Service, State, create_key
from tests.support.injector import Injector

pytestmark = pytest.mark.alone

TIMEOUT_S = 2
WITHIN_S = 60
HUNG_FOR_S = 3 * TIMEOUT_S


@pytest.mark.parametrize(
    ("functions", "code", "wait_ms"),
    [
        pytest.param(("C_Initialize",), 0, 600_000, id="initialize hangs", marks=pytest.mark.slow),
        pytest.param(("C_Login",), 0, 600_000, id="login hangs"),
        pytest.param(("*",), 0x30, 0, id="device error", marks=pytest.mark.slow),
    ],
)
def test_alive_and_not_replaced_while_the_token_is_not_there(
    state: State, injector: Injector, functions: tuple[str, ...], code: int, wait_ms: int
) -> None:
    settings = {"HSMKMS_TOKEN_CALL_TIMEOUT_S": str(TIMEOUT_S), "HSMKMS_PKCS11_MODULE": str(injector.library)}
    settings |= injector.environment
    with Service(state, workers=2, tls_ca="", **settings) as service, service.client() as client:
        key = create_key(client)
        injector.fail(*functions, code=code, wait_ms=wait_ms)
        killed = service.workers()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + WITHIN_S
        while len(set(service.workers()) - set(killed)) < 2 or not answers(service.url):
            assert time.monotonic() < deadline
        # From here on each request is answered and recorded, whichever worker gets it.
        refused_ids = []
        there, until = service.workers(), time.monotonic() + HUNG_FOR_S
        while time.monotonic() < until:
            assert answers(service.url)
            assert httpx.get(f"{service.url}/readyz").status_code == 503
            refused = httpx.get(f"{service.url}/api/v2/keys/{key}/metadata", headers=client.headers)
            assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
            wrap = httpx.post(f"{service.url}/api/v2/keys/{key}/actions/wrap", headers=client.headers, json={})
            assert (wrap.status_code, "Retry-After" in wrap.headers) == (503, True)
            login = httpx.post(f"{service.url}/identity/token", data={"grant_type": "x", "apikey": "y"})
            assert (login.status_code, "errorMessage" in login.json()) == (503, True)
            listed = httpx.get(f"{service.url}/v1/apikeys", headers=client.headers)
            assert listed.status_code == 503
            refused_ids += [answer.headers["Correlation-Id"] for answer in (refused, wrap, login, listed)]
        assert service.workers() == there
        known = recorded([state.path / "audit"])
        assert all(known.get(one) == [503] for one in refused_ids)
        injector.cure()
        deadline = time.monotonic() + WITHIN_S
        while not both_serve(service.url, f"/api/v2/keys/{key}/actions/wrap", client.headers):
            assert time.monotonic() < deadline
    verified = state.run("audit", "verify")
    assert verified.returncode == 0, verified.stdout.decode()


def answers(url: str) -> bool:
    """Whether it says that it lives."""
    try:
        return httpx.get(f"{url}/healthz", timeout=30).status_code == 200
    except httpx.TransportError:
        return False


def both_serve(url: str, path: str, headers: httpx.Headers) -> bool:
    """Whether ten wraps, each on a connection of its own, succeed."""
    try:
        return all(httpx.post(f"{url}{path}", headers=headers, json={}, timeout=30).is_success for _ in range(10))
    except httpx.TransportError:
        return False
