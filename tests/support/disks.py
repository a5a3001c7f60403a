"""Disks of a test's own that become full or fail. Both need root, and a kernel that lets it mount."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_MIB = 1 << 20


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@dataclass(frozen=True)
class SmallDisk:
    """A file system in memory that can be filled to its last byte."""

    mount: Path

    def fill(self) -> None:
        """Take all space that is left."""
        with contextlib.suppress(OSError), (self.mount / "filler").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4_096))

    def make_room(self) -> None:
        """Give it back."""
        (self.mount / "filler").unlink()


@contextlib.contextmanager
def small_disk(mount: Path, mebibytes: int) -> Iterator[SmallDisk]:
    """A tmpfs; the test is skipped where none can be mounted."""
    mount.mkdir(parents=True)
    _mount_or_skip("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0755", "hsmkms-test", str(mount))
    try:
        yield SmallDisk(mount)
    finally:
        _run("umount", "-l", str(mount))


@dataclass(frozen=True)
class FailingDisk:
    """ext4 on a file. On an error the kernel makes it read-only at once, under files that are open for writing, as it
    does when a block device fails."""

    mount: Path
    device: str

    def fail(self) -> None:
        """Have the kernel find an error."""
        Path(f"/sys/fs/ext4/{Path(self.device).name}/trigger_fs_error").write_text("error of the fault bench")

    def repair(self) -> None:
        """What an operator does: unmount (busy or not), check, mount again."""
        _run("umount", "-l", str(self.mount))
        checked = subprocess.run(["fsck.ext4", "-fy", self.device], capture_output=True, timeout=60, check=False)
        assert checked.returncode in (0, 1), checked.stdout
        _run("mount", "-o", "errors=remount-ro", self.device, str(self.mount))


@contextlib.contextmanager
def failing_disk(mount: Path, image: Path) -> Iterator[FailingDisk]:
    """A disk of 64 MiB; the test is skipped where none can be mounted."""
    mount.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(64 * _MIB)
    _run("mkfs.ext4", "-q", str(image))
    if os.getuid() != 0:
        pytest.skip("mounting needs root")
    try:
        device = _run("losetup", "--find", "--show", str(image))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no loop device here: {error.stderr.strip()}")
    try:
        _mount_or_skip("mount", "-o", "errors=remount-ro", device, str(mount))
        try:
            yield FailingDisk(mount, device)
        finally:
            _run("umount", "-l", str(mount))
    finally:
        _run("losetup", "--detach", device)


def _mount_or_skip(*command: str) -> None:
    if os.getuid() != 0:
        pytest.skip("mounting needs root")
    try:
        _run(*command)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"nothing can be mounted here: {error.stderr.strip()}")
