"""The journal of one process: events become durable before anybody is answered, many with one fdatasync.

A thread takes all that wait, chains and writes them, waits for the disk once, and tells every waiter. After an error of
the disk the log is left as it is, all who waited are refused, and another log is begun, not before PAUSE_S later. At
intervals a second thread asks database and token for a checkpoint, so that events wait for neither; at the end of a log
the first one does. Without the token there is no signature, and events go on. What is left is closed beside all that.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

import msgspec
import structlog

from hsmkms.audit import chain, event
from hsmkms.audit.logfile import LogFile, prepare, public_key_of_newest
from hsmkms.audit.signer import Signer
from hsmkms.audit.takeover import Takeover
from hsmkms.audit.witness import NOBODY, Witness
from hsmkms.clock import Clock
from hsmkms.domain.ids import new_id
from hsmkms.errors import AuditUnavailable, HsmkmsError, SigningKeyMissing, TokenUnavailable
from hsmkms.telemetry import metrics
from hsmkms.telemetry.logs import place_of

PAUSE_S: Final = 0.5
HANGS_S: Final = 5.0
"""A write that takes longer may never end, so that nobody is to begin to wait for it."""
MOST_AT_ONCE: Final = 1_000

Settle = Callable[[AuditUnavailable | None], None]
"""What tells one who waits: None when the event is durable."""

_log = structlog.get_logger(__name__)
_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Limits:
    """When a checkpoint is signed and when a log is closed; bytes and seconds."""

    checkpoint_s: float
    log_bytes: int
    log_age_s: float


@dataclass(frozen=True, slots=True)
class _Waiting:
    contents: Sequence[bytes]
    settle: Settle
    loop: asyncio.AbstractEventLoop | None = None
    kind: str = "event"


@dataclass(frozen=True, slots=True)
class _Wake:
    """There is something to write that is not in the queue."""


@dataclass(frozen=True, slots=True)
class _Called:
    """Checkpoints can be signed from now on."""

    witness: Witness


@dataclass(frozen=True, slots=True)
class _Ending:
    """The log is to be closed: for good, or `ended` is set then."""

    ended: threading.Event | None


_CANNOT: Final = "What would happen cannot be recorded, so it does not happen. Try again."


class Journal:
    """Writes events; `node` names this host. Nothing is signed before a witness was called."""

    def __init__(self, directory: Path, node: str, limits: Limits, clock: Clock) -> None:
        self._directory = directory
        self._node = node
        self._limits = limits
        self._clock = clock
        self._queue: SimpleQueue[_Waiting | _Wake | _Called | _Ending] = SimpleQueue()
        self._file: LogFile | None = None
        self._signer = Signer(clock, lambda: self._queue.put(_Wake()))
        self._quiet_at = 0
        self._takeover = Takeover(directory, node, clock, self._signer.settle)
        self._opened_at = self._check_at = self._refuse_until = self._full_again_at = 0.0
        self._writing_since: float | None = None
        self._failure: AuditUnavailable | None = None
        self._closed = False
        self.signed = False
        """Whether the log that was written last was closed with a signature."""
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> AuditUnavailable | None:
        """Why the last events could not be written; None if they were."""
        return self._failure

    @property
    def writes(self) -> bool:
        """False while events cannot be written, or the write of some, or of what they wait behind, does not end."""
        return self._failure is None and not self._hangs()

    @property
    def waiting(self) -> int:
        """How many events, or groups of one turn of the event loop, nobody has begun to write."""
        return self._queue.qsize()

    @property
    def lag_s(self) -> float:
        """For how many seconds the write has been under way that events wait for or behind; 0 when there is none."""
        since = self._writing_since
        return 0.0 if since is None else time.monotonic() - since

    def record_all(self, contents: Sequence[bytes], settle: Settle) -> None:
        """Have `settle` called in the running loop when all these events (JSON) are durable, or with why they are not.
        Raises AuditUnavailable."""
        self._put(_Waiting(contents, settle, asyncio.get_running_loop()))

    async def record(self, one: event.Event) -> None:
        """Return when the event is durable. Raises AuditUnavailable."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def settle(error: AuditUnavailable | None) -> None:
            if written.done():
                return
            if error is None:
                written.set_result(None)
            else:
                written.set_exception(error)

        self.record_all((event.encode(one),), settle)
        await written

    def record_blocking(self, one: event.Event) -> None:
        """The same for a thread. Raises AuditUnavailable."""
        self._write_blocking(event.encode(one), "event")

    def retire_blocking(self, logs: Mapping[str, tuple[int, str]]) -> None:
        """Record that whole logs, by their last records, are deleted on purpose. Delete them when the journal is closed
        and `signed`: nobody believes it before. Raises AuditUnavailable."""
        self._write_blocking(_encode(chain.Retired(self._clock(), dict(logs))), "retired")

    def _write_blocking(self, content: bytes, kind: str) -> None:
        written = threading.Event()
        errors: list[AuditUnavailable] = []

        def settle(error: AuditUnavailable | None) -> None:
            if error is not None:
                errors.append(error)
            written.set()

        self._put(_Waiting((content,), settle, kind=kind))
        written.wait()
        if errors:
            raise errors[0]

    def call(self, witness: Witness) -> None:
        """Have checkpoints signed from now on, and what processes left. Raises AuditUnavailable when there can be no
        logs."""
        prepare(self._directory)
        self._queue.put(_Called(witness))

    def dismiss(self) -> None:
        """Write what waits, sign the last checkpoint, close the log. Later events stand on no signature before another
        witness comes."""
        ended = threading.Event()
        self._queue.put(_Ending(ended))
        ended.wait()
        self._takeover.wait()

    def close(self) -> None:
        """The same, but later events are refused."""
        self._closed = True
        self._queue.put(_Ending(None))
        self._thread.join()
        self._signer.close()
        self._takeover.close()

    def _put(self, waiting: _Waiting) -> None:
        if self._closed:
            raise AuditUnavailable("The service is stopping. Try again.")
        if self._hangs():
            raise AuditUnavailable(_CANNOT)
        self._queue.put(waiting)

    def _hangs(self) -> bool:
        since = self._writing_since
        return since is not None and time.monotonic() - since > HANGS_S

    def _run(self) -> None:
        try:
            self._write_all()
        finally:
            error = sys.exception()
            if error is not None:
                # Nobody would ever be answered again. A process that ends is replaced.
                try:
                    _log.critical(
                        "the audit journal met an unexpected error; this process ends and has to be started again",
                        kind=type(error).__name__,
                        place=place_of(error.__traceback__),
                    )
                finally:
                    os._exit(os.EX_SOFTWARE)

    def _write_all(self) -> None:
        while True:
            batch, then = self._take()
            # While nothing can be written nobody may ask, so that only an empty write finds out that it can again.
            error = self._write_timed(batch) if batch or self._failure is not None else None
            _tell(batch, error)
            self._write_checkpoints()
            if isinstance(then, _Called):
                self._begin_to_sign(then.witness)
            ending = isinstance(then, _Ending)
            if self._file is not None:
                if ending or self._is_full(self._file):
                    self._end(self._file)
                elif time.monotonic() >= self._check_at:
                    self._ask_for_checkpoint(self._file)
            if isinstance(then, _Ending):
                if then.ended is None:
                    self._refuse_rest()
                    return
                self._signer.witness = NOBODY
                then.ended.set()

    def _take(self) -> tuple[list[_Waiting], _Called | _Ending | None]:
        """What waits, and what is to be done behind it."""
        batch: list[_Waiting] = []
        try:
            found = self._queue.get(timeout=self._patience_s())
            while not isinstance(found, _Called | _Ending):
                if isinstance(found, _Waiting):
                    batch.append(found)
                if len(batch) == MOST_AT_ONCE:
                    return batch, None
                found = self._queue.get_nowait()
        except Empty:
            return batch, None
        return batch, found

    def _patience_s(self) -> float | None:
        if self._failure is not None:
            return PAUSE_S
        return None if self._file is None else max(0.05, self._check_at - time.monotonic())

    def _refuse_rest(self) -> None:
        try:
            while True:
                late = self._queue.get_nowait()
                if isinstance(late, _Waiting):
                    _tell([late], AuditUnavailable("The service is stopping. Try again."))
        except Empty:
            return

    def _write_timed(self, batch: Sequence[_Waiting]) -> AuditUnavailable | None:
        began, self._writing_since = time.perf_counter(), time.monotonic()
        error = self._write(batch)
        self._writing_since = None
        metrics.audit_written(sum(len(waiting.contents) for waiting in batch), began, durable=error is None)
        return error

    def _write(self, batch: Sequence[_Waiting]) -> AuditUnavailable | None:
        """Make events durable; the error if they are not."""
        if self._failure is not None and time.monotonic() < self._refuse_until:
            return self._failure
        try:
            if self._file is None:
                self._file = self._open()
            self._file.append((waiting.kind, content) for waiting in batch for content in waiting.contents)
        except OSError as error:
            self._abandon(error.strerror or "input or output failed")
            return self._failure
        except HsmkmsError as error:
            self._abandon(error.message)
            return self._failure
        if self._failure is not None:
            _log.info("audit events are written again", log=self._file.log)
            self._failure = None
        return None

    def _abandon(self, reason: str) -> None:
        first = self._failure is None
        self._failure = AuditUnavailable(_CANNOT)
        self._refuse_until = time.monotonic() + PAUSE_S
        if self._file is not None:
            self._file.close()
            self._file = None
        if first:
            _log.error("audit events cannot be written", reason=reason, directory=str(self._directory))

    def _begin_to_sign(self, witness: Witness) -> None:
        """What could not be signed until now is."""
        self._signer.witness = witness
        self._check_at = 0.0
        if self._file is not None:
            self._takeover.begin(witness)
        elif not _may_write(self._directory):
            # The first log is begun with the first event; that it cannot be is known before, or who asks whether this
            # service is ready hears yes until then.
            self._abandon("Nothing can be made in the directory")

    def _open(self) -> LogFile:
        """Begin a log. Raises OSError, TokenUnavailable."""
        now = self._clock()
        log = f"{now:%Y%m%dT%H%M%S}-{self._node}-{new_id()[:8]}"
        opened = chain.Opened(log, self._node, now, self._public_key())
        own = LogFile.create(self._directory, log, _encode(opened))
        # The first checkpoint at once: from then on the others know that there is this log.
        self._opened_at = self._check_at = self._full_again_at = time.monotonic()
        self._quiet_at = 0
        self._signer.begin(log)
        if self._signer.witness is not NOBODY:
            self._takeover.begin(self._signer.witness)
        return own

    def _public_key(self) -> str:
        """PEM. A token has one audit key, so that the newest log knows it while the token is away. Raises OSError,
        TokenUnavailable."""
        try:
            return self._signer.witness.public_key().decode()
        except SigningKeyMissing:
            raise
        except TokenUnavailable:
            known = public_key_of_newest(self._directory)
            if known is None:
                raise
            return known

    def _is_full(self, file: LogFile) -> bool:
        """Whether to end the log now; what failed is not tried again at once."""
        now = time.monotonic()
        old = now - self._opened_at >= self._limits.log_age_s
        return (old or file.size >= self._limits.log_bytes) and now >= self._full_again_at

    def _end(self, file: LogFile) -> None:
        """Close the log. What fails is tried again after the next interval; events go on."""
        self._check_at = self._full_again_at = time.monotonic() + self._limits.checkpoint_s
        with self._busy():
            self._signer.settle()
        self._write_checkpoints()
        if self._file is not file:
            return
        self.signed = False
        try:
            with self._busy():
                file.end(self._signer.checkpoint(file.head, final=True))
            self.signed = True
        except HsmkmsError as error:
            metrics.AUDIT_CHECKPOINTS.labels("failure").inc()
            _log.warning("an audit log could not be closed", log=file.log, reason=error.message)
            if not self._closed:
                return
        except OSError as error:
            self._abandon(error.strerror or "input or output failed")
            return
        if self.signed:
            with self._busy():
                self._signer.tell_of_end(file.head)
        file.close()
        self._file = None

    def _ask_for_checkpoint(self, file: LogFile) -> None:
        """Have the newest record signed, unless it is a checkpoint or the last one is not written yet."""
        self._check_at = time.monotonic() + self._limits.checkpoint_s
        self._takeover.go_on(self._signer.witness)
        if self._quiet_at != file.head.sequence:
            self._signer.ask(file.head)

    def _write_checkpoints(self) -> None:
        """Write what has been signed meanwhile."""
        if self._file is None:
            return
        try:
            for content in self._signer.ready(self._file.log):
                with self._busy():
                    self._file.append([("checkpoint", content)])
                self._quiet_at = self._file.head.sequence
        except OSError as error:
            self._abandon(error.strerror or "input or output failed")

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """While something is done that no event asked for, but those that come wait behind."""
        self._writing_since = time.monotonic()
        try:
            yield
        finally:
            self._writing_since = None


def _may_write(directory: Path) -> bool:
    """False also on a file system that is read-only."""
    there = next(one for one in (directory, *directory.parents) if one.exists())
    return os.access(there, os.W_OK | os.X_OK)


def _tell(batch: Sequence[_Waiting], error: AuditUnavailable | None) -> None:
    """Each who waits; those of one loop with a single call, unless it has ended: then nobody waits any more."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Settle]] = {}
    for waiting in batch:
        if waiting.loop is None:
            waiting.settle(error)
        else:
            by_loop.setdefault(waiting.loop, []).append(waiting.settle)
    for loop, settles in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle_all, settles, error)


def _settle_all(settles: Sequence[Settle], error: AuditUnavailable | None) -> None:
    for settle in settles:
        settle(error)
