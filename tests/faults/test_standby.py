"""Two tokens with the same keys: reads go on with the standby while the primary is away, and keys are born proved."""

from __future__ import annotations

import base64
import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.deployment import Service, State, create_body, create_key
from tests.support.injector import Injector
from tests.support.tokens import STANDBY_LABEL, Group, give_other_sentinel

DEK = base64.b64encode(bytes(range(32))).decode()
WITHIN_S = 60


@pytest.fixture
def group(state: State) -> Iterator[Group]:
    with Group(state) as group:
        yield group


@pytest.fixture
def settings(state: State, group: Group, injector: Injector) -> dict[str, str]:
    """The primary through the injector, the standby through a library of its own."""
    return {
        "HSMKMS_PKCS11_MODULE": str(injector.library),
        **injector.environment,
        **group.environment,
        "HSMKMS_STANDBY_PIN_FILE": str(state.path / "pin"),
        "HSMKMS_STANDBY_PROOF_S": "20",
    }


@pytest.fixture
def service(state: State, settings: dict[str, str]) -> Iterator[Service]:
    accepted = state.run("hsm", "accept", stdin=b"", **settings)
    assert accepted.returncode == 0, accepted.stderr
    with Service(state, tls_ca="", workers=1, **settings) as service:
        yield service


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wrap(client: httpx.Client, key: str) -> httpx.Response:
    return client.post(f"/keys/{key}/actions/wrap", json={"plaintext": DEK})


def unwrap(client: httpx.Client, key: str, sealed: str) -> httpx.Response:
    return client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": sealed})


@pytest.mark.parametrize(
    ("functions", "code"),
    [(("*",), 0x30), pytest.param(("C_WrapKey", "C_UnwrapKey"), 0x05, marks=pytest.mark.slow)],
)
def test_reads_fall_over_and_back(service: Service, injector: Injector, functions: tuple[str, ...], code: int) -> None:
    """No caller notices: wrap, unwrap, log-in and readiness go on. What makes a key waits for the primary."""
    with service.client() as client:
        key = create_key(client)
        sealed = wrap(client, key).json()["ciphertext"]
        injector.fail(*functions, code=code)
        for _ in range(10):
            assert unwrap(client, key, sealed).json()["plaintext"] == DEK
            again = wrap(client, key)
            assert again.status_code == 200, again.text
        assert unwrap(client, key, again.json()["ciphertext"]).json()["plaintext"] == DEK
        assert httpx.get(f"{service.url}/readyz").status_code == 200
        assert service.token()
        changed = sealed[:-8] + "AAAAAAA="
        assert unwrap(client, key, changed).status_code == 422
        created = client.post("/keys", json=create_body("no primary"))
        assert (created.status_code, "Retry-After" in created.headers) == (503, True)

        injector.cure()
        until(lambda: "the token answers again" in service.log.read_text() or wrap(client, key).status_code != 200)
        # Which token it was is not to be seen from outside, but that it made a key is.
        second = create_key(client)
        assert wrap(client, second).status_code == 200
    log = service.log.read_text()
    assert log.count("the token does not answer") == 1


def test_a_key_counts_when_both_have_it(state: State, settings: dict[str, str], group: Group) -> None:
    """The answer waits for the group. A standby that never gets the key makes it no key at all."""
    assert state.run("hsm", "accept", stdin=b"", **settings).returncode == 0
    with (
        Service(state, tls_ca="", workers=1, **{**settings, "HSMKMS_STANDBY_PROOF_S": "1"}) as service,
        service.client() as client,
    ):
        key = create_key(client)
        before = group.objects()
        group.pause()
        refused = client.post("/keys", json=create_body("not replicated"))
        assert (refused.status_code, "Retry-After" in refused.headers) == (503, True), refused.text
        assert client.post(f"/keys/{key}/actions/rotate").status_code == 503
        assert [found["name"] for found in client.get("/keys").json()["resources"]] == ["a root key"]
        # Nothing is left of either.
        assert group.objects() == before
        assert wrap(client, key).status_code == 200
        group.go_on()
        assert client.post(f"/keys/{key}/actions/rotate").status_code == 204
        # Now the standby can open it.
        wrapped = wrap(client, key)
        assert wrapped.status_code == 200


def test_starts_and_serves_without_the_primary(
    state: State, settings: dict[str, str], injector: Injector, group: Group
) -> None:
    """A worker that starts while the primary hangs for good serves from the standby, and takes the primary back."""
    assert state.run("hsm", "accept", stdin=b"", **settings).returncode == 0
    with Service(state, tls_ca="", workers=2, **settings, HSMKMS_TOKEN_CALL_TIMEOUT_S="2") as service:
        with service.client() as client:
            key = create_key(client)
            sealed = wrap(client, key).json()["ciphertext"]
            headers = client.headers
        injector.fail("*", wait_ms=600_000)
        url = f"{service.url}/api/v2/keys/{key}/actions"

        def answers() -> bool:
            try:
                answer = httpx.post(f"{url}/unwrap", headers=headers, json={"ciphertext": sealed}, timeout=30)
            except httpx.TransportError:
                # Of a worker that hung in the primary, and was replaced.
                return False
            assert answer.status_code in (200, 503), answer.text
            return answer.status_code == 200 and bool(answer.json()["plaintext"] == DEK)

        until(lambda: all(answers() for _ in range(10)))
        assert httpx.get(f"{service.url}/healthz").status_code == 200
        injector.cure()

        def creates() -> bool:
            try:
                return httpx.post(
                    f"{service.url}/api/v2/keys", headers=headers, json=create_body("back"), timeout=60
                ).is_success
            except httpx.TransportError:
                return False

        until(creates)


@pytest.mark.parametrize("function", ["*", "C_Login"])
def test_starts_while_the_primary_hangs(
    state: State, settings: dict[str, str], injector: Injector, function: str
) -> None:
    """As after a reboot or an upgrade: who starts then has the standby, and the primary as soon as that answers. The
    thread that hangs in the parent keeps nobody from logging in."""
    assert state.run("hsm", "accept", stdin=b"", **settings).returncode == 0
    impatient = {**settings, "HSMKMS_TOKEN_CALL_TIMEOUT_S": "2"}
    injector.fail(function, wait_ms=600_000)
    listed = state.run("keys", "list", stdin=b"", **impatient)
    assert listed.returncode == 0, listed.stderr
    with Service(state, tls_ca="", workers=2, **impatient) as service, service.client() as client:
        assert client.get("/keys").status_code == 200
        refused = client.post("/keys", json=create_body("no primary"))
        assert (refused.status_code, "Retry-After" in refused.headers) == (503, True), refused.text
        injector.cure()
        url, headers = f"{service.url}/api/v2/keys", dict(client.headers)

        def creates() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.post(url, headers=headers, json=create_body("back"), timeout=60).is_success
            return False

        until(creates)


def test_both_hang(state: State, settings: dict[str, str], injector: Injector, tmp_path: Path) -> None:
    """A command ends then, and does not wait for ever for the one on account of the other."""
    assert state.run("hsm", "accept", stdin=b"", **settings).returncode == 0
    injector.fail("*", wait_ms=600_000)
    another = shutil.copy(injector.library, tmp_path / "another.so")
    both = {**settings, "HSMKMS_STANDBY_PKCS11_MODULE": str(another), "HSMKMS_TOKEN_CALL_TIMEOUT_S": "2"}
    listed = state.run("keys", "list", stdin=b"", **both)
    assert (listed.returncode, b"the token hangs" in listed.stderr) == (75, True), listed.stderr


def test_the_operator_works_without_the_primary(
    state: State, settings: dict[str, str], injector: Injector, tmp_path: Path
) -> None:
    assert state.run("hsm", "accept", stdin=b"", **settings).returncode == 0
    injector.fail("*", code=0x30)
    examined = state.run("doctor", stdin=b"", **settings)
    assert examined.returncode == 1, examined.stderr
    lines = examined.stdout.decode().splitlines()
    assert lines[0].startswith("WRONG  token ")
    assert lines[1].startswith("ok     standby token ")
    saved = state.run("backup", str(tmp_path / "backup.tar"), stdin=b"", **settings)
    assert saved.returncode == 0, saved.stderr


@pytest.mark.slow
def test_a_standby_of_other_keys_is_not_used(
    state: State, settings: dict[str, str], injector: Injector, group: Group, tmp_path: Path
) -> None:
    group.pause()
    give_other_sentinel(state, STANDBY_LABEL)
    assert state.run("hsm", "accept", stdin=b"", **settings).returncode == 0
    with Service(state, tls_ca="", workers=1, **settings) as service, service.client() as client:
        assert "the standby is refused" in service.log.read_text()
        assert client.get("/keys").status_code == 200
        injector.fail("*", code=0x30)
        until(lambda: httpx.get(f"{service.url}/readyz").status_code == 503)


@pytest.mark.slow
def test_an_unknown_standby_is_not_used(state: State, settings: dict[str, str], group: Group) -> None:
    """Until the operator says that it is this deployment's."""
    assert state.run("keys", "list").returncode == 0
    with Service(state, tls_ca="", workers=1, **settings) as service:
        assert "which this deployment does not know" in service.log.read_text()
        status = state.run("hsm", "status", stdin=b"", **settings)
        assert (status.returncode, b"refused" in status.stdout) == (1, True), status.stdout


def test_one_library_for_both_is_refused(state: State) -> None:
    refused = state.run(
        "keys",
        "list",
        HSMKMS_STANDBY_PKCS11_MODULE="/usr/lib/softhsm/libsofthsm2.so",
        HSMKMS_STANDBY_TOKEN_LABEL=STANDBY_LABEL,
    )
    assert (refused.returncode, b"of its own" in refused.stderr) == (1, True), refused.stderr
