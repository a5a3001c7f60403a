"""OpenStack Swift for tests: `scripts/swift-one-node` as people run it, and IBM's SDK as its client."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import ibm_boto3.session
from ibm_botocore.client import Config

from tests.support.adopter import STORAGE, Adopter
from tests.support.connections import write_connection
from tests.support.deployment import ROOT, Service
from tests.support.iam import Iam
from tests.support.ports import free_port

CACHE_S = 2.0
START_S = 90
USERS = {"bank": "storage", "plain": "storage", "other": "storage"}
PASSWORD = "a-secret-key-of-tests"


class Swift:
    """A cluster with three accounts: AUTH_bank, whose buckets may have root keys; AUTH_other, where they have one by
    default; AUTH_plain, which is not in the configuration. A context manager."""

    def __init__(
        self, directory: Path, service: Service, iam: Iam, *, default_key: str, away_limit_s: float = 3600
    ) -> None:
        self.directory, self.service = directory, service
        directory.mkdir()
        self.bank, self.other = Adopter(iam, STORAGE, "global"), Adopter(iam, STORAGE, "global")
        self.person = iam.somebody()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.configuration = directory / "objectstorage.toml"
        self.status_file = directory / "buckets.json"
        lines = [f"cache_s = {CACHE_S}", f"away_limit_s = {away_limit_s}", 'status_file = "buckets.json"']
        self.metrics_port = free_port()
        lines.append(f"metrics_port = {self.metrics_port}")
        for name, adopter, default in (("bank", self.bank, None), ("other", self.other, default_key)):
            place = directory / name
            place.mkdir()
            write_connection(place, service, adopter.who.api_key, timeout_s=2)
            lines += [
                f"[accounts.AUTH_{name}]",
                f'crn = "{adopter.prefix}::"',
                f'connection = "{name}/key-service.toml"',
            ]
            lines += [] if default is None else [f'default_key = "{default}"']
        secret_key = directory / "storage.key"
        secret_key.write_text(PASSWORD)
        secret_key.chmod(0o600)
        lines += [f'[accounts.AUTH_bank.users."{self.person.iam_id}"]', 'access_key = "bank:storage"']
        lines += ['secret_key_file = "storage.key"']
        self.configuration.write_text("\n".join(lines) + "\n")
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Swift:
        users = [part for name, user in USERS.items() for part in ("--user", f"{name}:{user}:{PASSWORD}")]
        command = [ROOT / "scripts" / "swift-one-node", self.directory / "node", self.configuration]
        self.log = self.directory / "node.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*map(str, command), "--port", str(self.port), "--min-segment-size", "1024", *users],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until("Swift serves", lambda: self._serves(), START_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait(30)

    def kill(self) -> None:
        """kill -9 all its processes at once."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def python(self, code: str) -> None:
        """Run code as Swift's operator, with `client` an InternalClient."""
        head = (
            "import sys; from swift.common.utils import monkey_patch, set_swift_dir; monkey_patch()\n"
            "from swift.common.internal_client import InternalClient\n"
            "set_swift_dir(sys.argv[1]); client = InternalClient(sys.argv[1] + '/internal-client.conf', 'test', 1)\n"
        )
        program = str(ROOT / ".venv-swift" / "bin" / "python")
        done = subprocess.run(
            [program, "-W", "ignore", "-c", head + code, str(self.node)], capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr.decode()

    def forget(self) -> None:
        """What Swift remembers of containers, which it otherwise does for a minute."""
        port = re.search(r"memcache_servers = 127.0.0.1:(\d+)", (self.node / "proxy-server.conf").read_text())
        assert port is not None
        with socket.create_connection(("127.0.0.1", int(port[1]))) as memcached:
            memcached.sendall(b"flush_all\r\n")
            assert memcached.recv(100) == b"OK\r\n"

    def processes(self) -> list[int]:
        """Its processes; Swift's make sessions of their own."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents[int(stat.parent.name)] = int(stat.read_text().rsplit(") ", 1)[1].split()[1])
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def _serves(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return "S3 and Swift at" in self.log.read_text()

    def client(self, account: str = "bank", **extra: Any) -> Any:
        """IBM's SDK with HMAC keys."""
        return ibm_boto3.session.Session().client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=f"{account}:{USERS[account]}",
            aws_secret_access_key=PASSWORD,
            region_name="us-standard",
            config=Config(signature_version="s3v4", retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
            **extra,
        )

    def token_client(self, api_key: str, instance_id: str | None = None) -> Any:
        """IBM's SDK with an API key."""
        return ibm_boto3.session.Session().client(
            "s3",
            endpoint_url=self.url,
            ibm_api_key_id=api_key,
            ibm_service_instance_id=instance_id or self.bank.prefix.rsplit(":", 1)[1],
            ibm_auth_endpoint=f"{self.service.url}/identity/token",
            config=Config(
                signature_version="oauth", retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}
            ),
        )

    @property
    def node(self) -> Path:
        """What swift-one-node makes."""
        return self.directory / "node"

    @property
    def devices(self) -> Path:
        """Where the servers keep everything."""
        return self.node / "devices"


def wait_until(what: str, done: Callable[[], bool], timeout_s: float = 60) -> None:
    """AssertionError if it takes longer."""
    until = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < until, f"{what}: not within {timeout_s} s"
        time.sleep(0.1)
