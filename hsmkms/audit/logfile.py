"""One log on disk: written by one process at a time, which holds its lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from hsmkms.audit import chain
from hsmkms.errors import AuditUnavailable

BLOCK: Final = 1 << 20
OPENING: Final = ".opening"
"""How the file of a log ends that has no record yet: no log for anybody."""
_SEQUENCE: Final = re.compile(rb'"seq":(\d+),')


@dataclass(slots=True)
class Tail:
    """Number and hash of the last whole record, where it ends (bytes), and whether it closes the log."""

    sequence: int
    digest: bytes
    end: int
    final: bool = False


class LogFile:
    """An open log. After an OSError of any method the file is not to be used again: what is on disk is not known."""

    def __init__(self, path: Path, descriptor: int, tail: Tail) -> None:
        """`descriptor` is open to append, and has the lock."""
        self.path = path
        self.log = path.name.removesuffix(chain.SUFFIX)
        self._descriptor = descriptor
        self._tail = tail

    @classmethod
    def create(cls, directory: Path, log: str, opened: bytes) -> LogFile:
        """A new log with its first record (JSON), under its name only when it is locked and that record is on the disk:
        others may take over at once what they find. Raises OSError."""
        path, young = directory / f"{log}{chain.SUFFIX}", directory / f"{log}{OPENING}"
        descriptor = os.open(young, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        created = cls(path, descriptor, Tail(0, chain.genesis(log), 0))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            created.append([("opened", opened)])
            young.rename(path)
            _sync_directory(directory)
        except OSError:
            try:
                # On a full disk one would be left behind at each try.
                for one in (young, path):
                    one.unlink(missing_ok=True)
            finally:
                created.close()
            raise
        return created

    @property
    def size(self) -> int:
        """Bytes."""
        return self._tail.end

    @property
    def head(self) -> chain.Head:
        """The last record."""
        return chain.Head(self.log, self._tail.sequence, self._tail.digest.hex(), self._tail.final)

    def append(self, records: Iterable[tuple[str, bytes]]) -> None:
        """Write records of (kind, JSON) and wait until the disk has them under the log's name. Raises OSError."""
        text, sequence, digest = chain.extend(self._tail.sequence, self._tail.digest, records)
        written = 0
        while written < len(text):
            written += os.write(self._descriptor, text[written:])
        os.fdatasync(self._descriptor)
        if os.fstat(self._descriptor).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "the log that is being written was deleted", str(self.path))
        self._tail = Tail(sequence, digest, self._tail.end + len(text))

    def end(self, checkpoint: bytes) -> None:
        """Write the final checkpoint (JSON, signed). Raises OSError."""
        self.append([("checkpoint", checkpoint)])
        self._tail.final = True

    def close(self) -> None:
        """Give the lock back."""
        # What had to be on the disk was waited for, and the descriptor is gone also after an error.
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


def head_of(path: Path) -> chain.Head | None:
    """The last whole record of a log, as it stands there; None if there is none. Raises OSError."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - BLOCK))
        whole = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
    parts = chain.split(whole)
    number = None if parts is None else _SEQUENCE.match(parts[1])
    if parts is None or number is None:
        return None
    kind = chain.kind_of(parts[1], int(number[1]))
    closed = kind is not None and chain.is_final(*kind)
    return chain.Head(path.name.removesuffix(chain.SUFFIX), int(number[1]), parts[0].decode("latin-1"), closed)


def is_held(path: Path) -> bool:
    """True if a process is writing the log. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def prepare(directory: Path) -> None:
    """Make the directory of the logs. Raises AuditUnavailable."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AuditUnavailable(f"The audit directory {directory} cannot be made: {error.strerror}.") from error


def logs_in(directories: Sequence[Path]) -> list[Path]:
    """The logs, in the order of their names, which begin with the time of their first record."""
    return sorted((path for one in directories for path in one.glob(f"*{chain.SUFFIX}")), key=lambda path: path.name)


def public_key_of_newest(directory: Path) -> str | None:
    """PEM of the audit key that the newest log names which can be read; None where there is none."""
    for path in reversed(logs_in([directory])):
        with contextlib.suppress(OSError, msgspec.MsgspecError, RecursionError):
            parts = chain.split(next(lines_of(path), b"").removesuffix(b"\n"))
            opening = None if parts is None else chain.kind_of(parts[1], 1)
            if opening is not None and opening[0] == "opened":
                return msgspec.json.decode(opening[1], type=chain.Opened).public_key
    return None


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines with their ends; the last one may lack it. Raises OSError."""
    with path.open("rb", buffering=BLOCK) as file:
        yield from file


def ends_closed(path: Path) -> bool:
    """Whether the last record is a final checkpoint: old logs need not be read whole to know that. Raises OSError."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - BLOCK))
        lines = file.read().split(b"\n")
    return (
        len(lines) > 2
        and lines[-1] == b""
        and b',"checkpoint":{' in lines[-2]
        and chain.is_final("checkpoint", lines[-2])
    )


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
