"""The file of a backup: a tar archive of the dump, the settings and a manifest, and the token's seal over that.

The manifest has the hash of every other member, and the seal is an HMAC of its hash by the token key that seals rights:
whoever can change a backup unseen can change rights in the database too.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, BinaryIO, Final

import msgspec

from hsmkms.errors import BackupRefused

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
SEAL: Final = "seal"
ROWS: Final = "rows.jsonl"
SETTINGS: Final = "hsmkms.toml"
_SEALED: Final = b"hsmkms backup\0"
_MOST_BYTES: Final = 256 << 20
_BLOCK: Final = 1 << 20


class Member(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Another file of the archive."""

    bytes: int
    sha256: str


class WrappingKey(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A key on the token: CKA_ID, whose it is as its label says, check value (hex)."""

    id: str
    owner: str
    created_at: datetime
    check_value: str


class TokenNeeds(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a token has to hold for the service to go on. Label and serial are those of the token it was on."""

    label: str
    serial: str
    manufacturer: str
    sentinel: str
    wrapping_keys: list[WrappingKey]
    signing_keys: list[str]


class AuditHead(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The last record of an audit log: number and hash (hex)."""

    log: str
    sequence: int
    digest: str
    closed: bool


class Manifest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What is in a backup and what it needs."""

    format: int
    program: str
    created_at: datetime
    database: str
    revision: str
    rows: dict[str, int]
    members: dict[str, Member]
    token: TokenNeeds
    audit_public_key: str
    audit_heads: list[AuditHead]


def sealed_message(manifest: bytes) -> bytes:
    """What the token seals."""
    return _SEALED + hashlib.sha256(manifest).digest()


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """A directory beside `target`, ours alone and gone afterwards, in which a backup is put together. Raises
    BackupRefused when there is such a file already, or no room."""
    try:
        if target.exists():
            raise BackupRefused(f"{target} is there already. Give another name.")
        with tempfile.TemporaryDirectory(prefix=".hsmkms-backup-", dir=target.parent) as directory:
            yield Path(directory)
    except OSError as error:
        raise BackupRefused(f"{target} cannot be written: {error.strerror}.") from error


def describe(path: Path) -> Member:
    """Length and hash of a file."""
    with path.open("rb") as file:
        return Member(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def pack(directory: Path, manifest: Manifest, seal: Callable[[bytes], bytes], target: Path) -> None:
    """Make the archive of the manifest and its members in `directory`; whole or not at all, its owner's alone."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    whole = directory / "whole"
    descriptor = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as archive:
            for name, content in ((MANIFEST, text), (SEAL, seal(sealed_message(text)).hex().encode())):
                archive.addfile(_information(name, len(content), manifest.created_at), io.BytesIO(content))
            for name, member in manifest.members.items():
                with (directory / name).open("rb") as content_file:
                    archive.addfile(_information(name, member.bytes, manifest.created_at), content_file)
        file.flush()
        os.fsync(file.fileno())
    # Not `rename`: that would replace what came there meanwhile.
    os.link(whole, target)
    parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _information(name: str, length: int, at: datetime) -> tarfile.TarInfo:
    information = tarfile.TarInfo(name)
    information.size, information.mode, information.mtime = length, 0o600, int(at.timestamp())
    return information


class Archive:
    """An archive whose members are those that its manifest names, byte for byte. Nothing is unpacked."""

    def __init__(self, path: Path) -> None:
        """Read and check it whole. Raises BackupRefused."""
        self._path = path
        with _readable(path), tarfile.open(path, "r:gz") as archive:
            self._manifest = _read(archive, MANIFEST)
            self.seal = _read(archive, SEAL)
            self.manifest = _decode(self._manifest)
            for name in self.manifest.members:
                self._require_unchanged(name, _digest(_member(archive, name)))
            for needed in (ROWS, SETTINGS):
                if needed not in self.manifest.members:
                    raise BackupRefused(f"{path} lacks {needed}.")

    @property
    def sealed_message(self) -> bytes:
        """What the seal is over."""
        return sealed_message(self._manifest)

    def settings(self) -> bytes:
        """The settings (TOML). Raises BackupRefused."""
        with _readable(self._path), tarfile.open(self._path, "r:gz") as archive:
            text = _read(archive, SETTINGS)
        self._require_unchanged(SETTINGS, hashlib.sha256(text).hexdigest())
        return text

    def rows(self) -> Iterator[bytes]:
        """The lines of the dump. Raises BackupRefused, perhaps only behind the last: keep none until then."""
        digest = hashlib.sha256()
        with _readable(self._path), tarfile.open(self._path, "r:gz") as archive:
            for line in _member(archive, ROWS):
                digest.update(line)
                yield line
        self._require_unchanged(ROWS, digest.hexdigest())

    def _require_unchanged(self, name: str, digest: str) -> None:
        """The file may have been exchanged since it was opened."""
        if digest != self.manifest.members[name].sha256:
            raise BackupRefused(f"{self._path}: {name} is not what the backup held when it was made.")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise BackupRefused(f"{path} cannot be read as a backup, or not to its end.") from error


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    try:
        found = archive.extractfile(name)
    except KeyError:
        found = None
    if found is None:
        raise BackupRefused(f"The backup lacks {name}.")
    return found


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    text = _member(archive, name).read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise BackupRefused(f"{name} of the backup is too long.")
    return text


def _digest(file: IO[bytes] | BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _decode(text: bytes) -> Manifest:
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except msgspec.MsgspecError as error:
        raise BackupRefused("The manifest of the backup cannot be read; a newer version may have made it.") from error
    if manifest.format != FORMAT:
        raise BackupRefused(f"The backup has format {manifest.format}; this version reads {FORMAT}.")
    return manifest
