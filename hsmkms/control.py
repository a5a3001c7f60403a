"""How a command on the host reaches the running processes of the service: a Unix socket each, in the state directory.

The kernel says who is at the other end (SO_PEERCRED, unix(7)): only root and the user who runs the service are heard.
One request, one answer, a line of JSON each. A PIN that comes this way is in no file, environment or command line.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

DIRECTORY: Final = "run"
"""Below the state directory."""
_MOST_BYTES: Final = 65_536
_TIMEOUT_S: Final = 5.0
_AGAIN_S: Final = 1.0
_PEER: Final = struct.Struct("3i")
"""pid, uid, gid."""

_log = structlog.get_logger(__name__)

Answer = dict[str, Any]


class StatusRequest(msgspec.Struct, tag="status", forbid_unknown_fields=True):
    """What the process knows of its tokens."""


class LoginRequest(msgspec.Struct, tag="login", forbid_unknown_fields=True):
    """A PIN that the token `part` ("primary" or "standby") took a moment ago."""

    part: str
    pin: str

    def __repr__(self) -> str:
        return f"LoginRequest(part={self.part!r})"


Request = StatusRequest | LoginRequest


class ControlSocket:
    """Answers requests in a thread until it is closed."""

    def __init__(self, state_dir: Path, answer: Callable[[Request], Answer]) -> None:
        """Listen as this process."""
        self._answer = answer
        directory = state_dir / DIRECTORY
        directory.mkdir(mode=0o700, exist_ok=True)
        self._path = directory / f"{os.getpid()}.sock"
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _short(self._path) as address:
                self._socket.bind(address)
            self._path.chmod(0o600)
            self._socket.listen()
        except OSError:
            self._socket.close()
            raise
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._closed.set()
        # Where that is refused the next who asks finds that nobody listens.
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        # Wakes the thread, which close alone does not.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(_TIMEOUT_S)
        self._socket.close()

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                # It is closed, or the process has too many files open.
                self._closed.wait(_AGAIN_S)
                continue
            with connection:
                connection.settimeout(_TIMEOUT_S)
                # Who asked may be gone, or send rubbish: the next one is listened to.
                with contextlib.suppress(OSError, msgspec.MsgspecError):
                    self._reply(connection)

    def _reply(self, connection: socket.socket) -> None:
        _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid not in (0, os.geteuid()):
            _log.warning("another user asked at the control socket and was not heard", uid=uid)
            return
        request = msgspec.json.decode(_line(connection), type=Request)
        connection.sendall(msgspec.json.encode(self._answer(request)) + b"\n")


@contextlib.contextmanager
def hearing(state_dir: Path, answer: Callable[[Request], Answer]) -> Iterator[None]:
    """Requests are answered for the block. Where there can be no socket that is said, and the block goes on: who serves
    keys is not to depend on it."""
    try:
        control = ControlSocket(state_dir, answer)
    except OSError as error:
        _log.error(
            "no command of this host is heard: hsm login and hsm status do not reach this process",
            directory=str(state_dir / DIRECTORY),
            reason=error.strerror,
        )
        yield
        return
    try:
        yield
    finally:
        control.close()


def ask_all(state_dir: Path, request: Request, timeout_s: float) -> dict[int, Answer | None]:
    """The answers of the processes that run, by process id; None of one that does not answer within `timeout_s`."""
    answers: dict[int, Answer | None] = {}
    for path in sorted((state_dir / DIRECTORY).glob("*.sock")):
        try:
            answers[int(path.stem)] = _ask(path, request, timeout_s)
        except (ConnectionRefusedError, FileNotFoundError):
            # Of a process that was killed.
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        except (OSError, msgspec.MsgspecError):
            answers[int(path.stem)] = None
    return answers


def _ask(path: Path, request: Request, timeout_s: float) -> Answer:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(timeout_s)
        with _short(path) as address:
            asking.connect(address)
        asking.sendall(msgspec.json.encode(request) + b"\n")
        return msgspec.json.decode(_line(asking), type=Answer)


def _line(connection: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\n") and len(received) <= _MOST_BYTES:
        part = connection.recv(4_096)
        if not part:
            break
        received += part
    return received


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """An address of at most 107 bytes (unix(7)), however deep the state directory is."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
