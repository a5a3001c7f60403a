"""What is measured: throw-away deployments, services pinned to a core, the C loop, the token room, wrk."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import httpx

from hsmkms.settings import Settings

ROOT: Final = Path(__file__).parents[2]
PROGRAM: Final = Path(sys.executable).with_name("hsmkms")
SERVER_CORE, CLIENT_CORE = "0", "1"
DEK_BYTES: Final = (32, 256, 4_096)
BULK: Final = 100
"""Items of one call when bulk is measured."""
AAD: Final = ["volume-1234", "tenant-7"]
DEK: Final = bytes(range(32))
_GRANT: Final = "urn:ibm:params:oauth:grant-type:apikey"
_KEY_TYPE: Final = "application/vnd.ibm.kms.key+json"
_STARTS_WITHIN_S: Final = 60
_LIMITS: Final = {
    f"HSMKMS_{whose}_{what}": "1000000"
    for whose in ("IDENTITY", "INSTANCE")
    for what in ("REQUESTS_PER_S", "BURST_REQUESTS")
}
"""Counted, and never reached: one client of the load would else be more than the defaults let one have."""


@dataclass(frozen=True)
class Rate:
    """Operations per second, percentiles of one in microseconds, and how many there were."""

    per_s: float
    p50_us: float
    p99_us: float
    count: int = 0
    p999_us: float = 0.0


@dataclass(frozen=True)
class Call:
    """A request that is sent again and again; `items` is how many operations it is."""

    path: str
    body: str
    headers: dict[str, str]
    items: int = 1
    method: str = "POST"


def load(url: str, call: Call, seconds: float, connections: int, core: str | None = CLIENT_CORE) -> Rate:
    """wrk on a core. Any answer that is no success ends the run."""
    lines = "\n".join(f"{name}: {value}" for name, value in call.headers.items())
    environment = {
        **os.environ,
        "BENCH_PATH": call.path,
        "BENCH_BODY": call.body,
        "BENCH_HEADERS": lines,
        "BENCH_METHOD": call.method,
    }
    script = str(Path(__file__).with_name("request.lua"))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", script, url]
    pinned = [] if core is None else ["taskset", "-c", core]
    said = subprocess.run([*pinned, *command], env=environment, check=True, capture_output=True, text=True).stdout
    found = re.search(r"^bench (\d+) (\d+) ([\d.]+) ([\d.]+) ([\d.]+) (\d+)$", said, re.MULTILINE)
    if found is None or found[6] != "0":
        raise SystemExit(f"bench: the service refused requests\n{said}")
    count = int(found[1]) * call.items
    per_s = count / (int(found[2]) / 1e6)
    return Rate(per_s, float(found[3]), float(found[4]), count, float(found[5]))


class Deployment:
    """A state directory of its own and, inside `with`, its service on SERVER_CORE."""

    def __init__(
        self,
        path: Path,
        *,
        core: str | None = SERVER_CORE,
        workers: int = 1,
        beside: Deployment | None = None,
        **settings: str,
    ) -> None:
        """`beside` another deployment this is a second node of it, with a port of its own."""
        self.path = path
        self._core, self._workers = core, workers
        self._process: subprocess.Popen[bytes] | None = None
        self._client: dict[str, str]
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        # Settings of a service that the caller runs must not reach this one.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HSMKMS_", "SOFTHSM2_"))}
        own = {"HSMKMS_STATE_DIR": str(path), "HSMKMS_PORT": str(port)}
        self._environment = {**inherited, **own, **_LIMITS, **settings}
        if beside is not None:
            self._client = beside._client
            return
        template = str(ROOT / "softhsm" / "softhsm2.conf.template")
        self._run([str(PROGRAM), "init", "--softhsm", template])
        lines = (path / "client.env").read_text().splitlines()
        self._client = dict(line.removeprefix("IBM_KEY_PROTECT_API_").split("=", 1) for line in lines)

    def fill(self, count: int) -> int:
        """Have at least `count` root keys on the token; how many there are then."""
        return int(self.run_module("scripts.benchmark.fill", str(count)))

    def run_module(self, name: str, *arguments: str) -> str:
        """Run a module in this deployment's environment; what it printed."""
        return self._run([sys.executable, "-m", name, *arguments])

    def __enter__(self) -> Deployment:
        pinned = ["taskset", "-c", self._core] if self._core else []
        command = [*pinned, str(PROGRAM), "serve", "--workers", str(self._workers)]
        self._process = subprocess.Popen(command, env=self._environment, start_new_session=True)
        try:
            self._wait_until_ready()
            self._token = self._log_in(self._client["APIKEY"])
            self._make_key()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < end and self.is_running:
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise SystemExit("bench: the service did not start")

    def _log_in(self, api_key: str) -> str:
        form = {"grant_type": _GRANT, "apikey": api_key}
        return str(httpx.post(f"{self.url}/identity/token", data=form).json()["access_token"])

    def client(self, api_key: str | None = None) -> httpx.Client:
        """An HTTP client of the administrator, or of who has that API key."""
        token = self._token if api_key is None else self._log_in(api_key)
        headers = {"Authorization": f"Bearer {token}", "Bluemix-Instance": self._client["BLUEMIX_INSTANCE"]}
        return httpx.Client(base_url=f"{self.url}/api/v2", headers=headers, timeout=60)

    def _post(self, path: str, body: object) -> Any:
        headers = {"Authorization": f"Bearer {self._token}", "Bluemix-Instance": self._client["BLUEMIX_INSTANCE"]}
        answer = httpx.post(f"{self.url}/api/v2{path}", json=body, headers=headers)
        answer.raise_for_status()
        return answer.json()

    def _make_key(self) -> None:
        resource = {"type": _KEY_TYPE, "name": "bench", "extractable": False}
        body = {"metadata": {"collectionType": _KEY_TYPE, "collectionTotal": 1}, "resources": [resource]}
        key = self._post("/keys", body)["resources"][0]
        self.version_id: str = key["keyVersion"]["id"]
        path = f"/keys/{key['id']}/actions"
        self.calls: dict[str, Call] = {"generate": self._call(f"{path}/wrap", {"aad": AAD})}
        for size in DEK_BYTES:
            plain = {"plaintext": base64.b64encode(bytes(size)).decode(), "aad": AAD}
            sealed = {"ciphertext": self._post(f"{path}/wrap", plain)["ciphertext"], "aad": AAD}
            self.calls[f"wrap {size}"] = self._call(f"{path}/wrap", plain)
            self.calls[f"unwrap {size}"] = self._call(f"{path}/unwrap", sealed)
            if size == len(DEK):
                self.calls["wrap"], self.calls["unwrap"] = self.calls[f"wrap {size}"], self.calls[f"unwrap {size}"]
                self.calls["bulk wrap"] = self._call(f"{path}/bulk_wrap", {"items": [plain] * BULK}, BULK)
                self.calls["bulk unwrap"] = self._call(f"{path}/bulk_unwrap", {"items": [sealed] * BULK}, BULK)
        form = urlencode({"grant_type": _GRANT, "apikey": self._client["APIKEY"]})
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        self.calls["log in"] = Call("/identity/token", form, headers)

    def _call(self, path: str, body: object, items: int = 1) -> Call:
        headers = {"Authorization": f"Bearer {self._token}", "Bluemix-Instance": self._client["BLUEMIX_INSTANCE"]}
        return Call(f"/api/v2{path}", json.dumps(body), headers, items)

    def http(self, action: str, seconds: float, connections: int, core: str | None = CLIENT_CORE) -> Rate:
        """wrk against this service."""
        return load(self.url, self.calls[action], seconds, connections, core)

    def loop(self, program: Path, module: str, action: str, seconds: float, *, private: bool) -> Rate:
        """The C loop on SERVER_CORE under the same key."""
        key = [str(self.path / "pin"), self.version_id.replace("-", "")]
        command = [str(program), module, "hsmkms", *key, action, str(seconds), str(int(private))]
        return self._pinned(command)

    def loops(self, program: Path, module: str, action: str, seconds: float) -> Rate:
        """The C loop twice at once, each on a core of its own; the slower one's percentiles."""
        key = [str(self.path / "pin"), self.version_id.replace("-", "")]
        command = [str(program), module, "hsmkms", *key, action, str(seconds), "0"]
        environment = self._inner_environment()
        both = [
            subprocess.Popen(["taskset", "-c", core, *command], env=environment, stdout=subprocess.PIPE, text=True)
            for core in (SERVER_CORE, CLIENT_CORE)
        ]
        found = [tuple(map(float, process.communicate()[0].split())) for process in both]
        return Rate(sum(one[0] for one in found), max(one[1] for one in found), max(one[2] for one in found))

    def paced(self, action: str, per_s: float, seconds: float) -> Rate:
        """Load at a rate, on CLIENT_CORE (see `paced`)."""
        call, url = self.calls[action], httpx.URL(self.url)
        head = [f"POST {call.path} HTTP/1.1", f"Host: {url.host}", *(f"{k}: {v}" for k, v in call.headers.items())]
        body = call.body.encode()
        request = "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body
        module = [sys.executable, "-m", "scripts.benchmark.paced", url.host, str(url.port), str(per_s), str(seconds)]
        command = ["taskset", "-c", CLIENT_CORE, *module]
        said = subprocess.run(command, input=request, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout
        reached, p50_us, p99_us, p999_us = map(float, said.split())
        return Rate(reached, p50_us, p99_us, int(per_s * seconds), p999_us)

    def path_parts(self, action: str) -> str:
        """JSON of the processor time of a request's parts (see `path`)."""
        command = ["taskset", "-c", SERVER_CORE, sys.executable, "-m", "scripts.benchmark.path", action, "150", "16"]
        return self._run(command)

    @property
    def is_running(self) -> bool:
        """Whether its service runs."""
        return self._process is not None and self._process.poll() is None

    def room(self, action: str, seconds: float) -> Rate:
        """The token room alone, in a process of its own on SERVER_CORE."""
        return self._pinned([sys.executable, "-m", "scripts.benchmark.room", self.version_id, action, str(seconds)])

    def decision(self) -> str:
        """Microseconds of authorization with one policy and with ten thousand, a line each."""
        return self._run(["taskset", "-c", SERVER_CORE, sys.executable, "-m", "scripts.benchmark.decision"])

    @property
    def module(self) -> str:
        """The PKCS#11 library."""
        return Settings().pkcs11_module

    def resident_mib(self) -> float:
        """Memory of the service, which with one worker is one process."""
        assert self._process is not None
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def _pinned(self, command: list[str]) -> Rate:
        per_s, p50_us, p99_us = map(float, self._run(["taskset", "-c", SERVER_CORE, *command]).split())
        return Rate(per_s, p50_us, p99_us)

    def _run(self, command: list[str]) -> str:
        environment = self._inner_environment()
        return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout

    def _inner_environment(self) -> dict[str, str]:
        return {**self._environment, "SOFTHSM2_CONF": str(self.path / "softhsm2.conf")}


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
