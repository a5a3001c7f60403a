"""What is measured: throw-away deployments, services pinned to a core, the C loop, the token room, wrk."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from hsmkms.domain.ids import new_id
from hsmkms.settings import load
from hsmkms.wiring import open_rooms, pin_of

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("hsmkms")
MODULE = "/usr/lib/softhsm/libsofthsm2.so"
SERVER_CORE, CLIENT_CORE = "0", "1"
AAD = ["volume-1234", "tenant-7"]
GRANT = "urn:ibm:params:oauth:grant-type:apikey"


@dataclass(frozen=True)
class Rate:
    """Operations per second, and the median and 99th percentile of one in microseconds."""

    per_s: float
    p50_us: float
    p99_us: float


class Deployment:
    """A state directory of its own and, inside `with`, its service on SERVER_CORE."""

    def __init__(self, path: Path, port: int) -> None:
        self.path = path
        self.url = f"http://127.0.0.1:{port}"
        self._environment = {**os.environ, "HSMKMS_STATE_DIR": str(path), "HSMKMS_PORT": str(port)}
        template = str(ROOT / "softhsm" / "softhsm2.conf.template")
        subprocess.run([PROGRAM, "init", "--softhsm", template], env=self._environment, check=True, capture_output=True)
        lines = (path / "client.env").read_text().splitlines()
        self._client = dict(line.removeprefix("IBM_KEY_PROTECT_API_").split("=", 1) for line in lines)

    def fill(self, count: int) -> None:
        """Put `count` root keys on the token, without rows: only the token's size matters here."""
        os.environ["HSMKMS_STATE_DIR"] = str(self.path)
        settings = load()
        rooms = open_rooms(settings, pin_of(settings))
        with rooms.close:
            for _ in range(count):
                rooms.token.generate_key(new_id(), "hsmkms bench", rooms.services.clock())

    def __enter__(self) -> Deployment:
        command = ["taskset", "-c", SERVER_CORE, str(PROGRAM), "serve", "--workers", "1"]
        self.process = subprocess.Popen(command, env=self._environment, start_new_session=True)
        while True:
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                if self.process.poll() is not None:
                    raise SystemExit("bench: the service ended") from None
            time.sleep(0.05)
        form = {"grant_type": GRANT, "apikey": self._client["APIKEY"]}
        self._token = httpx.post(f"{self.url}/identity/token", data=form).json()["access_token"]
        self._make_key()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def _post(self, path: str, body: object) -> dict[str, object]:
        headers = {"Authorization": f"Bearer {self._token}", "Bluemix-Instance": self._client["BLUEMIX_INSTANCE"]}
        answer = httpx.post(f"{self.url}/api/v2{path}", json=body, headers=headers)
        answer.raise_for_status()
        found: dict[str, object] = answer.json()
        return found

    def _make_key(self) -> None:
        kind = "application/vnd.ibm.kms.key+json"
        resource = {"type": kind, "name": "bench", "extractable": False}
        created = self._post(
            "/keys", {"metadata": {"collectionType": kind, "collectionTotal": 1}, "resources": [resource]}
        )
        key = created["resources"][0]  # type: ignore[index]
        self.version_id = key["keyVersion"]["id"]
        self._path = f"/keys/{key['id']}/actions"
        plain = {"plaintext": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "aad": AAD}
        wrapped = self._post(f"{self._path}/wrap", plain)
        self._bodies = {"wrap": plain, "unwrap": {"ciphertext": wrapped["ciphertext"], "aad": AAD}}

    def http(self, action: str, seconds: float, connections: int) -> Rate:
        """wrk on CLIENT_CORE against this service. Any answer but 200 ends the run."""
        environment = {
            **os.environ,
            "BENCH_PATH": f"/api/v2{self._path}/{action}",
            "BENCH_BODY": json.dumps(self._bodies[action]),
            "BENCH_TOKEN": self._token,
            "BENCH_INSTANCE": self._client["BLUEMIX_INSTANCE"],
        }
        script = str(Path(__file__).with_name("request.lua"))
        load = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "-s", script]
        command = ["taskset", "-c", CLIENT_CORE, "wrk", *load, self.url]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        if "Non-2xx" in done:
            raise SystemExit(f"bench: the service refused requests\n{done}")
        rate = float(_find(r"Requests/sec:\s+([\d.]+)", done).group(1))
        return Rate(rate, _latency_us("50", done), _latency_us("99", done))

    def loop(self, program: Path, action: str, seconds: float, private: bool) -> Rate:
        """The C loop on SERVER_CORE under the same key."""
        arguments = [MODULE, "hsmkms", str(self.path / "pin"), self.version_id.replace("-", "")]
        command = ["taskset", "-c", SERVER_CORE, str(program), *arguments, action, str(seconds), str(int(private))]
        return self._measure(command)

    def room(self, action: str, seconds: float) -> Rate:
        """The token room alone, in a process of its own on SERVER_CORE."""
        command = [sys.executable, "-m", "scripts.benchmark.room", self.version_id, action, str(seconds)]
        return self._measure(["taskset", "-c", SERVER_CORE, *command])

    def _measure(self, command: list[str]) -> Rate:
        environment = {**self._environment, "SOFTHSM2_CONF": str(self.path / "softhsm2.conf")}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        return Rate(*map(float, done.stdout.split()))

    def resident_mib(self) -> float:
        """Memory of the one worker."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * 4096 / 2**20


def _find(pattern: str, text: str) -> re.Match[str]:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"bench: wrk said something unexpected\n{text}")
    return found


def _latency_us(percentile: str, text: str) -> float:
    value, unit = _find(rf"\s{percentile}%\s+([\d.]+)(us|ms|s)", text).groups()
    return float(value) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]
