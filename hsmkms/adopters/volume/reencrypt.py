"""A new DEK for a volume, which a rewrap does not give: all data is read and written anew, while nobody uses it.

The copy is another generation beside the current one; replacing `volume.json` makes it the current one, at once. Until
then an interrupted copy is taken up where it ended: a file is there whole under its name, or it is not.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from hsmkms.adopters.client import KeyServiceClient
from hsmkms.adopters.core.atomic import sync_directory
from hsmkms.adopters.core.dek_file import WrappedDekFile, new_dek_id
from hsmkms.adopters.volume.choice import backend_of
from hsmkms.adopters.volume.layout import Volume, VolumeLock, VolumeRefused
from hsmkms.adopters.volume.operations import client_of, drop_older

_PART: Final = ".hsmkms-part"


@dataclass
class Progress:
    """How far a copy is: files and bytes of what there is; `kept` files were there from a copy that was interrupted."""

    files: int = 0
    bytes: int = 0
    kept: int = 0
    all_files: int = 0
    all_bytes: int = 0


def reencrypt(volume: Volume, tell: Callable[[Progress], None]) -> Volume:
    """Give a closed volume a new DEK under the same root key; `tell` hears of the progress. The volume as it is then.

    Raises AdopterError, OSError; what was copied until then is kept for the next try.
    """
    following = replace(volume, generation=volume.generation + 1, mount=volume.directory / "next")
    with VolumeLock(volume) as lock, client_of(volume) as client:
        drop_older(volume)
        _prepare(volume, following, client)
        with _open(volume, client, lock) as source, _open(following, client, lock) as target:
            progress = Progress()
            for path in _tree(source):
                status = path.lstat()
                progress.all_files += 1
                progress.all_bytes += status.st_size if stat.S_ISREG(status.st_mode) else 0
            _remove_what_went(source, target)
            _copy(source, target, progress, tell)
            os.sync()
        following.mount.rmdir()
        current = replace(following, mount=volume.mount)
        current.write()
        dek = WrappedDekFile.read(current.dek_file)
        client.registered_version(dek.key_id, dek.resource_crn, dek.key_version)
        drop_older(current)
    return current


def _prepare(volume: Volume, following: Volume, client: KeyServiceClient) -> None:
    """An empty next generation with a DEK of its own, unless there is one to go on with."""
    following.mount.mkdir(exist_ok=True)
    if following.dek_file.exists():
        return
    shutil.rmtree(following.cipher, ignore_errors=True)
    following.cipher.mkdir(mode=0o700)
    owner = volume.cipher.stat()
    dek = WrappedDekFile.read(volume.dek_file)
    fresh = dek.model_copy(update={"dek_id": new_dek_id()})
    wrapped = client.generate_and_wrap(dek.key_id, fresh.aad)
    backend_of(following).create(following, wrapped.plaintext)
    os.chown(following.cipher, owner.st_uid, owner.st_gid)
    WrappedDekFile.of(dek.kind, dek.resource_crn, fresh.dek_id, client.key(dek.key_id), wrapped).write(
        following.dek_file
    )


@contextmanager
def _open(volume: Volume, client: KeyServiceClient, lock: VolumeLock) -> Iterator[Path]:
    """A generation's data in clear, meanwhile."""
    backend, dek = backend_of(volume, supervised=True), WrappedDekFile.read(volume.dek_file)
    backend.open(volume, client.unwrap(dek.key_id, dek.ciphertext, dek.aad).plaintext, lock)
    try:
        yield volume.mount
    finally:
        backend.close(volume)


def _tree(top: Path) -> Iterator[Path]:
    """Everything below a directory, a directory before what is in it."""
    for directory, names, files in os.walk(top):
        names.sort()
        yield from (Path(directory, name) for name in sorted((*names, *files)))


def _remove_what_went(source: Path, target: Path) -> None:
    """What an interrupted copy has and the data has no more."""
    for path in list(_tree(target)):
        other = source / path.relative_to(target)
        if os.path.lexists(path) and (not os.path.lexists(other) or _kind(other) != _kind(path)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _copy(source: Path, target: Path, progress: Progress, tell: Callable[[Progress], None]) -> None:
    linked: dict[int, Path] = {}
    directories = [(source, target)]
    for path in _tree(source):
        there, status = target / path.relative_to(source), path.lstat()
        if stat.S_ISDIR(status.st_mode):
            there.mkdir(exist_ok=True)
            directories.append((path, there))
        elif stat.S_ISLNK(status.st_mode):
            there.unlink(missing_ok=True)
            there.symlink_to(path.readlink())
            _take_over(path, there)
        elif stat.S_ISREG(status.st_mode):
            _copy_file(path, there, linked, progress)
            progress.bytes += status.st_size
        elif not stat.S_ISSOCK(status.st_mode):
            raise VolumeRefused(f"{path} is no file, directory or link; it cannot be copied.")
        progress.files += 1
        tell(progress)
    # At the end, and the innermost first: what is put into a directory changes its time.
    for path, there in reversed(directories):
        _take_over(path, there)
        sync_directory(there)


def _copy_file(path: Path, there: Path, linked: dict[int, Path], progress: Progress) -> None:
    status = path.stat()
    known = linked.setdefault(status.st_ino, there)
    if known != there:
        there.unlink(missing_ok=True)
        there.hardlink_to(known)
        return
    if there.exists() and _looks(there) == _looks(path):
        progress.kept += 1
        return
    part = there.with_name(there.name[:200] + _PART)
    with path.open("rb") as reader, part.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())
    _take_over(path, part)
    part.replace(there)


def _take_over(path: Path, there: Path) -> None:
    """Owner, mode, times, extended attributes."""
    status = path.lstat()
    os.chown(there, status.st_uid, status.st_gid, follow_symlinks=False)
    shutil.copystat(path, there, follow_symlinks=False)


def _looks(path: Path) -> tuple[int, int, int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_mode, status.st_uid, status.st_gid


def _kind(path: Path) -> int:
    return stat.S_IFMT(path.lstat().st_mode)
