"""The Kubernetes plugin as a process, and a gRPC client made from the interface definition as others make theirs."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from grpc_tools import protoc

from hsmkms.adopters.kubernetes.wire import kms_v1beta1_pb2, kms_v2_pb2
from tests.support.deployment import PROGRAM, ROOT, START_S

WIRE = "hsmkms/adopters/kubernetes/wire"


@cache
def stubs(name: str) -> Any:
    """The module that grpcio-tools makes for the services of a .proto file."""
    with tempfile.TemporaryDirectory() as made:
        assert protoc.main(["", f"-I{ROOT}", f"--grpc_python_out={made}", str(ROOT / WIRE / f"{name}.proto")]) == 0
        spec = importlib.util.spec_from_file_location(f"{name}_pb2_grpc", Path(made) / WIRE / f"{name}_pb2_grpc.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Encrypted:
    """What Encrypt answered, as the API server keeps it."""

    ciphertext: bytes
    key_id: str
    annotations: Mapping[str, bytes]


class Kms:
    """A client of KMS v2; each call has a deadline, as the API server's do."""

    def __init__(self, socket: Path, timeout_s: float = 3) -> None:
        self._messages, self._timeout_s = kms_v2_pb2, timeout_s
        self.channel = grpc.insecure_channel(f"unix:{socket}", options=[("grpc.max_reconnect_backoff_ms", 200)])
        self._stub = stubs("kms_v2").KeyManagementServiceStub(self.channel)

    def __enter__(self) -> Kms:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def status(self) -> tuple[str, str]:
        """healthz and key_id."""
        found = self._stub.Status(self._messages.StatusRequest(), timeout=self._timeout_s)
        assert found.version == "v2"
        return found.healthz, found.key_id

    def encrypt(self, plaintext: bytes, uid: str = "") -> Encrypted:
        """Encrypt."""
        asked = self._messages.EncryptRequest(plaintext=plaintext, uid=uid)
        found = self._stub.Encrypt(asked, timeout=self._timeout_s)
        return Encrypted(found.ciphertext, found.key_id, dict(found.annotations))

    def decrypt(self, sealed: Encrypted, uid: str = "") -> bytes:
        """Decrypt."""
        asked = self._messages.DecryptRequest(
            ciphertext=sealed.ciphertext, uid=uid, key_id=sealed.key_id, annotations=sealed.annotations
        )
        return bytes(self._stub.Decrypt(asked, timeout=self._timeout_s).plaintext)


class KmsV1beta1:
    """A client of KMS v1beta1."""

    def __init__(self, socket: Path) -> None:
        self._messages = kms_v1beta1_pb2
        self.channel = grpc.insecure_channel(f"unix:{socket}")
        self._stub = stubs("kms_v1beta1").KeyManagementServiceStub(self.channel)

    def version(self) -> tuple[str, str]:
        """Version of the protocol, and name of the provider."""
        found = self._stub.Version(self._messages.VersionRequest(version="v1beta1"), timeout=3)
        return found.version, found.runtime_name

    def encrypt(self, plain: bytes) -> bytes:
        """Encrypt."""
        return bytes(
            self._stub.Encrypt(self._messages.EncryptRequest(version="v1beta1", plain=plain), timeout=3).cipher
        )

    def decrypt(self, cipher: bytes) -> bytes:
        """Decrypt."""
        return bytes(
            self._stub.Decrypt(self._messages.DecryptRequest(version="v1beta1", cipher=cipher), timeout=3).plain
        )


class KmsPlugin:
    """`hsmkms kubernetes-plugin` as a process; a context manager that waits until its socket answers."""

    def __init__(self, socket: Path, key: str, crn: str, connection: Path, *options: str) -> None:
        self.socket = socket
        self.command = [str(PROGRAM), "kubernetes-plugin", f"--socket={socket}", f"--key={key}", f"--crn={crn}"]
        self.command += [f"--connection={connection}", *options]
        self.log = socket.with_name(f"{socket.name}.log")
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> KmsPlugin:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def start(self) -> None:
        """Start it and wait until its socket answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def client(self, timeout_s: float = 3) -> Kms:
        """A new client of it."""
        return Kms(self.socket, timeout_s)

    def refusal(self) -> str:
        """What it says when it does not start."""
        done = subprocess.run(
            self.command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode != 0
        return done.stderr

    def memory_kib(self) -> int:
        """Memory that it holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))

    def _answers(self) -> bool:
        if not self.socket.exists():
            return False
        with self.client() as client:
            try:
                client.status()
            except grpc.RpcError as error:
                # A refused key is an answer too.
                return error.code() is not grpc.StatusCode.UNAVAILABLE or "connect" not in (error.details() or "")
        return True


@contextmanager
def socket_directory() -> Iterator[Path]:
    """A directory whose name leaves room for a socket's."""
    made = Path(tempfile.mkdtemp(prefix="kms"))
    try:
        yield made
    finally:
        shutil.rmtree(made)


def refused(act: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """Code and words of a call that must fail."""
    try:
        answered = act()
    except grpc.RpcError as error:
        return error.code(), str(error.details())
    raise AssertionError(f"answered {answered!r}")


def eventually(check: Callable[[], Any], within_s: float) -> float:
    """How long until something holds; calls that fail do not hold. AssertionError when it does not in time."""
    began = time.monotonic()
    last: object = None
    while time.monotonic() - began < within_s:
        try:
            last = check()
        except grpc.RpcError as error:
            last = (error.code(), error.details())
        else:
            if last:
                return time.monotonic() - began
        time.sleep(0.1)
    raise AssertionError(f"not within {within_s} s: {last}")
