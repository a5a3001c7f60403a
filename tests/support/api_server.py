"""The API server's own code for secrets at rest: the Go program in tests/interop/kubernetes, asked by lines of JSON."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

PROVIDER = "hsmkms"


@dataclass(frozen=True)
class Read:
    """What was read, and whether it should be written anew."""

    data: bytes
    stale: bool


class Refused(AssertionError):
    """The API server's code failed, with these words."""


class ApiServer:
    """A process of it, which has loaded an EncryptionConfiguration; a context manager."""

    def __init__(self, program: Path, configuration: Path) -> None:
        self._command = [str(program), str(configuration), PROVIDER]

    def __enter__(self) -> ApiServer:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def write(self, path: str, data: bytes) -> bytes:
        """What it would store in etcd."""
        return base64.b64decode(self._ask("write", path=path, data=_text(data))["stored"])

    def read(self, path: str, stored: bytes) -> Read:
        """What it makes of what is stored."""
        found = self._ask("read", path=path, stored=_text(stored))
        return Read(base64.b64decode(found["data"]), found["stale"])

    def health(self) -> str:
        """What its /healthz says of the plugin; nothing if all is well. Asks the plugin anew, at most every 20 s."""
        try:
            self._ask("health")
        except Refused as refused:
            return str(refused)
        return ""

    def pass_time(self, seconds: float) -> None:
        """Let time pass for the rule that ends writes three minutes after the last good Status."""
        self._ask("pass", seconds=seconds)

    def _ask(self, do: str, **members: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **members}).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the API server's code ended"
        found: dict[str, Any] = json.loads(line)
        if found.get("error"):
            raise Refused(found["error"])
        return found


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
