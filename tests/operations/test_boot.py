"""The unit under a systemd of its own, installed as docs/operations.md says and used as it says."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import httpx
import pytest

from tests.support.deployment import ROOT, create_key
from tests.support.machine import Machine, machine
from tests.support.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

PIN = "8264-of-the-token"
STATE = "/var/lib/hsmkms"
BACK_S = 120


class Installed:
    """hsmkms on a machine, with a SoftHSM token that was there before."""

    def __init__(self, at: Machine) -> None:
        self.at = at
        self.url = f"http://127.0.0.1:{free_port()}"
        page = (ROOT / "docs" / "operations.md").read_text()
        block = re.search(r"^## Under systemd\n+```\n(.*?)```", page, re.MULTILINE | re.DOTALL)
        assert block
        at.run("sh", "-exc", f"cd /src\n{block[1]}", stdin=f"{PIN}\n", timeout=900)
        at.path("/etc/hsmkms/softhsm2.conf").write_text(f"directories.tokendir = {STATE}/tokens\n")
        settings = {
            "SOFTHSM2_CONF": "/etc/hsmkms/softhsm2.conf",
            "HSMKMS_TOKEN_LABEL": "'of the test'",
            "HSMKMS_PIN_FILE": "/etc/hsmkms/pin",
            "HSMKMS_WORKERS": "2",
            "HSMKMS_PORT": self.url.rpartition(":")[2],
        }
        environment = "".join(f"{name}={value}\n" for name, value in settings.items())
        at.path("/etc/hsmkms/environment").write_text(environment)
        as_user = ["runuser", "-u", "hsmkms", "--"]
        at.run(*as_user, "mkdir", "-m", "0700", f"{STATE}/tokens")
        make = [
            "softhsm2-util",
            "--init-token",
            "--free",
            "--label",
            "of the test",
            "--so-pin",
            "12345678",
            "--pin",
            PIN,
        ]
        at.run(*as_user, "env", f"SOFTHSM2_CONF={settings['SOFTHSM2_CONF']}", *make)
        at.run("hsmkms", "init")
        lines = at.path(f"{STATE}/client.env").read_text().splitlines()
        self.credentials = dict(line.removeprefix("IBM_KEY_PROTECT_API_").split("=", 1) for line in lines)

    def systemctl(self, *arguments: str) -> None:
        self.at.run("systemctl", *arguments)

    def shown(self, name: str) -> str:
        return self.at.run("systemctl", "show", "--property", name, "--value", "hsmkms").strip()

    def wait(self, name: str, value: str) -> None:
        deadline = time.monotonic() + BACK_S
        while self.shown(name) != value:
            assert time.monotonic() < deadline, self.journal()
            time.sleep(0.2)

    def wait_until_ready(self, status: int = 200, parts: Mapping[str, bool] = MappingProxyType({})) -> None:
        """Or until it says that it is not, and why."""
        deadline = time.monotonic() + BACK_S
        while True:
            try:
                answer = httpx.get(f"{self.url}/readyz", timeout=10)
                if answer.status_code == status and parts.items() <= answer.json().items():
                    return
            except httpx.HTTPError:
                pass
            assert time.monotonic() < deadline, self.journal()
            time.sleep(0.2)

    def client(self) -> httpx.Client:
        form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": self.credentials["APIKEY"]}
        token = httpx.post(f"{self.url}/identity/token", data=form).json()["access_token"]
        headers = {"Authorization": f"Bearer {token}", "Bluemix-Instance": self.credentials["BLUEMIX_INSTANCE"]}
        return httpx.Client(base_url=f"{self.url}/api/v2", headers=headers, timeout=60)

    def journal(self, *arguments: str) -> str:
        return self.at.run("journalctl", "--no-pager", "--unit=hsmkms", *arguments)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """Enabled, started, and ready."""
    if subprocess.run(
        ["/usr/bin/python3", "-c", "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"]
    ).returncode:
        # The unit sees no Python in a home directory.
        pytest.skip("the distribution's Python is older than 3.11, or python3-venv is missing")
    with machine(tmp_path_factory.mktemp("machine"), source=ROOT) as at:
        one = Installed(at)
        one.systemctl("enable", "--now", "hsmkms")
        one.wait_until_ready()
        yield one


@pytest.fixture
def wrapped(installed: Installed) -> Iterator[None]:
    """What was wrapped before the test opens after it."""
    installed.wait_until_ready()
    with installed.client() as client:
        key = create_key(client)
        before = client.post(f"/keys/{key}/actions/wrap").json()
    yield
    installed.wait_until_ready()
    with installed.client() as client:
        after = client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": before["ciphertext"]})
        assert after.json()["plaintext"] == before["plaintext"]


def test_it_runs_as_its_user_without_any_right(installed: Installed, wrapped: None) -> None:
    status = installed.at.run("cat", f"/proc/{installed.shown('MainPID')}/status")
    assert "Uid:\t0\t" not in status
    for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in status
    assert installed.shown("NRestarts") == "0"


def test_commands_of_the_pages_work_for_root(installed: Installed, wrapped: None) -> None:
    run = installed.at.run
    assert "takes the PIN" in run("hsmkms", "hsm", "login")
    assert run("hsmkms", "hsm", "status").count("answers") == 2
    run("hsmkms", "doctor")
    assert "success" in run("hsmkms", "audit", "tail", "-n", "5")
    run("hsmkms", "backup", f"{STATE}/backup.tar")
    by_itself = ["env", f"HSMKMS_STATE_DIR={STATE}", "/opt/hsmkms/bin/hsmkms"]
    assert "Run this as hsmkms" in run(*by_itself, "keys", "list", fails=True)


def test_what_is_killed_comes_back(installed: Installed, wrapped: None) -> None:
    at = installed.at
    at.run("pkill", "--signal=KILL", "--parent", installed.shown("MainPID"), "--newest", "--full", "spawn_main")
    installed.wait_until_ready()
    assert installed.shown("NRestarts") == "0"
    at.run("kill", "-KILL", installed.shown("MainPID"))
    installed.wait("NRestarts", "1")


def test_a_token_that_is_away_is_waited_for(installed: Installed, wrapped: None) -> None:
    tokens = installed.at.path(f"{STATE}/tokens")
    tokens.rename(tokens.with_name("gone"))
    installed.at.run("install", "-d", "-o", "hsmkms", "-g", "hsmkms", "-m", "0700", f"{STATE}/tokens")
    assert httpx.get(f"{installed.url}/readyz", timeout=30).json()["token"] is False
    installed.systemctl("restart", "hsmkms")
    installed.wait_until_ready(503, {"token": False})
    tokens.rmdir()
    tokens.with_name("gone").rename(tokens)
    installed.wait_until_ready()
    assert "the token does not answer" in installed.journal("--priority=err")


def test_an_audit_directory_elsewhere_needs_its_line_in_a_drop_in(installed: Installed, wrapped: None) -> None:
    installed.at.run("install", "-d", "-o", "hsmkms", "-m", "0700", "/srv/audit")
    drop_in = installed.at.path("/etc/systemd/system/hsmkms.service.d/override.conf")
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nEnvironment=HSMKMS_AUDIT_DIR=/srv/audit\n")
    installed.systemctl("daemon-reload")
    installed.systemctl("restart", "hsmkms")
    installed.wait_until_ready(503, {"token": True, "audit": False})
    with drop_in.open("a") as file:
        file.write("ReadWritePaths=/srv/audit\n")
    installed.systemctl("daemon-reload")
    installed.systemctl("restart", "hsmkms")
    installed.wait_until_ready()
    with installed.client() as client:
        create_key(client)
    installed.systemctl("stop", "hsmkms")
    logs = [path.name for path in installed.at.path("/srv/audit").iterdir()]
    assert logs
    installed.at.run("mv", *(f"/srv/audit/{log}" for log in logs), f"{STATE}/audit")
    drop_in.unlink()
    installed.systemctl("daemon-reload")
    installed.systemctl("start", "hsmkms")


def test_a_wrong_pin_is_tried_once(installed: Installed, wrapped: None) -> None:
    pin = installed.at.path("/etc/hsmkms/pin")
    pin.write_text("not the PIN\n")
    installed.systemctl("restart", "hsmkms")
    installed.wait("ActiveState", "failed")
    assert installed.shown("ExecMainStatus") == "1"
    pin.write_text(f"{PIN}\n")
    installed.at.run("hsmkms", "hsm", "login")
    installed.systemctl("start", "hsmkms")


def test_a_stop_leaves_every_log_signed_and_nothing_secret_in_the_journal(installed: Installed) -> None:
    installed.wait_until_ready()
    installed.systemctl("stop", "hsmkms")
    assert (installed.shown("Result"), installed.shown("ExecMainStatus")) == ("success", "0")
    lines = installed.at.run("hsmkms", "audit", "verify").splitlines()
    # The logs of the processes that were killed are closed by those that came after.
    assert all("closed and signed" in line for line in lines), lines
    text = installed.journal("--output=export")
    for secret in (PIN, installed.credentials["APIKEY"]):
        assert secret not in text
