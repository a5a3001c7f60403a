"""Rubbish that is sent as a key never makes the service open its token anew."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bringing import Fetched
from tests.support.deployment import State, create_body
from tests.support.in_process import START, InProcess, MovedClock


@pytest.fixture
def service(seed_state: State, tmp_path: Path) -> Iterator[InProcess]:
    service = InProcess(seed_state.copy_to(tmp_path / "state"), MovedClock(START))
    yield service
    service.end()


def test_the_module_stays_open(service: InProcess) -> None:
    owner = service.state.api_key
    assert service.call(owner, "POST", "/import_token").status_code == 200
    fetched = Fetched.of(service.call(owner, "GET", "/import_token").json())
    good = fetched.fields(os.urandom(32))
    wrong = fetched.fields(os.urandom(32)) | {"payload": good["payload"]}
    assert service.call(owner, "POST", "/keys", create_body(**good)).status_code == 201  # type: ignore[arg-type]
    long = good | {"encryptedNonce": base64.b64encode(bytes(2_000)).decode()}
    opened = service.token._pool.generation
    for fields in (wrong, good | {"payload": "AAAA"}, good | {"iv": "AAAA"}, {"payload": "AAAA"}, long):
        answer = service.call(owner, "POST", "/keys", create_body(**fields))  # type: ignore[arg-type]
        assert answer.status_code == 400
    assert service.token._pool.generation == opened
    assert service.call(owner, "GET", "/keys").json()["metadata"]["collectionTotal"] == 1
