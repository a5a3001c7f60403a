"""What the command line does with volumes."""

from __future__ import annotations

import contextlib
import pwd
import shutil
from dataclasses import replace
from pathlib import Path

import structlog

from hsmkms.adopters.client import AdopterError, KeyRefused, KeyServiceClient
from hsmkms.adopters.connection import Connection
from hsmkms.adopters.core.dek_file import WrappedDekFile, aad_of, new_dek_id
from hsmkms.adopters.volume.backend import Backend
from hsmkms.adopters.volume.choice import backend_of, choose
from hsmkms.adopters.volume.layout import KIND, Volume, VolumeLock, VolumeRefused
from hsmkms.adopters.volume.status import followed_by

_log = structlog.get_logger(__name__)


def client_of(volume: Volume) -> KeyServiceClient:
    """The client of the instance that holds a volume's key. Raises AdopterError."""
    dek = WrappedDekFile.read(volume.dek_file)
    return KeyServiceClient(Connection.read(volume.connection_file)).at_key(dek.key_crn)[0]


def create(
    volume: Volume, key: str, resource_crn: str, *, owner: str | None = None, prevent_deletion: bool = False
) -> tuple[Volume, str]:
    """Make a volume under a root key (id, alias or CRN) and register its CRN: the volume, and why this backend.

    `owner` is the user whose the data shall be; None: who calls this.

    Raises AdopterError; what was made until then is taken away.
    """
    backend, reason = choose(volume)
    volume = replace(volume, backend=backend.name)
    client, key = KeyServiceClient(Connection.read(volume.connection_file)).at_key(key)
    with client:
        root_key = client.key(key)
        if not root_key.opens:
            raise KeyRefused("KEY_ACTION_INVALID_STATE_ERR", f"The root key {root_key.crn} is not active.")
        made, registered = _make_directories(volume, owner), False
        try:
            dek_id = new_dek_id()
            wrapped = client.generate_and_wrap(root_key.id, aad_of(KIND, resource_crn, dek_id))
            backend.create(volume, wrapped.plaintext)
            if owner is not None:
                shutil.chown(volume.cipher, owner)
            WrappedDekFile.of(KIND, resource_crn, dek_id, root_key, wrapped).write(volume.dek_file)
            client.register(root_key.id, resource_crn, prevent_deletion=prevent_deletion, description="hsmkms volume")
            registered = True
            volume.write()
        except (AdopterError, OSError):
            if registered:
                with contextlib.suppress(AdopterError):
                    client.deregister(root_key.id, resource_crn)
            shutil.rmtree(volume.cipher, ignore_errors=True)
            volume.dek_file.unlink(missing_ok=True)
            for directory in reversed(made):
                shutil.rmtree(directory, ignore_errors=True)
            raise
    return volume, reason


def open_(volume: Volume) -> Backend:
    """Open a volume for as long as nobody closes it, by what is returned or by `close`. Its key is not followed.

    Raises AdopterError.
    """
    backend = backend_of(volume)
    dek = WrappedDekFile.read(volume.dek_file)
    with VolumeLock(volume) as lock, client_of(volume) as client:
        drop_older(volume)
        opened = client.unwrap(dek.key_id, dek.ciphertext, dek.aad)
        backend.open(volume, opened.plaintext, lock)
    return backend


def close(volume: Volume) -> None:
    """Close a volume and verify it; nothing happens to one that is closed. Raises LockFailed, VolumeRefused."""
    follower = followed_by(volume)
    if follower is not None:
        raise VolumeRefused(f"`run` (process {follower}) serves {volume.directory}. Stop that; it closes the volume.")
    backend_of(volume).close(volume)
    VolumeLock(volume).release()


def drop_older(volume: Volume) -> None:
    """Take away what earlier generations left, their wrapped DEKs first."""
    older = [replace(volume, generation=number) for number in range(1, volume.generation)]
    for one in older:
        one.dek_file.unlink(missing_ok=True)
    for one in older:
        shutil.rmtree(one.cipher, ignore_errors=True)


def remove(volume: Volume) -> None:
    """Take a volume away for good: first its wrapped DEK, then its registration, then its data. Raises AdopterError."""
    dek = WrappedDekFile.read(volume.dek_file)
    with VolumeLock(volume), client_of(volume) as client:
        backend = backend_of(volume)
        if backend.is_open(volume):
            raise VolumeRefused(f"{volume.directory} is open. Close it first.")
        backend.close(volume)
        client.deregister(dek.key_id, dek.resource_crn)
        for file in volume.directory.glob("dek*.json"):
            file.unlink()
        for directory in volume.directory.glob("cipher*"):
            shutil.rmtree(directory)
        for name in ("volume.json", "status.json"):
            (volume.directory / name).unlink(missing_ok=True)


def _make_directories(volume: Volume, owner: str | None) -> list[Path]:
    """Empty directories for the ciphertext and the mount; those that were not there before."""
    if owner is not None and owner not in {user.pw_name for user in pwd.getpwall()}:
        raise VolumeRefused(f"There is no user {owner}.")
    if (volume.directory / "volume.json").exists():
        raise VolumeRefused(f"{volume.directory} holds a volume already.")
    if volume.cipher.exists():
        raise VolumeRefused(f"{volume.directory} holds what is left of a `create` that was killed. Delete it first.")
    made = []
    for directory in (volume.directory, volume.cipher, volume.mount):
        if not directory.exists():
            directory.mkdir(parents=True)
            made.append(directory)
        elif directory == volume.mount and any(directory.iterdir()):
            raise VolumeRefused(f"{directory} is not empty. Choose an empty directory to mount at.")
    # The owner has to get through to the mount; what else lies in the directory is not for him.
    volume.directory.chmod(0o711)
    volume.cipher.chmod(0o700)
    return made
