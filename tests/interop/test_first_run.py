"""What `make run` does: from an empty directory to three pasted lines that wrap and unwrap."""

from __future__ import annotations

import signal
import stat
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.support.deployment import PROGRAM, ROOT, SOFTHSM_TEMPLATE, State
from tests.support.ports import free_port


class Up:
    """`hsmkms up` in a terminal of its own."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.port = free_port()
        self.process = subprocess.Popen(
            [str(PROGRAM), "up", "--softhsm", str(SOFTHSM_TEMPLATE)],
            env=state.environment(HSMKMS_PORT=str(self.port), PYTHONUNBUFFERED="1"),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.shown: list[str] = []
        for line in self.process.stdout:
            self.shown.append(line)
            if "actions/unwrap" in line:
                break
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(transport=transport) as client:
            assert client.get(f"http://127.0.0.1:{self.port}/readyz").status_code == 200

    def stop(self) -> str:
        self.process.send_signal(signal.SIGINT)
        rest, _ = self.process.communicate(timeout=20)
        assert self.process.returncode == 0, rest
        return rest


@pytest.fixture
def fresh(tmp_path: Path) -> State:
    """A state directory that does not exist yet."""
    return State(tmp_path / "new" / "state")


def test_three_pasted_lines(fresh: State) -> None:
    up = Up(fresh)
    key_lines = [line for line in up.shown if line.startswith("administrator key")]
    assert key_lines
    assert key_lines[0].split()[2] == fresh.api_key
    pasted = "".join(line for line in up.shown if line.startswith(("KEY=", "CIPHERTEXT=", "HSMKMS_STATE_DIR=")))
    assert pasted.count("\n") == 3
    done = subprocess.run(["bash", "-euc", pasted], capture_output=True, env=fresh.environment(), check=True)
    assert done.stdout == b"hello HSM"
    rest = up.stop()
    assert "Traceback" not in rest
    assert "rror" not in rest


def test_modes_of_what_it_leaves(fresh: State) -> None:
    Up(fresh).stop()
    assert stat.S_IMODE(fresh.path.stat().st_mode) == 0o700
    for name in ("client.env", "pin", "so-pin", "hsmkms.toml", "softhsm2.conf", "hsmkms.db"):
        assert stat.S_IMODE((fresh.path / name).stat().st_mode) == 0o600, name


def test_second_start_reuses_everything(fresh: State) -> None:
    """The port moved, so client.env follows; the API key is not shown again."""
    Up(fresh).stop()
    before = fresh.client_env
    second = Up(fresh)
    second.stop()
    assert not any("administrator key" in line for line in second.shown)
    assert fresh.client_env == before | {
        "URL": f"http://127.0.0.1:{second.port}",
        "AUTH_URL": f"http://127.0.0.1:{second.port}",
    }


def test_lost_credentials_are_replaced(state: State) -> None:
    """Who holds the PIN may have another administrator's key; the old one goes on."""
    old = state.client_env
    (state.path / "client.env").unlink()
    assert state.run("init").returncode == 0
    assert state.client_env["APIKEY"] != old["APIKEY"]
    assert state.instance_id == old["BLUEMIX_INSTANCE"]
    assert b"nothing was changed" in state.run("init").stdout
