"""Files encrypted by gocryptfs (Debian package, FUSE): on any file system, and fast with AES instructions.

The DEK, as hexadecimal text, is gocryptfs's password: it opens the master key in `gocryptfs.conf`. It goes in by a
pipe. It has 256 random bits, so the slow hash that guards weak passwords is set to its least.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from hsmkms.adopters.refusals import LockFailed
from hsmkms.adopters.volume import mounts
from hsmkms.adopters.volume.guard import Guard
from hsmkms.adopters.volume.layout import Volume, VolumeLock, VolumeRefused, is_locked
from hsmkms.domain.secrets import SecretBytes

_MOUNT_S: Final = 30.0
_END_S: Final = 10.0
_LEAVE_S: Final = 2.0
"""The time that it gets to end by itself once nothing is mounted any more."""
_LOOK_MS: Final = 5
_NAMES: Final = ("gocryptfs", "setpriv")
"""Of its process: what starts it is there for a moment before."""
_MOUNTERS: Final = ("fusermount3", "fusermount")
"""Of what it starts to mount, which goes on after its end."""
_READY: Final = b"mounted and ready"
_WRONG_PASSWORD: Final = 12
_CONFIG_DAMAGED: Final = (22, 23)


class Gocryptfs:
    """The backend. With `supervised` the file system ends with the process that opened it, however that ends.

    The kernel tells it to, and a guard takes away what that leaves: it may be told before it listens, and goes on then;
    or it dies while it looks into its own mount, and is neither there nor gone.
    """

    name = "gocryptfs"

    def __init__(self, *, supervised: bool = False) -> None:
        self._supervised = supervised
        self._guard: Guard | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def why_not(self, volume: Volume) -> str | None:
        if shutil.which("gocryptfs") is None:
            return "gocryptfs is not installed"
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            return "/dev/fuse is not there, or is not for this user"
        return None

    def create(self, volume: Volume, dek: SecretBytes) -> None:
        command = ["gocryptfs", "-init", "-q", "-nosyslog", "-scryptn", "10", "--", str(volume.cipher)]
        done = subprocess.run(command, input=_password(dek), capture_output=True, check=False)
        if done.returncode:
            raise VolumeRefused(f"gocryptfs cannot make {volume.cipher} (exit code {done.returncode}).")

    def open(self, volume: Volume, dek: SecretBytes, lock: VolumeLock) -> int | None:
        self._take_away_what_died(volume)
        if self._supervised and (self._guard is None or not self._guard.lives):
            self._guard = Guard(volume, lock)
        options = ["-fg", "-nosyslog", *(["-allow_other"] if os.geteuid() == 0 else [])]
        guarded = ["setpriv", "--pdeathsig", "TERM", "--"] if self._supervised else []
        reader, writer = os.pipe()
        said = os.memfd_create("gocryptfs")
        # In the foreground and as our child, because in the background it keeps what it inherited and nobody hears of
        # its end. It inherits the lock: the volume is in use as long as it lives.
        self._process = process = subprocess.Popen(
            [*guarded, "gocryptfs", *options, "--", str(volume.cipher), str(volume.mount)],
            stdin=reader,
            stdout=said,
            stderr=subprocess.DEVNULL,
            pass_fds=[lock.fd],
            start_new_session=True,
        )
        os.close(reader)
        with contextlib.suppress(BrokenPipeError), open(writer, "wb") as pipe:
            pipe.write(_password(dek))
        # Not the mount but its word: whoever writes before that, while it looks into its own mount, waits for ever.
        with open(said, "rb") as output:
            ready = _says(output, process, _MOUNT_S)
        if not ready or mounts.mounted_at(volume.mount) is None:
            code = process.poll()
            self.close(volume)
            raise VolumeRefused(_why(volume, code))
        return process.pid

    def close(self, volume: Volume) -> None:
        until = time.monotonic() + _END_S
        while True:
            # Looked for again after their end, and before the mount: they may have started another that mounts.
            with _processes_of(volume) as processes:
                if mounts.mounted_at(volume.mount) is None:
                    # It has not shown anything yet, or does not any more.
                    _kill(processes)
                if self._is_gone(volume) and _ended(processes) and not processes:
                    break
            if time.monotonic() >= until:
                used = mounts.names_of(mounts.holders_of(volume.mount))
                raise LockFailed(f"The gocryptfs of {volume.directory} does not end; used by {used}.")
        if self._process is not None:
            self._process.wait()
            self._process = None
        if self._guard is not None:
            self._guard.end()
            self._guard = None

    def _is_gone(self, volume: Volume) -> bool:
        """Take the mount away; whether there is none any more."""
        mount = mounts.mounted_at(volume.mount)
        if mount is None:
            return True
        if not _is_ours(volume, mount):
            raise LockFailed(_foreign(volume, mount))
        if not mounts.unmount_fuse(volume.mount):
            # Somebody else stands in it. He loses it: the key says so, and what he holds open answers no more.
            mounts.abort_fuse(mount)
            mounts.unmount_fuse(volume.mount, lazily=True)
        return mounts.mounted_at(volume.mount) is None

    def is_open(self, volume: Volume) -> bool:
        mount = mounts.mounted_at(volume.mount)
        if mount is None or not _is_ours(volume, mount):
            return False
        return self._process.poll() is None if self._process is not None else is_locked(volume)

    def _take_away_what_died(self, volume: Volume) -> None:
        """A mount whose process was killed answers nothing and is in the way. Who calls this has the lock, so a mount
        of this volume is such a one."""
        mount = mounts.mounted_at(volume.mount)
        if mount is None:
            return
        if not _is_ours(volume, mount):
            raise VolumeRefused(_foreign(volume, mount))
        if not mounts.unmount_fuse(volume.mount, lazily=True):
            raise VolumeRefused(f"{volume.mount} is mounted by a gocryptfs that is gone, and cannot be unmounted.")


def _says(output: BinaryIO, process: subprocess.Popen[bytes], longest_s: float) -> bool:
    """Whether a process says that it is ready, before it ends and before the time is over."""
    until, ended = time.monotonic() + longest_s, os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        while time.monotonic() < until:
            if _READY in os.pread(output.fileno(), 65_536, 0):
                return True
            if poll.poll(_LOOK_MS):
                return False
        return False
    finally:
        os.close(ended)


def _kill(processes: Iterable[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)


def _ended(processes: Sequence[int]) -> bool:
    """Whether all have ended, within a moment; those that have not are killed."""
    until = time.monotonic() + _LEAVE_S
    for process in processes:
        if not select.select([process], [], [], max(0.0, until - time.monotonic()))[0]:
            _kill([process])
            return False
    return True


def _password(dek: SecretBytes) -> bytes:
    return dek.reveal().hex().encode() + b"\n"


def _is_ours(volume: Volume, mount: mounts.Mount) -> bool:
    return mount.kind == "fuse.gocryptfs" and Path(mount.source) == volume.cipher


def _foreign(volume: Volume, mount: mounts.Mount) -> str:
    return f"{mount.source} ({mount.kind}) is mounted at {volume.mount}. Unmount that first."


@contextlib.contextmanager
def _processes_of(volume: Volume) -> Iterator[list[int]]:
    """gocryptfs processes that hold this volume's lock, and what mounts for them, by descriptors: their numbers may be
    another's by and by."""
    with contextlib.ExitStack() as stack:
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if not _serves(place, volume):
                    continue
                process = os.pidfd_open(int(place.name))
                stack.callback(os.close, process)
                # Again: now it is the one that the descriptor stands for.
                if _serves(place, volume):
                    found.append(process)
        yield found


def _serves(process: Path, volume: Volume) -> bool:
    name = (process / "comm").read_text().strip()
    arguments = [*map(Path, os.fsdecode((process / "cmdline").read_bytes()).split("\0"))]
    if name in _MOUNTERS:
        # What it has open only root may see, and the lock is among it.
        return volume.mount in arguments and Path("-u") not in arguments
    if name not in _NAMES or volume.cipher not in arguments:
        return False
    return any(Path(os.readlink(link)) == volume.directory for link in (process / "fd").iterdir())


def _why(volume: Volume, code: int | None) -> str:
    if code == _WRONG_PASSWORD:
        return f"{volume.dek_file} opens, but not {volume.cipher}: it is the wrapped DEK of another volume."
    if code in _CONFIG_DAMAGED:
        return f"{volume.cipher / 'gocryptfs.conf'} is damaged or missing. Restore it from a backup."
    what = f"does not become ready in {_MOUNT_S:.0f} s" if code is None else f"ended with {code}"
    return f"gocryptfs cannot open {volume.cipher}: it {what}."
