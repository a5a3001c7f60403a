"""Starting, stopping, starting again; and every way in which a start must be refused in one line."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.support.certificates import Authority
from tests.support.deployment import Service, State, create_key
from tests.support.injector import Injector
from tests.support.ports import free_port


@pytest.mark.parametrize("workers", [1, 2])
def test_stops_cleanly_and_starts_with_everything(state: State, workers: int) -> None:
    with Service(state, workers=workers) as service, service.client() as client:
        key = create_key(client)
        wrapped = client.post(f"/keys/{key}/actions/wrap").json()
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(20) == 0
    log = service.log.read_text()
    assert "Traceback" not in log
    assert "rror" not in log
    with Service(state, workers=workers) as again, again.client() as client:
        opened = client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": wrapped["ciphertext"]}).json()
        assert opened["plaintext"] == wrapped["plaintext"]


def refused(state: State, *arguments: str, **extra: str) -> str:
    """`hsmkms serve` ends with exit code 1 and one line."""
    done = state.run("serve", "--port", str(free_port()), *arguments, stdin=b"", **extra)
    assert done.returncode == 1, (done.returncode, done.stderr.decode())
    text = done.stderr.decode()
    assert re.fullmatch(r"hsmkms: [^\n]+\n", text), text
    assert done.stdout == b""
    return text


def test_wrong_pin(state: State) -> None:
    (state.path / "pin").write_text("00000000\n")
    assert "does not take this PIN" in refused(state)


def test_pin_file_that_others_can_read(state: State) -> None:
    (state.path / "pin").chmod(0o640)
    assert "chmod 600" in refused(state)


def test_missing_pin_file(state: State) -> None:
    (state.path / "pin").unlink()
    assert "cannot be read" in refused(state)


def test_no_state_directory(tmp_path: Path) -> None:
    assert refused(State(tmp_path / "nowhere"), HSMKMS_PIN="x")


def test_unknown_setting(state: State) -> None:
    with (state.path / "hsmkms.toml").open("a") as file:
        file.write("colour = 1\n")
    assert "colour" in refused(state)


def test_setting_that_is_no_toml(state: State) -> None:
    (state.path / "hsmkms.toml").write_text("=")
    assert "not valid TOML" in refused(state)


def test_bad_values(state: State) -> None:
    assert "workers" in refused(state, HSMKMS_WORKERS="0")
    assert "port" in refused(state, "--port", "70000")


def test_other_host_needs_tls(state: State) -> None:
    for host in ("0.0.0.0", "::", "example.org"):
        assert "without TLS" in refused(state, "--host", host)


def test_tls_needs_both_files(state: State, tmp_path: Path) -> None:
    assert "both" in refused(state, "--tls-cert", str(tmp_path / "cert.pem"))


def test_certificates_that_cannot_be_used(state: State, tmp_path: Path) -> None:
    """A worker that found them wrong would be started for ever."""
    (tmp_path / "other").mkdir()
    server, other = Authority(tmp_path, "one").server(), Authority(tmp_path / "other", "other").server()
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("rubbish")

    def tried(certificate: Path, key: Path, *more: str) -> str:
        return refused(state, "--workers", "2", "--tls-cert", str(certificate), "--tls-key", str(key), *more)

    for certificate, key in (
        (rubbish, server.key),
        (tmp_path / "nothing", server.key),
        (server.certificate, other.key),
    ):
        assert "tls_cert and tls_key cannot be used" in tried(certificate, key)
    assert "tls_client_ca cannot be used" in tried(server.certificate, server.key, "--tls-client-ca", str(rubbish))


def test_starts_while_the_token_is_away(state: State, injector: Injector) -> None:
    """And waits for it: who asks meanwhile hears 503, as from a service that had been running."""
    injector.fail("*", code=0x30)
    settings = {"HSMKMS_PKCS11_MODULE": str(injector.library), **injector.environment}
    waits_for(Service(state, workers=2, **settings), injector.cure)


def test_starts_without_a_token(state: State) -> None:
    """As the client of a network HSM may show the slots of one that is away."""
    tokens = state.path / "tokens"
    tokens.rename(state.path / "gone")
    tokens.mkdir()

    def bring() -> None:
        tokens.rmdir()
        (state.path / "gone").rename(tokens)

    waits_for(Service(state), bring)


def waits_for(service: Service, bring: Callable[[], None]) -> None:
    """It lives, says 503 and when to come again, and is there as soon as what it lacks is."""
    service.start()
    try:
        with httpx.Client(base_url=service.url, transport=httpx.HTTPTransport(retries=8), timeout=60) as client:
            assert client.get("/healthz").status_code == 200
            for refused in (client.get("/readyz"), client.post("/api/v2/keys/any/actions/wrap")):
                assert refused.status_code == 503
                assert int(refused.headers["Retry-After"]) > 0
        assert "its workers wait" in service.log.read_text()
        bring()
        service.wait_until_all_serve()
        with service.client() as client:
            create_key(client)
    finally:
        service.stop()


@pytest.mark.slow
def test_a_worker_that_stands_still_for_a_while_is_not_replaced(state: State) -> None:
    """As one that takes long to start on a busy host. Meanwhile a stop is heard, and the other ends as it should."""
    with Service(state, workers=2) as service:
        service.wait_until_all_serve()
        workers = service.workers()
        standing, other = workers
        os.kill(standing, signal.SIGSTOP)
        # Longer than uvicorn by itself would wait.
        time.sleep(8)
        assert service.workers() == workers
        service.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while other in service.workers():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(standing, signal.SIGCONT)
        assert service.process.wait(20) == 0


def test_a_worker_that_cannot_be_started_is_tried_again(state: State) -> None:
    """The others go on meanwhile, and a stop is heard."""
    with Service(state, workers=2) as service:
        service.wait_until_all_serve()
        parent, (killed, other) = service.process.pid, service.workers()
        few, most = resource.prlimit(parent, resource.RLIMIT_NOFILE)
        resource.prlimit(parent, resource.RLIMIT_NOFILE, (3, most))
        os.kill(killed, signal.SIGKILL)
        wait_for_line(service, "a worker cannot be started")
        assert service.workers() == [other]
        assert httpx.get(f"{service.url}/readyz").status_code == 200
        resource.prlimit(parent, resource.RLIMIT_NOFILE, (few, most))
        service.wait_until_all_serve()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(20) == 0
    assert service.log.read_text().count("a worker cannot be started") == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_serves_without_a_control_socket(state: State, workers: int) -> None:
    """It is for commands on the host alone."""
    shutil.rmtree(state.path / "run", ignore_errors=True)
    (state.path / "run").write_text("in the way")
    with Service(state, workers=workers) as service, service.client() as client:
        create_key(client)
        wait_for_line(service, "no command of this host is heard")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rubbish", "line"), [("hsmkms.toml", "=", "this process cannot start"), ("server.crt", "", "Traceback")]
)
def test_settings_that_became_wrong_are_tried_at_intervals(state: State, name: str, rubbish: str, line: str) -> None:
    """By who takes the place of a worker. It is there as soon as they are right again."""
    authority = Authority(state.path, "authority")
    server = authority.server()
    server.certificate.rename(state.path / "server.crt")
    files = {"HSMKMS_TLS_CERT": str(state.path / "server.crt"), "HSMKMS_TLS_KEY": str(server.key)}
    file = state.path / name
    with Service(state, workers=2, tls_ca=str(authority.file), **files) as service:
        service.wait_until_all_serve()
        right = file.read_text()
        file.write_text(rubbish)
        killed, other = service.workers()
        os.kill(killed, signal.SIGKILL)
        wait_for_line(service, line)
        time.sleep(8)
        assert service.log.read_text().count(line) == 1
        assert service.workers() == [other]
        file.write_text(right)
        service.wait_until_all_serve()


def test_an_application_that_cannot_be_made_ends_its_process(state: State) -> None:
    """What OpenTelemetry finds in the environment is looked at when token and database are open already."""
    settings = {"HSMKMS_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_BSP_MAX_QUEUE_SIZE": "256"}
    service = Service(state, workers=1, **settings)
    service.start()
    try:
        assert service.process.wait(30) == os.EX_SOFTWARE
    finally:
        service.kill()
    assert "max_export_batch_size" in service.log.read_text()


def wait_for_line(service: Service, words: str) -> None:
    deadline = time.monotonic() + 20
    while words not in service.log.read_text():
        assert time.monotonic() < deadline, service.log.read_text()
        time.sleep(0.05)


def test_database_without_instance(state: State) -> None:
    for file in state.path.glob("hsmkms.db*"):
        file.unlink()
    assert "hsmkms init" in refused(state)


def test_serves_tls(state: State, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    server = authority.server()
    files = {"HSMKMS_TLS_CERT": str(server.certificate), "HSMKMS_TLS_KEY": str(server.key)}
    with Service(state, workers=1, tls_ca=str(authority.file), **files) as service:
        answer = httpx.get(f"{service.url}/version", verify=service.verify)
        assert answer.json()["name"] == "hsmkms"


def test_readiness_names_the_part_that_is_away(state: State) -> None:
    """The token goes away: readiness is red, liveness green, 503 with Retry-After; it comes back: no restart."""
    with Service(state) as service, service.client() as client:
        key = create_key(client)
        tokens = state.path / "tokens"
        tokens.rename(state.path / "gone")
        tokens.mkdir()
        answer = client.post(f"/keys/{key}/actions/wrap")
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert client.get(f"/keys/{key}").status_code == 200
        ready = httpx.get(f"{service.url}/readyz")
        assert (ready.status_code, ready.json()["token"], ready.json()["database"]) == (503, False, True)
        assert int(ready.headers["Retry-After"]) > 0
        assert httpx.get(f"{service.url}/healthz").status_code == 200
        tokens.rmdir()
        (state.path / "gone").rename(tokens)
        service.wait_until_ready()
        assert client.post(f"/keys/{key}/actions/wrap").status_code == 200
