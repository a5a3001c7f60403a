"""Files encrypted by the kernel itself on ext4 and f2fs (fscrypt, policy version 2, AES-256-XTS, names CBC-CTS).

The DEK goes to the kernel by an ioctl, is known there by an identifier derived from it, and is taken away by another.
`cipher` is one directory with two faces: names and data in clear while the kernel has the DEK, neither without. It is
bound to `mount` meanwhile. Structures and numbers are those of linux/fscrypt.h; filesystems/fscrypt.rst of the kernel's
documentation explains them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hsmkms.adopters.refusals import LockFailed
from hsmkms.adopters.volume import mounts
from hsmkms.adopters.volume.guard import Guard
from hsmkms.adopters.volume.layout import Volume, VolumeLock, VolumeRefused
from hsmkms.domain.secrets import SecretBytes

_SET_POLICY: Final = 0x800C6613
_GET_POLICY_EX: Final = 0xC0096616
_ADD_KEY: Final = 0xC0506617
_REMOVE_KEY_ALL_USERS: Final = 0xC0406619
_GET_KEY_STATUS: Final = 0xC080661A

_BY_IDENTIFIER: Final = 2
_POLICY_V2: Final = struct.Struct("=BBBBBxxx16s")
_KEY: Final = struct.Struct("=II32s")
"""Of a key: how it is named, reserved, its identifier padded to 32 bytes; the first member of each key structure."""
_AES_256_XTS, _AES_256_CTS, _PAD_32 = 1, 4, 3
_ABSENT, _PRESENT = 1, 2
_LEAVE_S: Final = 5.0
"""The time for what a server had started, and what is left of it for a moment, to go."""
_LOOK_S: Final = 0.5
_NOT_HERE: Final = (errno.ENOTTY, errno.EOPNOTSUPP)


class Fscrypt:
    """The backend. With `supervised` a guard closes the volume when the process that opened it is gone."""

    name = "fscrypt"

    def __init__(self, *, supervised: bool = False) -> None:
        self._supervised = supervised
        self._guard: Guard | None = None

    def why_not(self, volume: Volume) -> str | None:
        if os.geteuid() != 0:
            return "only root may give the kernel a key for all"
        place = next(path for path in (volume.cipher, *volume.cipher.parents) if path.is_dir())
        try:
            _identifier(place)
        except OSError as error:
            if error.errno in _NOT_HERE:
                return f"the file system of {place} is no ext4 or f2fs with the feature `encrypt`"
            return f"{place} cannot be looked at: {error.strerror}"
        return None

    def create(self, volume: Volume, dek: SecretBytes) -> None:
        identifier = _identifier_of(dek)
        policy = _POLICY_V2.pack(2, _AES_256_XTS, _AES_256_CTS, _PAD_32, 0, identifier)
        _give_key(volume.directory, dek)
        try:
            with _opened(volume.cipher) as fd:
                fcntl.ioctl(fd, _SET_POLICY, policy)
        except OSError as error:
            raise VolumeRefused(f"The kernel does not encrypt {volume.cipher}: {error.strerror}.") from error
        finally:
            _take_key(volume.directory, identifier)

    def open(self, volume: Volume, dek: SecretBytes, lock: VolumeLock) -> int | None:
        if self._guard is None or not self._guard.lives:
            # What a crash left open: who still uses it is in the way. What we could not shut ourselves is not.
            self.close(volume)
            self._guard = Guard(volume, lock) if self._supervised else None
        try:
            # Before the kernel hears of it: another volume may use that key, and it is not ours to take away again.
            if _identifier(volume.cipher) != _identifier_of(dek):
                raise VolumeRefused(
                    f"{volume.dek_file} opens, but not {volume.cipher}: it is the wrapped DEK of another volume."
                )
            _give_key(volume.directory, dek)
            if mounts.mounted_at(volume.mount) is None:
                mounts.mount("--bind", volume.cipher, volume.mount)
        except VolumeRefused:
            self.close(volume)
            raise
        return None if self._guard is None else self._guard.pid

    def close(self, volume: Volume) -> None:
        until = time.monotonic() + _LEAVE_S
        while not self._closed(volume):
            used = mounts.holders_of(volume.mount) + mounts.holders_of(volume.cipher)
            if time.monotonic() >= until:
                raise LockFailed(f"Files of {volume.directory} are still in use by {mounts.names_of(used)}.")
            mounts.wait_for_end(used, _LOOK_S)
        if self._guard is not None:
            self._guard.end()
            self._guard = None

    def _closed(self, volume: Volume) -> bool:
        """Close it; whether nobody holds a file of it. While somebody does, all that he does not hold is locked."""
        if mounts.mounted_at(volume.mount) is not None:
            if not _is_ours(volume):
                raise LockFailed(f"Something else is mounted at {volume.mount}. Unmount that first.")
            mounts.unmount(volume.mount)
        identifier = _identifier(volume.cipher)
        return identifier is None or _take_key(volume.directory, identifier) == _ABSENT

    def is_open(self, volume: Volume) -> bool:
        if mounts.mounted_at(volume.mount) is None or not _is_ours(volume):
            return False
        identifier = _identifier(volume.cipher)
        guarded = not self._supervised or (self._guard is not None and self._guard.lives)
        return guarded and identifier is not None and _status(volume.directory, identifier) == _PRESENT


def _give_key(place: Path, dek: SecretBytes) -> None:
    """Give the kernel a key for the file system of a place. Raises VolumeRefused."""
    raw = dek.reveal()
    argument = bytearray(_KEY.pack(_BY_IDENTIFIER, 0, b"") + struct.pack("=II32x", len(raw), 0) + raw)
    try:
        with _opened(place) as fd:
            fcntl.ioctl(fd, _ADD_KEY, argument)
    except OSError as error:
        raise VolumeRefused(f"The kernel takes no key for {place}: {error.strerror}.") from error
    finally:
        argument[:] = bytes(len(argument))


def _identifier_of(dek: SecretBytes) -> bytes:
    """What the kernel calls a key: 16 bytes of HKDF-SHA512 (RFC 5869) without salt."""
    extracted = hmac.digest(bytes(64), dek.reveal(), hashlib.sha512)
    return hmac.digest(extracted, b"fscrypt\0\x01" + b"\x01", hashlib.sha512)[:16]


def _take_key(place: Path, identifier: bytes) -> int:
    """Take a key from the kernel, and lock what nobody holds open; the key's status then."""
    with _opened(place) as fd, contextlib.suppress(OSError):
        # No such key: its status says so.
        fcntl.ioctl(fd, _REMOVE_KEY_ALL_USERS, bytearray(_KEY.pack(_BY_IDENTIFIER, 0, identifier) + bytes(24)))
    return _status(place, identifier)


def _status(place: Path, identifier: bytes) -> int:
    argument = bytearray(_KEY.pack(_BY_IDENTIFIER, 0, identifier) + bytes(88))
    with _opened(place) as fd:
        fcntl.ioctl(fd, _GET_KEY_STATUS, argument)
    return int(struct.unpack_from("=I", argument, 64)[0])


def _identifier(directory: Path) -> bytes | None:
    """Of the key that a directory is encrypted with, None when it is not, or is not there. Raises OSError where nothing
    can be encrypted."""
    argument = bytearray(struct.pack("=Q", _POLICY_V2.size) + bytes(_POLICY_V2.size))
    try:
        with _opened(directory) as fd:
            fcntl.ioctl(fd, _GET_POLICY_EX, argument)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOENT):
            return None
        raise
    return bytes(_POLICY_V2.unpack_from(argument, 8)[-1])


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def _is_ours(volume: Volume) -> bool:
    try:
        return volume.mount.samefile(volume.cipher)
    except OSError:
        return False
