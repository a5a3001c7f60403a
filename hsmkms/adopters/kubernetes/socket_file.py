"""The unix socket: one plugin at a time serves it, and only its owner can talk to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import stat
from pathlib import Path
from typing import Final

from hsmkms.adopters.kubernetes.refusals import PluginRefused

MAX_PATH_BYTES: Final = 107
"""What the kernel takes (unix(7)), without the byte that ends it."""


class SocketFile:
    """A path for a socket, claimed by a lock beside it. The lock dies with its process, so what a killed plugin left is
    told from a plugin that lives."""

    def __init__(self, path: Path, owner: str | None) -> None:
        """Raises PluginRefused."""
        self.path, self._owner = path.absolute(), owner
        if len(os.fsencode(self.path)) > MAX_PATH_BYTES:
            raise PluginRefused(f"The path of a socket has at most {MAX_PATH_BYTES} bytes: {self.path} is longer.")
        self._lock: int | None = None

    @property
    def address(self) -> str:
        """As the API server's configuration names it."""
        return f"unix://{self.path}"

    def claim(self) -> None:
        """Make the path free for us, or raise PluginRefused."""
        directory = self.path.parent
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = directory.stat().st_mode
            if mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise PluginRefused(
                    f"Others may write to {directory} and could put their socket there. Run chmod go-w on it."
                )
            self._lock = self._locked()
            self._clear()
        except OSError as error:
            raise PluginRefused(f"No socket can be made at {self.path}: {error.strerror}.") from error

    def open_to_owner(self) -> None:
        """Let the owner, and nobody else, talk to what was bound. Raises PluginRefused."""
        try:
            self.path.chmod(0o600)
            if self._owner is not None:
                shutil.chown(self.path.parent, self._owner)
                shutil.chown(self.path, self._owner)
        except (OSError, LookupError) as error:
            raise PluginRefused(f"{self.path} cannot be given to {self._owner}: {error}.") from error

    def release(self) -> None:
        """Take the socket away and let others claim the path."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def _locked(self) -> int:
        file = self.path.with_name(f"{self.path.name}.lock")
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode(errors="replace").strip()
            os.close(lock)
            raise PluginRefused(f"Another plugin, process {holder}, serves {self.path}. Stop it first.") from None
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        return lock

    def _clear(self) -> None:
        """Take away what a dead process left."""
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise PluginRefused(f"{self.path} is no socket. Move it away or choose another path.")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(self.path))
            except ConnectionRefusedError:
                self.path.unlink()
                return
            except TimeoutError:
                pass
        raise PluginRefused(f"Another program serves {self.path}. Stop it or choose another path.")
