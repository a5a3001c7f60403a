"""A file system in a LUKS2 image, for kernels with dm-crypt (Debian: cryptsetup-bin). `cipher` holds the image.

The DEK is the key of its one key slot, through a pipe. It has 256 random bits, so the slow hash that guards weak
passwords is set to its least.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from hsmkms.adopters.refusals import LockFailed
from hsmkms.adopters.volume import mounts
from hsmkms.adopters.volume.guard import Guard
from hsmkms.adopters.volume.layout import Volume, VolumeLock, VolumeRefused
from hsmkms.domain.secrets import SecretBytes

_WRONG_KEY: Final = 2
_MAPPER: Final = Path("/dev/mapper")
_KEY_OPTIONS: Final = ("--key-file", "-", "--keyfile-size", "32")
_FORMAT_OPTIONS: Final = ("--type", "luks2", "--cipher", "aes-xts-plain64", "--key-size", "512", "--batch-mode")
_HASH_OPTIONS: Final = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")


class Luks:
    """The backend. With `supervised` a guard closes the volume when the process that opened it is gone."""

    name = "luks"

    def __init__(self, *, supervised: bool = False) -> None:
        self._supervised = supervised
        self._guard: Guard | None = None

    def why_not(self, volume: Volume) -> str | None:
        if os.geteuid() != 0:
            return "only root may map devices"
        if shutil.which("cryptsetup") is None:
            return "cryptsetup is not installed"
        if not has_dm_crypt():
            return "this kernel has no dm-crypt"
        if volume.size_mib is None and not image(volume).exists():
            return "the size of its image is not given (--size-mib)"
        return None

    def create(self, volume: Volume, dek: SecretBytes) -> None:
        format_image(volume, dek)
        mapped = _map(volume, dek)
        try:
            _run(["mkfs.ext4", "-q", str(mapped)], f"{volume.cipher} gets no file system")
        finally:
            _unmap(volume)

    def open(self, volume: Volume, dek: SecretBytes, lock: VolumeLock) -> int | None:
        self.close(volume)
        if self._supervised:
            self._guard = Guard(volume, lock)
        try:
            mounts.mount("--options=nosuid,nodev", _map(volume, dek), volume.mount)
            owner = volume.cipher.stat()
            os.chown(volume.mount, owner.st_uid, owner.st_gid)
        except VolumeRefused:
            self.close(volume)
            raise
        return None if self._guard is None else self._guard.pid

    def close(self, volume: Volume) -> None:
        mount = mounts.mounted_at(volume.mount)
        if mount is not None:
            if Path(mount.source) != _mapped(volume):
                raise LockFailed(f"{mount.source} is mounted at {volume.mount}. Unmount that first.")
            if not mounts.unmount(volume.mount):
                used = mounts.names_of(mounts.holders_of(volume.mount))
                raise LockFailed(f"{volume.mount} is still mounted; used by {used}.")
        _unmap(volume)
        if self._guard is not None:
            self._guard.end()
            self._guard = None

    def is_open(self, volume: Volume) -> bool:
        mount = mounts.mounted_at(volume.mount)
        guarded = not self._supervised or (self._guard is not None and self._guard.lives)
        return guarded and mount is not None and Path(mount.source) == _mapped(volume)


def has_dm_crypt() -> bool:
    """Whether the kernel maps devices, or has a module for it."""
    if "device-mapper" in Path("/proc/misc").read_text():
        return True
    modprobe = shutil.which("modprobe")
    done = modprobe and subprocess.run([modprobe, "-q", "-n", "dm_crypt"], capture_output=True, check=False)
    return bool(done and done.returncode == 0)


def image(volume: Volume) -> Path:
    """The file that is the encrypted device."""
    return volume.cipher / "volume.luks"


def format_image(volume: Volume, dek: SecretBytes) -> None:
    """Make an image with a LUKS2 header whose one key slot the DEK opens. Needs no dm-crypt. Raises VolumeRefused."""
    if volume.size_mib is None:
        raise VolumeRefused(f"{volume.directory} / volume.json does not say how large the image shall be (size_mib).")
    place = image(volume)
    with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.truncate(volume.size_mib << 20)
    options = (*_FORMAT_OPTIONS, *_HASH_OPTIONS, *_KEY_OPTIONS)
    _run(["cryptsetup", "luksFormat", *options, str(place)], f"{place} cannot be made", dek)


def _map(volume: Volume, dek: SecretBytes) -> Path:
    mapped = _mapped(volume)
    command = ["cryptsetup", "open", "--type", "luks2", *_KEY_OPTIONS, str(image(volume)), mapped.name]
    _run(command, f"{image(volume)} cannot be opened", dek)
    return mapped


def _unmap(volume: Volume) -> None:
    mapped = _mapped(volume)
    if not mapped.exists():
        return
    subprocess.run(["cryptsetup", "close", mapped.name], capture_output=True, check=False)
    if mapped.exists():
        raise LockFailed(f"{mapped} is still in use.")


def _mapped(volume: Volume) -> Path:
    return _MAPPER / f"hsmkms-{hashlib.sha256(os.fsencode(volume.cipher)).hexdigest()[:16]}"


def _run(command: list[str], failure: str, dek: SecretBytes | None = None) -> None:
    done = subprocess.run(
        command, input=b"" if dek is None else dek.reveal(), capture_output=True, cwd=os.sep, check=False
    )
    if dek is not None and done.returncode == _WRONG_KEY:
        raise VolumeRefused(f"{failure}: the wrapped DEK is that of another volume.")
    if done.returncode:
        raise VolumeRefused(f"{failure}: {command[0]} ended with {done.returncode}.")
