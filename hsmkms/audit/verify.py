"""Prove that logs are whole, each by itself and each by what others tell of it: needs the files and the public key, no
token, no database, no service."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hsmkms.audit import chain
from hsmkms.audit.logfile import BLOCK, is_held, lines_of, logs_in
from hsmkms.audit.reader import Reader, Verified, load_public_key, node_of

WORTH_PROCESSES: Final = 64 << 20
"""Bytes of logs from which on starting processes costs less than it saves."""

_Told = set[tuple[int, str]]
"""Numbers and hashes of a log's records, from all who saw them: of one record two may be told of, and one is wrong."""


def verify(
    directories: Sequence[Path],
    key: ec.EllipticCurvePublicKey,
    heads: Mapping[str, tuple[int, str]] | None,
    here: str | None = None,
    worth_processes: int = WORTH_PROCESSES,
) -> list[Verified]:
    """Verify every log, and that every head that another log's checkpoint or `heads` tells of is there. Logs that are
    told of and missing are in the answer too.

    `heads` are those of the database. Without one (None) it does not count that a process holds a log: anybody can.
    `here` is the name of this node when the others have their logs elsewhere: those of nodes of which no log is here
    are not missed then. From `worth_processes` bytes on each processor reads logs of its own.
    """
    logs = _Logs(directories, key, worth_processes, locks_count=heads is not None)
    logs.read()
    told: dict[str, _Told] = {}
    for log, head in (heads or {}).items():
        told.setdefault(log, set()).add(head)
    for one in logs.found.values():
        for log, sequence, digest in one.heads:
            told.setdefault(log, set()).add((sequence, digest))
    found = logs.found
    nodes = None if here is None else {here, *map(node_of, found)}
    missed = {log for log in told.keys() - found.keys() if nodes is None or node_of(log) in nodes}
    short = {log for log in told.keys() & found.keys() if max(told[log])[0] > found[log].records}
    if missed - logs.gone.keys() or any(found[log].problem is None for log in short):
        # Logs begin, grow and go while others are read. Whoever told of one had it on the disk.
        logs.read()
    for log in told.keys() & found.keys():
        if found[log].problem is None:
            _compare(found[log], told[log], logs.places[log])
    for log in told.keys() - found.keys():
        found[log] = _missing(log, told[log], logs.gone.get(log)) if log in missed else Verified(log, elsewhere=True)
    return [found[log] for log in sorted(found)]


def last_records(old: Sequence[Verified]) -> dict[str, tuple[int, str]]:
    """What is to be recorded before logs are deleted: number and hash of their last records, and of all that went
    before on the word of one of these: logs on other hosts may tell of them."""
    logs = {one.log: (one.records, one.digests[one.records]) for one in old}
    return {log: last for one in old for log, last in one.gone.items()} | logs


class _Logs:
    """What was found in directories. `gone`: logs that others say were retired."""

    def __init__(
        self, directories: Sequence[Path], key: ec.EllipticCurvePublicKey, worth_processes: int, *, locks_count: bool
    ) -> None:
        self.found: dict[str, Verified] = {}
        self.places: dict[str, Path] = {}
        self.gone: dict[str, tuple[int, str]] = {}
        self._directories = directories
        self._worth_processes = worth_processes
        pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        self._read = partial(_read, pem, locks_count)

    def read(self) -> None:
        """Read what is there; the second time what is new or was not closed yet."""
        paths = [path for path in logs_in(self._directories) if self._is_new(path)]
        for path, one in zip(paths, self._read_all(paths), strict=True):
            if one is None:
                continue
            if self.places.setdefault(one.log, path) != path:
                known = self.found[one.log]
                if (one.problem, one.digests) != (None, known.digests):
                    known.problem = "it is there twice, and not the same"
                continue
            self.found[one.log] = one
            self.gone |= one.gone

    def _is_new(self, path: Path) -> bool:
        known = self.found.get(_log_of(path))
        return known is None or (path == self.places[known.log] and known.problem is None and not known.closed)

    def _read_all(self, paths: Sequence[Path]) -> Iterable[Verified | None]:
        processes = min(len(os.sched_getaffinity(0)), len(paths))
        if processes < 2 or sum(map(_size, paths)) < self._worth_processes:
            return map(self._read, paths)
        # Spawned: a process that has opened a PKCS#11 library must not be forked.
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            return list(pool.map(self._read, paths))


def _read(pem: bytes, locks_count: bool, path: Path) -> Verified | None:
    """None for a log that has been retired since it was listed."""
    try:
        if not path.is_file():
            return Verified(_log_of(path), problem="it is no file") if path.is_symlink() or path.exists() else None
        # Asked before it is read: who lets go of it meanwhile has closed it.
        held = locks_count and is_held(path)
        with path.open("rb", buffering=BLOCK) as file:
            return Reader(_log_of(path), load_public_key(pem), held=held).read(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Verified(_log_of(path), problem=f"it cannot be read: {error.strerror}")


def _log_of(path: Path) -> str:
    return path.name.removesuffix(chain.SUFFIX)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        # Who reads it says so.
        return 0


def _missing(log: str, told: _Told, retired: tuple[int, str] | None) -> Verified:
    if retired is None:
        return Verified(log, broken_at=1, problem="the whole log is missing")
    records, digest = retired
    seen = dict(told)
    if max(seen) > records or seen.get(records, digest) != digest or len(seen) < len(told):
        return Verified(log, broken_at=records, problem="what was retired is not what another log saw")
    return Verified(log, records, records, closed=True, retired=True)


def _compare(one: Verified, told: _Told, path: Path) -> None:
    numbers = {number for number, _ in told}
    if max(numbers) > one.records:
        one.broken_at = one.records + 1
        one.problem = f"records up to {max(numbers)} were seen by another log and are gone"
        return
    there = one.digests
    if not numbers <= there.keys():
        try:
            there = {
                number: parts[0].decode("latin-1")
                for number, text in enumerate(lines_of(path), 1)
                if number in numbers and (parts := chain.split(text.rstrip(b"\n"))) is not None
            }
        except OSError as error:
            one.problem = f"it cannot be read: {error.strerror}"
            return
    for number, digest in sorted(told):
        if there.get(number) != digest:
            one.broken_at, one.problem = number, "another log saw another record here"
            return
