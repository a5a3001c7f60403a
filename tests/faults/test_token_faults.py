"""What the bench does not show of a token with faults: rubbish brings none about, and an outage is no stampede."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.caller import WITH_TOKEN
from tests.support.deployment import Service, State, create_key
from tests.support.injector import Injector
from tests.support.load import Load, seed_of_today

pytestmark = pytest.mark.alone

DEK = base64.b64encode(bytes(range(32))).decode()
WORKERS = 2
CLIENTS = 64
AWAY_S = 4.0
RECOVERED_WITHIN_S = 2.0


@pytest.fixture(params=[WORKERS])
def service(request: pytest.FixtureRequest, state: State, injector: Injector) -> Iterator[Service]:
    """A service of so many workers whose token has faults and counts its calls."""
    injector.count_calls()
    environment = {"HSMKMS_PKCS11_MODULE": str(injector.library), **injector.environment}
    with Service(
        state, workers=request.param, tls_ca="", HSMKMS_SHORTEN_WAITS_FOR_TESTS="true", **environment
    ) as service:
        yield service


# One worker: SoftHSM shows another process's new key only after a fresh start, which would count too.
@pytest.mark.parametrize("service", [1], indirect=True)
def test_bad_input_never_trips(service: Service, injector: Injector) -> None:
    """A client that sends rubbish neither has the module opened anew nor stops anybody."""
    with service.client() as client:
        key = create_key(client)
        answer = client.post(f"/keys/{key}/actions/wrap", json={"plaintext": DEK}).json()["ciphertext"]
        other = create_key(client)
        before = injector.calls()
        for _ in range(200):
            assert client.post(f"/keys/{other}/actions/unwrap", json={"ciphertext": answer}).status_code == 422
            assert client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": answer}).status_code == 200
        assert injector.calls()["C_Initialize"] == before["C_Initialize"]
    assert "the token does not answer" not in service.log.read_text()


def test_no_stampede(service: Service, injector: Injector, state: State) -> None:
    """64 clients wait for a token that is away: one of each worker tries it, at a rate, and when it is back too."""
    seed = seed_of_today()
    print("seed", seed)
    load = Load(lambda: [service.url], state.api_key, state.instance_id, clients=CLIENTS, seed=seed, pause_s=0.5)
    with load:
        load.wait_until_well(time.monotonic(), 60)
        injector.fail("*", code=0x30)
        load.first(lambda call: call.status == 503, time.monotonic(), 10)
        time.sleep(1)
        before, began = injector.calls(), time.monotonic()
        time.sleep(AWAY_S)
        after, away_s = injector.calls(), time.monotonic() - began
        refused = [call for call in load.calls if call.status == 503 and call.began >= began]
        injector.cure()
        cured = time.monotonic()
        back = load.first(lambda call: call.good and call.action in WITH_TOKEN, cured, 30)
        load.wait_until_well(cured, 30)
        well = injector.calls()
    assert load.wrong == []
    assert back.ended - cured < RECOVERED_WITHIN_S
    assert len(refused) > 100
    # A probe four times a second in each worker, which opens the module anew once a second; and readiness.
    assert after["C_Initialize"] - before["C_Initialize"] <= WORKERS * (away_s + 1)
    assert after["C_Login"] - before["C_Login"] <= WORKERS * (away_s + 1)
    assert sum(after.values()) - sum(before.values()) <= WORKERS * 30 * (away_s + 1)
    assert well["C_Initialize"] - after["C_Initialize"] <= WORKERS * 2


def test_who_waits_for_others_does_not_hang(state: State, injector: Injector) -> None:
    """Keys are made one at a time: on a slow token many take longer than one call may, and yet none of them hangs."""
    injector.fail("C_GenerateKey", wait_ms=700)
    environment = {"HSMKMS_PKCS11_MODULE": str(injector.library), **injector.environment}
    settings = {"HSMKMS_TOKEN_CALL_TIMEOUT_S": "2", "HSMKMS_SESSION_WAIT_S": "60"}
    with Service(state, workers=1, tls_ca="", **environment, **settings) as service, service.client() as client:
        with ThreadPoolExecutor(6) as threads:
            made = list(threads.map(lambda _: create_key(client), range(6)))
        assert len(set(made)) == 6
    assert "the token hangs" not in service.log.read_text()
