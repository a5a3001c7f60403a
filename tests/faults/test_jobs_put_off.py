"""What a job cannot do is tried less and less often: a token that is away for days must not fill the audit disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from hsmkms.domain.jobs import Done
from hsmkms.errors import TokenUnavailable
from tests.support.deployment import State, create_body
from tests.support.in_process import START, InProcess, MovedClock
from tests.support.injector import Injector, compile_injector

RUN = timedelta(seconds=5)
LATER = timedelta(days=91)
CKR_DEVICE_ERROR, CKR_DEVICE_MEMORY = 0x30, 0x31
SOON_S = 10


def always() -> bool:
    return True


@pytest.fixture
def injector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Injector:
    injector = Injector(compile_injector(tmp_path), tmp_path / "faults")
    injector.cure()
    for name, value in {**injector.environment, "HSMKMS_PKCS11_MODULE": str(injector.library)}.items():
        monkeypatch.setenv(name, value)
    return injector


@pytest.fixture
def service(seed_state: State, tmp_path: Path, injector: Injector) -> Iterator[InProcess]:
    """With a key to rotate, a key to purge and an import token to end."""
    found = InProcess(seed_state.copy_to(tmp_path / "state"), MovedClock(START))
    month = {"type": "application/vnd.ibm.kms.policy+json", "rotation": {"enabled": True, "interval_month": 1}}
    policy = {"metadata": {"collectionType": month["type"], "collectionTotal": 1}, "resources": [month]}
    rotating, gone = (
        found.call(found.state.api_key, "POST", "/keys", create_body("put off")).json()["resources"][0]["id"]
        for _ in range(2)
    )
    for method, path, body in (
        ("PUT", f"/keys/{rotating}/policies", policy),
        ("DELETE", f"/keys/{gone}", None),
        ("POST", "/import_token", {"expiration": 300}),
    ):
        assert found.call(found.state.api_key, method, path, body).is_success
    found.clock.move(START + LATER)
    yield found
    found.end()


def records(state: State) -> int:
    """How many events are in the audit trail."""
    return sum(path.read_text().count('"event":') for path in (state.path / "audit").glob("*.jsonl"))


def work(service: InProcess) -> list[Done]:
    """One run of each job that needs the token."""
    here = service.services
    return [job(always) for job in (here.jobs.rotate_due, here.jobs.purge_due, here.imports.expire_due)]


def test_what_fails_is_tried_less_and_less_often(service: InProcess, injector: Injector) -> None:
    """A token that is well and makes no key, such as a full one: within the first hour 12 tries and not 720."""
    rotate_due = service.services.jobs.rotate_due
    injector.fail("C_GenerateKey", code=CKR_DEVICE_MEMORY)
    before, tries = records(service.state), 0
    for _ in range(int(timedelta(hours=1) / RUN)):
        tries += rotate_due(always).failed
        service.clock.move(service.clock.now + RUN)
    assert tries == 12
    assert records(service.state) - before == 2 * tries
    injector.cure()
    assert rotate_due(always) == Done(0, 0)
    service.clock.move(service.clock.now + timedelta(minutes=10))
    assert rotate_due(always) == Done(1, 0)


def test_nothing_is_tried_while_the_token_is_away(service: InProcess, injector: Injector) -> None:
    """When it is back all is done at once: nothing was put off."""
    injector.fail("*", code=CKR_DEVICE_ERROR)
    with pytest.raises(TokenUnavailable):
        service.token.check()
    before = records(service.state)
    assert work(service) == [Done(0, 0)] * 3
    assert records(service.state) == before
    injector.cure()
    deadline = time.monotonic() + SOON_S
    while service.token.is_away:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert work(service) == [Done(1, 0)] * 3
