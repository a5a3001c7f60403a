"""Closes what other processes of this host left open: checked first, then with a signature behind it.

Who may write to the directory could have written it anew, and a signature by this process would make it believed. So a
log is closed only if its chain, each of its signatures and what the database knows of it are right; else it stays as it
is. Nobody waits for that: a process writes to a log of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import structlog

from hsmkms.audit import chain
from hsmkms.audit.logfile import BLOCK, OPENING, LogFile, Tail, ends_closed, is_held, logs_in
from hsmkms.audit.proof import NotProved, signed
from hsmkms.audit.reader import Reader, Verified, load_public_key
from hsmkms.audit.witness import Witness
from hsmkms.clock import Clock
from hsmkms.errors import HsmkmsError
from hsmkms.telemetry.logs import log_unexpected

_YOUNG_S: Final = 60.0
"""No process takes as long to begin a log, so that what is older was left."""

_log = structlog.get_logger(__name__)
_encode: Final = msgspec.json.Encoder().encode


class Takeover:
    """Of the logs of `node` in a directory, in a thread of its own."""

    def __init__(self, directory: Path, node: str, clock: Clock, settle: Callable[[], None]) -> None:
        """`settle` waits until this process has said what it was saying of logs that it wrote."""
        self._directory = directory
        self._node = node
        self._clock = clock
        self._settle = settle
        self._name = re.compile(rf"\d{{8}}T\d{{6}}-{re.escape(node)}-[0-9a-f]{{8}}")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit-takeover")
        self._under_way: Future[None] | None = None
        self._settled: set[str] = set()
        """Logs that are closed, and such as are not to be."""
        self._told: set[tuple[str, str]] = set()
        self._put_off = False

    def begin(self, witness: Witness) -> None:
        """Look for what was left; while that is under way, `go_on` does."""
        if self._under_way is None or self._under_way.done():
            self._under_way = self._thread.submit(self._look, witness)
            self._under_way.add_done_callback(log_unexpected)
        else:
            # It may have listed the logs before the one that is meant was left.
            self._put_off = True

    def go_on(self, witness: Witness) -> None:
        """Try again what could not be done because token, database or disk were away, or somebody in the way."""
        if self._put_off:
            self.begin(witness)

    def close(self) -> None:
        """Wait for what is under way."""
        self._thread.shutdown()

    def wait(self) -> None:
        """The same, and more may come."""
        if self._under_way is not None:
            wait([self._under_way])

    def _look(self, witness: Witness) -> None:
        self._put_off = False
        try:
            young, logs = list(self._directory.glob(f"*{OPENING}")), logs_in([self._directory])
        except OSError as error:
            self._put_off = True
            _log.warning("audit logs that were left open could not be looked for", reason=error.strerror)
            return
        for path in young:
            if self._name.fullmatch(path.stem):
                self._remove_young(path)
        for path in logs:
            if path.stem not in self._settled and self._name.fullmatch(path.stem):
                self._try(path, witness)

    def _try(self, path: Path, witness: Witness) -> None:
        try:
            self._take(path, witness)
        except NotProved as error:
            self._settled.add(path.stem)
            _log.error(
                "an audit log that was left open is not what was written; it stays as it is, see docs/audit.md",
                log=path.stem,
                reason=str(error),
            )
        except OSError as error:
            self._put_off_for(path, error.strerror or "input or output failed")
        except HsmkmsError as error:
            self._put_off_for(path, error.message)

    def _put_off_for(self, path: Path, reason: str) -> None:
        self._put_off = True
        if (path.stem, reason) not in self._told:
            self._told.add((path.stem, reason))
            _log.warning("an audit log that was left open could not be closed", log=path.stem, reason=reason)

    def _remove_young(self, path: Path) -> None:
        """A log whose process ended before its first record was on the disk."""
        with contextlib.suppress(OSError):
            if _is_old(path):
                path.unlink()

    def _take(self, path: Path, witness: Witness) -> None:
        """Raises NotProved, OSError, Unavailable."""
        if ends_closed(path):
            self._settled.add(path.stem)
            return
        with _held(path) as descriptor:
            if descriptor is None:
                # Nobody writes it if whom it waits for only asked whether it is held.
                if not is_held(path):
                    self._put_off = True
                return
            # Its process may have closed it, or another taken it over, a moment ago.
            if ends_closed(path):
                return
            # This process may have left it in trouble, and what it says late must not come behind its end.
            self._settle()
            # What is on the disk, which after an fdatasync that failed may be less than what the cache has.
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            seen = witness.known(path.stem)
            if seen is not None and seen.closed:
                raise NotProved(f"record {seen.sequence + 1}: the database knows that it was closed")
            with open(descriptor, "rb", buffering=BLOCK, closefd=False) as file:
                begun = file.readline().endswith(b"\n")
                file.seek(0)
                left = _proved(file, path.stem, witness, seen) if begun or seen is not None else None
            if left is not None:
                self._close(path, descriptor, left, witness, seen)
            elif _is_old(path):
                # Nobody was answered for what is in it.
                path.unlink()
                _log.info("an audit log without a record was taken away", log=path.stem)
            else:
                # Processes of older versions begin a log under its name.
                self._put_off = True
                return
            self._settled.add(path.stem)

    def _close(self, path: Path, descriptor: int, left: Verified, witness: Witness, seen: chain.Head | None) -> None:
        now, digest = self._clock(), bytes.fromhex(left.digests[left.records])
        end = os.fstat(descriptor).st_size - left.torn
        resumed = _encode(chain.Resumed(self._node, now, left.torn, left.covered + 1))
        _, sequence, last = chain.extend(left.records, digest, [("resumed", resumed)])
        head = chain.Head(path.stem, sequence, last.hex(), closed=False)
        # Nothing is written before it can be signed: a log that is tried often must not grow of it.
        final = signed(witness.sign, head, now, witness.newest_but(head.log), final=True)
        if left.torn:
            os.ftruncate(descriptor, end)
        file = LogFile(path, descriptor, Tail(left.records, digest, end))
        file.append([("resumed", resumed), ("checkpoint", final)])
        closed = chain.Head(path.stem, file.head.sequence, file.head.digest, closed=True)
        witness.hear(closed, {} if seen is None else {seen.sequence: seen.digest})
        _log.info("an audit log that was left open is closed", log=path.stem, unsigned=sequence - left.covered - 1)


def _proved(file: BinaryIO, log: str, witness: Witness, seen: chain.Head | None) -> Verified:
    """A log without final checkpoint that its writer left: chain and signatures are right, and the record is there that
    others have `seen`. Raises NotProved, OSError, Unavailable."""
    wanted = 0 if seen is None else seen.sequence
    left = Reader(log, load_public_key(witness.public_key()), held=True, wanted=wanted).read(file)
    if left.problem is not None:
        raise NotProved(f"record {left.broken_at}: {left.problem}")
    if left.closed:
        raise NotProved(f"record {left.records}: the log was closed before its end")
    if left.records < wanted:
        raise NotProved(f"record {left.records + 1}: the database knows records up to {wanted}, which are gone")
    if seen is not None and left.digests[wanted] != seen.digest:
        raise NotProved(f"record {wanted}: the database knows another record here")
    return left


def _is_old(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > _YOUNG_S


@contextlib.contextmanager
def _held(path: Path) -> Iterator[int | None]:
    """A descriptor to append, with the lock; None if another has it. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield descriptor
    finally:
        os.close(descriptor)
