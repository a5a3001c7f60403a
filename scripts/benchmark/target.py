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

import httpx

ROOT: Final = Path(__file__).parents[2]
PROGRAM: Final = Path(sys.executable).with_name("hsmkms")
SERVER_CORE, CLIENT_CORE = "0", "1"
AAD: Final = ["volume-1234", "tenant-7"]
DEK: Final = bytes(range(32))
_GRANT: Final = "urn:ibm:params:oauth:grant-type:apikey"
_KEY_TYPE: Final = "application/vnd.ibm.kms.key+json"
_STARTS_WITHIN_S: Final = 60


@dataclass(frozen=True)
class Rate:
    """Operations per second, the median and 99th percentile of one in microseconds, and how many there were."""

    per_s: float
    p50_us: float
    p99_us: float
    count: int = 0


class Deployment:
    """A state directory of its own and, inside `with`, its service on SERVER_CORE."""

    def __init__(self, path: Path, **settings: str) -> None:
        self.path = path
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        # Settings of a service that the caller runs must not reach this one.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HSMKMS_", "SOFTHSM2_"))}
        self._environment = {**inherited, "HSMKMS_STATE_DIR": str(path), "HSMKMS_PORT": str(port), **settings}
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
        command = ["taskset", "-c", SERVER_CORE, str(PROGRAM), "serve", "--workers", "1"]
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
        self._process.terminate()
        self._process.wait()

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < end and self._process.poll() is None:
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
        self._path = f"/keys/{key['id']}/actions"
        plain = {"plaintext": base64.b64encode(DEK).decode(), "aad": AAD}
        wrapped = self._post(f"{self._path}/wrap", plain)
        self._bodies = {"wrap": plain, "unwrap": {"ciphertext": wrapped["ciphertext"], "aad": AAD}}

    def http(self, action: str, seconds: float, connections: int) -> Rate:
        """wrk on CLIENT_CORE against this service. Any answer but 200 ends the run."""
        environment = {
            **self._environment,
            "BENCH_PATH": f"/api/v2{self._path}/{action}",
            "BENCH_BODY": json.dumps(self._bodies[action]),
            "BENCH_TOKEN": self._token,
            "BENCH_INSTANCE": self._client["BLUEMIX_INSTANCE"],
        }
        script = str(Path(__file__).with_name("request.lua"))
        load = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "-s", script]
        command = ["taskset", "-c", CLIENT_CORE, "wrk", *load, self.url]
        said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        if "Non-2xx" in said or "Socket errors" in said:
            raise SystemExit(f"bench: the service refused requests\n{said}")
        rate = float(_find(r"Requests/sec:\s+([\d.]+)", said).group(1))
        count = int(_find(r"(\d+) requests in", said).group(1))
        return Rate(rate, _latency_us("50", said), _latency_us("99", said), count)

    def loop(self, program: Path, module: str, action: str, seconds: float, *, private: bool) -> Rate:
        """The C loop on SERVER_CORE under the same key."""
        key = [str(self.path / "pin"), self.version_id.replace("-", "")]
        command = [str(program), module, "hsmkms", *key, action, str(seconds), str(int(private))]
        return self._pinned(command)

    def room(self, action: str, seconds: float) -> Rate:
        """The token room alone, in a process of its own on SERVER_CORE."""
        return self._pinned([sys.executable, "-m", "scripts.benchmark.room", self.version_id, action, str(seconds)])

    def decision(self) -> str:
        """Microseconds of authorization with one policy and with ten thousand, a line each."""
        return self._run(["taskset", "-c", SERVER_CORE, sys.executable, "-m", "scripts.benchmark.decision"])

    def resident_mib(self) -> float:
        """Memory of the one worker, which is the service's only process."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def _pinned(self, command: list[str]) -> Rate:
        per_s, p50_us, p99_us = map(float, self._run(["taskset", "-c", SERVER_CORE, *command]).split())
        return Rate(per_s, p50_us, p99_us)

    def _run(self, command: list[str]) -> str:
        environment = {**self._environment, "SOFTHSM2_CONF": str(self.path / "softhsm2.conf")}
        return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _find(pattern: str, text: str) -> re.Match[str]:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"bench: wrk said something unexpected\n{text}")
    return found


def _latency_us(percentile: str, text: str) -> float:
    value, unit = _find(rf"\s{percentile}%\s+([\d.]+)(us|ms|s)", text).groups()
    return float(value) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]
