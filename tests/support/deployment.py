"""Deployments and services for tests: a real token, database and process, through the command line as users do."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import httpx

from hsmkms.control import StatusRequest, ask_all
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("hsmkms")
SOFTHSM_TEMPLATE = ROOT / "softhsm" / "softhsm2.conf.template"
START_S = 120


@dataclass(frozen=True)
class State:
    """A state directory made by `hsmkms init --softhsm`."""

    path: Path

    @property
    def client_env(self) -> dict[str, str]:
        """The credentials file's members without their common prefix."""
        lines = (self.path / "client.env").read_text().splitlines()
        return dict(line.removeprefix("IBM_KEY_PROTECT_API_").split("=", 1) for line in lines)

    @property
    def instance_id(self) -> str:
        """GUID of the first instance."""
        return self.client_env["BLUEMIX_INSTANCE"]

    @property
    def api_key(self) -> str:
        """The administrator's API key."""
        return self.client_env["APIKEY"]

    @property
    def pin(self) -> str:
        """The token's user PIN."""
        return (self.path / "pin").read_text().strip()

    def environment(self, **extra: str) -> dict[str, str]:
        """The environment of a process of this deployment."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HSMKMS_", "IBM_"))}
        return {**kept, "HSMKMS_STATE_DIR": str(self.path), **extra}

    def run(self, *arguments: str, stdin: bytes = b"", **extra: str) -> subprocess.CompletedProcess[bytes]:
        """Run `hsmkms` to its end."""
        return subprocess.run(
            [str(PROGRAM), *arguments],
            input=stdin,
            capture_output=True,
            env=self.environment(**extra),
            cwd=ROOT,
            timeout=120,
            check=False,
        )

    def copy_to(self, path: Path) -> State:
        """A copy with its own token files and database; no process may be using this one."""
        shutil.copytree(self.path, path)
        for name in ("softhsm2.conf", "hsmkms.toml"):
            file = path / name
            file.write_text(file.read_text().replace(str(self.path), str(path)))
        return State(path)


def make_state(path: Path, **extra: str) -> State:
    """`hsmkms init` in an empty directory."""
    state = State(path)
    done = state.run("init", "--softhsm", str(SOFTHSM_TEMPLATE), stdin=b"", **extra)
    assert done.returncode == 0, done.stderr.decode()
    return state


class Service:
    """`hsmkms serve` as a process group of its own; a context manager that waits until it is ready."""

    def __init__(self, state: State, *, workers: int = 1, tls_ca: str = "", **extra: str) -> None:
        self.state = state
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}" if not tls_ca else f"https://localhost:{self.port}"
        self.verify = ssl.create_default_context(cafile=tls_ca) if tls_ca else True
        self.tls_ca = tls_ca
        self._workers = workers
        self.extra = extra
        self.log = state.path.parent / f"{state.path.name}-{self.port}.log"
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Service:
        self.log.unlink(missing_ok=True)
        self.start()
        try:
            self.wait_until_ready()
        except AssertionError:
            self.kill()
            raise
        return self

    def start(self) -> None:
        """Start a process, on the same port as the one before; it is not ready yet."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(PROGRAM), "serve", "--port", str(self.port), "--workers", str(self._workers)],
                env=self.state.environment(**self.extra),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def stop(self) -> None:
        """As a supervisor stops it; AssertionError when it had to be killed."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the service did not stop:\n{self.log.read_text()}") from None

    @property
    def database_url(self) -> str:
        """Where its database is."""
        return self.extra.get("HSMKMS_DATABASE_URL") or f"sqlite:///{self.state.path / 'hsmkms.db'}"

    def kill(self) -> None:
        """kill -9 the whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait_until_all_serve(self, within_s: float = START_S) -> None:
        """Until each worker has opened its rooms: whom a new connection gets to is chance."""
        deadline = time.monotonic() + within_s
        while True:
            answers = ask_all(self.state.path, StatusRequest(), 1)
            # The parent of several workers answers too, but has no token.
            if sum(bool(answer and answer.get("tokens")) for answer in answers.values()) == self._workers:
                return
            assert time.monotonic() < deadline, answers
            time.sleep(0.05)

    def workers(self) -> list[int]:
        """Process ids of its workers."""
        return children_of(self.process.pid)

    def token(self) -> str:
        """A fresh access token of the administrator."""
        form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": self.state.api_key}
        answer = httpx.post(f"{self.url}/identity/token", data=form, verify=self.verify)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    def client(self) -> httpx.Client:
        """An HTTP client with the administrator's headers."""
        headers = {"Authorization": f"Bearer {self.token()}", "Bluemix-Instance": self.state.instance_id}
        return httpx.Client(base_url=f"{self.url}/api/v2", headers=headers, timeout=60, verify=self.verify)

    def wait_until_ready(self) -> None:
        """Until `/readyz` is green; AssertionError when it is not within START_S seconds."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the service ended:\n{self.log.read_text()}")
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5, verify=self.verify).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"the service was not ready in {START_S} s:\n{self.log.read_text()}")


def create_body(name: str = "a root key", *, extractable: bool = False, **members: object) -> dict[str, object]:
    """The body of POST /keys."""
    kind = "application/vnd.ibm.kms.key+json"
    return {
        "metadata": {"collectionType": kind, "collectionTotal": 1},
        "resources": [{"type": kind, "name": name, "extractable": extractable, **members}],
    }


def create_key(client: httpx.Client, name: str = "a root key", **members: object) -> str:
    """Create a key over HTTP; its id."""
    answer = client.post("/keys", json=create_body(name, **members))  # type: ignore[arg-type]
    assert answer.status_code == 201, answer.text
    return str(answer.json()["resources"][0]["id"])


def children_of(pid: int) -> list[int]:
    """Worker processes; multiprocessing has one more child, which tracks resources."""
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    workers = []
    for child in found:
        try:
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                workers.append(child)
        except OSError:
            continue
    return workers
