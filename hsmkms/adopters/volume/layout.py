"""What a volume consists of, on disk.

DIR/volume.json     which backend, where it is mounted, how the key service is reached; nothing secret
DIR/dek.json        the wrapped DEK; dek-2.json and so on after it was exchanged
DIR/cipher/         the data, encrypted; what lies in it is the backend's. cipher-2 and so on with another DEK
DIR/status.json     what `run` last found; for `status`, and never believed
MOUNT/              the data in clear, while it is open

Who holds the data open has a lock on DIR itself, which unlike a file in it cannot be deleted meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import select
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pydantic

from hsmkms.adopters.core import atomic
from hsmkms.adopters.refusals import AdopterError

FORMAT: Final = 1
KIND: Final = "volume"
_TURNS: Final = 10
_TURN_S: Final = 0.05


class VolumeRefused(AdopterError):
    """The volume cannot be made, opened or run as it stands."""


class _Settings(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    format: int = FORMAT
    backend: str
    mount: Path
    connection_file: Path
    generation: int = pydantic.Field(default=1, ge=1)
    size_mib: int | None = pydantic.Field(default=None, ge=32)


@dataclass(frozen=True)
class Volume:
    """A volume and its paths, all absolute. `generation` counts its DEKs: a new one has files of its own. `size_mib` is
    that of an image, for the backend that makes one."""

    directory: Path
    backend: str
    mount: Path
    connection_file: Path
    generation: int = 1
    size_mib: int | None = None

    @property
    def dek_file(self) -> Path:
        return self.directory / f"dek{self._suffix}.json"

    @property
    def cipher(self) -> Path:
        return self.directory / f"cipher{self._suffix}"

    @property
    def _suffix(self) -> str:
        return "" if self.generation == 1 else f"-{self.generation}"

    @property
    def status_file(self) -> Path:
        return self.directory / "status.json"

    def write(self) -> None:
        """Write volume.json, which makes the directory a volume."""
        settings = _Settings(
            backend=self.backend,
            mount=self.mount,
            connection_file=self.connection_file,
            generation=self.generation,
            size_mib=self.size_mib,
        )
        atomic.replace(
            self.directory / "volume.json", settings.model_dump_json(indent=1, exclude_none=True).encode() + b"\n"
        )

    @classmethod
    def read(cls, directory: Path) -> Volume:
        """Raises VolumeRefused."""
        directory = directory.resolve()
        file = directory / "volume.json"
        try:
            content = file.read_bytes()
        except OSError as error:
            raise VolumeRefused(f"{directory} is no volume: {file.name} cannot be read ({error.strerror}).") from error
        try:
            found = _Settings.model_validate_json(content)
        except pydantic.ValidationError as error:
            raise VolumeRefused(f"{file} is damaged. Restore it from a backup, or make it again by hand.") from error
        if found.format > FORMAT:
            raise VolumeRefused(f"{file} is of format {found.format}; this program knows up to {FORMAT}.")
        return cls(directory, found.backend, found.mount, found.connection_file, found.generation, found.size_mib)


class VolumeLock:
    """One opener at a time. Who inherits the descriptor holds the lock too: it is free only when the data is shut."""

    def __init__(self, volume: Volume) -> None:
        """Raises VolumeRefused when somebody holds it."""
        try:
            self.fd = os.open(volume.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise VolumeRefused(f"{volume.directory} cannot be opened: {error.strerror}.") from error
        try:
            self._take(volume)
        except VolumeRefused:
            os.close(self.fd)
            raise

    def _take(self, volume: Volume) -> None:
        for turn in range(_TURNS):
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if turn == _TURNS - 1:
                    raise VolumeRefused(
                        f"Another process has {volume.directory} open. Close it, or stop its `run`."
                    ) from error
                # It may be `is_locked`, which looks by taking it for an instant.
                select.select([], [], [], _TURN_S)
            except OSError as error:
                raise VolumeRefused(
                    f"{volume.directory} cannot be locked ({error.strerror}). Put it on a file system of this host."
                ) from error
            else:
                return

    def __enter__(self) -> VolumeLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give up this process's hold."""
        os.close(self.fd)


def is_locked(volume: Volume) -> bool:
    """Whether a process holds the data open. Raises OSError."""
    fd = os.open(volume.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
