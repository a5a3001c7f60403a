"""An etcd from the distribution's package, on loopback, through its JSON gateway."""

from __future__ import annotations

import base64
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

import httpx

from tests.support.deployment import START_S
from tests.support.ports import free_port


class Etcd:
    """A running etcd; a context manager."""

    def __enter__(self) -> Etcd:
        self._directory = tempfile.TemporaryDirectory(prefix="etcd")
        self.files = Path(self._directory.name)
        self.url, peers = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        command = ["etcd", f"--data-dir={self.files}", f"--listen-client-urls={self.url}", "--log-level=error"]
        command += [f"--advertise-client-urls={self.url}", f"--listen-peer-urls={peers}"]
        command += [f"--initial-advertise-peer-urls={peers}", f"--initial-cluster=default={peers}"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._http = httpx.Client(base_url=self.url, timeout=30)
        deadline = time.monotonic() + START_S
        while not self._is_healthy():
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()
        self._process.terminate()
        self._process.wait(20)
        self._directory.cleanup()

    def put(self, key: str, value: bytes) -> None:
        """Store a value."""
        self._ask("put", {"key": _text(key.encode()), "value": _text(value)})

    def get(self, key: str) -> bytes:
        """A stored value."""
        return base64.b64decode(self._ask("range", {"key": _text(key.encode())})["kvs"][0]["value"])

    def holds(self, needle: bytes) -> bool:
        """Whether any file of it has these bytes."""
        return any(needle in file.read_bytes() for file in self.files.rglob("*") if file.is_file())

    def _ask(self, method: str, body: dict[str, str]) -> dict[str, list[dict[str, str]]]:
        answer = self._http.post(f"/v3/kv/{method}", json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, list[dict[str, str]]] = answer.json()
        return found

    def _is_healthy(self) -> bool:
        try:
            return self._http.get("/health").status_code == 200
        except httpx.TransportError:
            return False


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
