"""Metrics: counted once, for all workers together, whoever of them dies, and told to nobody else."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import httpx
import pytest

from hsmkms.errors import SettingsInvalid
from hsmkms.telemetry import metrics
from hsmkms.telemetry.endpoint import prepare
from tests.support.certificates import Authority
from tests.support.deployment import ROOT, Service, State, create_key
from tests.support.injector import Injector
from tests.support.ports import free_port
from tests.support.scraping import Scraped, scrape, wait_for

WRAP = "kms.secrets.wrap"
WRAPS = "hsmkms_request_duration_seconds_count"
ASKING = [ROOT / "packaging" / name for name in ("alerts.yml", "grafana.json")]


def _with_metrics(run_service: Callable[..., Service], state: State, **extra: str) -> tuple[Service, int]:
    port = free_port()
    workers = int(extra.pop("workers", "1"))
    return run_service(state, workers=workers, HSMKMS_METRICS_PORT=str(port), **extra), port


def _workers_of(service: Service) -> list[int]:
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_each_request_is_counted_with_its_outcome(state: State, run_service: Callable[..., Service]) -> None:
    service, port = _with_metrics(
        run_service, state, HSMKMS_IDENTITY_BURST_REQUESTS="30", HSMKMS_IDENTITY_REQUESTS_PER_S="1"
    )
    with service.client() as client:
        key = create_key(client, "a key nobody shall read of")
        made = time.time()
        # The change feed tells of the new key too, and has a process forget what it remembers of it.
        wait_for(port, lambda seen: seen.value("hsmkms_snapshot_timestamp_seconds") > made, "the feed")
        answers = [client.post(f"/keys/{key}/actions/wrap", json={"plaintext": "YQ=="}) for _ in range(5)]
        sealed = answers[0].json()["ciphertext"]
        assert client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": sealed}).status_code == 200
        assert client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": "YWJj"}).status_code == 422
        assert client.get("/keys/none-of-ours").status_code == 404
        assert 429 in {client.get("/keys").status_code for _ in range(60)}
        assert httpx.get(f"{service.url}/api/v2/no/such/call").status_code == 404
    found = wait_for(port, lambda seen: seen.value("hsmkms_snapshot_keys") == 1, "the key in memory")
    assert found.value(WRAPS, action=WRAP, outcome="success") == 5
    assert found.value(WRAPS, action="kms.secrets.unwrap", outcome="success") == 1
    assert found.value(WRAPS, action="kms.secrets.unwrap", outcome="refused") == 1
    assert found.value(WRAPS, action="kms.secrets.create", outcome="success") == 1
    assert found.value(WRAPS, action="kms.secrets.list", outcome="throttled") >= 1
    assert found.value(WRAPS, action="no_such_call", outcome="refused") == 1
    assert found.value("hsmkms_token_call_duration_seconds_count", call="wrap") >= 5
    assert found.value("hsmkms_token_sessions") == 8
    assert found.value("hsmkms_worker_open_files") > 5
    assert found.value("hsmkms_worker_resident_memory_bytes") > 10 << 20
    assert found.value("hsmkms_audit_events_total") >= 8
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    for secret in (key, state.instance_id, state.api_key, "nobody shall read", "administrator", "iam-Service"):
        assert secret not in text


def test_two_workers_and_one_that_is_killed_make_one_count(state: State, run_service: Callable[..., Service]) -> None:
    service, port = _with_metrics(run_service, state, workers="2")

    with service.client() as first:
        key = create_key(first)

    def wrap(_: int) -> int:
        # Each on a connection of its own, so that both workers have some.
        with httpx.Client() as one:
            headers = {"Authorization": f"Bearer {token}", "Bluemix-Instance": state.instance_id}
            return one.post(f"{service.url}/api/v2/keys/{key}/actions/wrap", json={}, headers=headers).status_code

    token = service.token()
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(wrap, range(40))) == {200}
    found = wait_for(port, lambda seen: seen.value("hsmkms_workers") == 2, "two workers")
    assert found.value(WRAPS, action=WRAP, outcome="success") == 40
    assert found.value("hsmkms_token_sessions") == 16
    victim = _workers_of(service)[0]
    os.kill(victim, signal.SIGKILL)

    def replaced(seen: Scraped) -> bool:
        assert seen.value(WRAPS, action=WRAP, outcome="success") == 40, "a counter went back"
        return seen.value("hsmkms_worker_starts_total") == 3 and seen.value("hsmkms_workers") == 2

    wait_for(port, replaced, "the third worker in the place of the first")
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(wrap, range(20))) == {200}
    assert scrape(port).value(WRAPS, action=WRAP, outcome="success") == 60
    directory = next(
        Path("/dev/shm").glob(f"hsmkms-metrics-{os.geteuid()}-*/counter_{_workers_of(service)[0]}.db")
    ).parent
    assert not list(directory.glob(f"*_{victim}.db"))
    service.__exit__(None, None, None)
    assert not directory.exists()


def test_a_token_that_goes_away_shows(state: State, run_service: Callable[..., Service], injector: Injector) -> None:
    """Also in a worker that takes the place of another meanwhile, and waits."""
    service, port = _with_metrics(
        run_service,
        state,
        workers="2",
        HSMKMS_PKCS11_MODULE=str(injector.library),
        HSMKMS_AUDIT_SINKS=json.dumps([{"kind": "http", "url": f"http://127.0.0.1:{free_port()}/nobody"}]),
        **injector.environment,
    )
    with service.client() as client:
        key = create_key(client)
        found = wait_for(port, lambda seen: seen.value("hsmkms_workers") == 2, "two workers")
        assert found.value("hsmkms_token_breaker_open", part="primary") == found.value("hsmkms_workers_waiting") == 0
        injector.fail("*", code=0x30)
        assert client.post(f"/keys/{key}/actions/wrap", json={}).status_code == 503
        found = wait_for(
            port, lambda seen: seen.value("hsmkms_token_breaker_open", part="primary") >= 1, "the open breaker"
        )
        assert found.total("hsmkms_token_errors_total", returned="CKR_DEVICE_ERROR", meaning="device") >= 1
        assert found.value(WRAPS, action=WRAP, outcome="unavailable") == 1
        before = found.value("hsmkms_token_opened_total")
        os.kill(_workers_of(service)[0], signal.SIGKILL)
        wait_for(port, lambda seen: seen.value("hsmkms_workers_waiting") == 1, "the worker that waits for the token")
        injector.cure()
        found = wait_for(
            port,
            lambda seen: (
                httpx.get(f"{service.url}/readyz").status_code == 200
                and seen.value("hsmkms_token_breaker_open", part="primary") == seen.value("hsmkms_workers_waiting") == 0
                and seen.value("hsmkms_workers") == 2
            ),
            "the closed breaker",
        )
        assert found.value("hsmkms_token_opened_total") > before
    asked = {name for path in ASKING for name in re.findall(r"\bhsmkms_\w+", path.read_text())}
    wait_for(port, lambda seen: asked <= seen.names, "what dashboard and alerts ask for")


def test_metrics_are_served_only_when_asked_for_and_only_here(state: State) -> None:
    done = state.run("serve", HSMKMS_METRICS_PORT=str(free_port()), HSMKMS_METRICS_HOST="0.0.0.0")
    assert done.returncode == 1
    assert b"metrics_client_ca" in done.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = state.run("serve", HSMKMS_METRICS_PORT=str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert b"metrics_port" in done.stderr


def test_other_hosts_need_a_certificate_and_one_that_says_nothing_stops_nobody(
    state: State, run_service: Callable[..., Service], tmp_path: Path
) -> None:
    authority = Authority(tmp_path, "ca")
    server, client = authority.server(), authority.issue("prometheus", [])
    _, port = _with_metrics(
        run_service,
        state,
        HSMKMS_METRICS_HOST="0.0.0.0",
        HSMKMS_METRICS_CLIENT_CA=str(authority.file),
        HSMKMS_TLS_CERT=str(server.certificate),
        HSMKMS_TLS_KEY=str(server.key),
        tls_ca=str(authority.file),
    )
    url, trust = f"https://localhost:{port}/metrics", ssl.create_default_context(cafile=authority.file)
    with socket.create_connection(("127.0.0.1", port)):
        with pytest.raises(httpx.TransportError):
            httpx.get(url, verify=trust)
        trust.load_cert_chain(client.certificate, client.key)
        answer = httpx.get(url, verify=trust)
        assert answer.status_code == 200
        assert "hsmkms_workers" in answer.text


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path / "new")
    (tmp_path / "new" / "counter_1.db").write_bytes(b"old")
    assert not list(prepare(tmp_path / "new").iterdir())
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(SettingsInvalid):
        prepare(tmp_path / "open")
    (tmp_path / "link").symlink_to(tmp_path / "new")
    with pytest.raises(SettingsInvalid):
        prepare(tmp_path / "link")


def test_a_request_pays_a_handful_of_calls_for_its_metrics() -> None:
    """Counted and not timed, so that a busy machine says the same: no look-up of labels, and nothing but the sums."""
    metrics.bind({"some.action": 200})
    timed = metrics.token_call("some call")(int)

    def calls_of(function: Callable[[], object]) -> list[str]:
        called: list[str] = []

        def note(frame: FrameType, event: str, argument: object) -> None:
            if event in ("call", "c_call"):
                called.append(frame.f_code.co_name if event == "call" else getattr(argument, "__name__", "?"))

        sys.setprofile(note)
        try:
            function()
        finally:
            sys.setprofile(None)
        return called

    for function in (lambda: metrics.answered("some.action", 200, 0.0), timed):
        called = calls_of(function)
        assert "labels" not in called
        assert len(called) <= 20, called
