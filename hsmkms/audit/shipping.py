"""Bring audit logs to other places as they grow. The files decide what happened; a sink that is slow or dead keeps
nobody waiting and loses nothing: it goes on behind the last record that it took, for as long as the files are there.

One process of a host ships to a sink, the one that holds its lock, and all logs of the directory. What is between the
last note of the cursor and a crash goes twice; a record is known by its log and number.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

from hsmkms.audit import chain
from hsmkms.audit.logfile import ends_closed, logs_in, prepare
from hsmkms.errors import SinkFailed
from hsmkms.telemetry import metrics
from hsmkms.telemetry.logs import place_of

CURSORS: Final = "sinks"
LOOK_S: Final = 0.2
LOCK_S: Final = 1.0
NOTE_S: Final = 1.0
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
AT_ONCE: Final = 1 << 19
_LOG: Final = re.compile(r"[A-Za-z0-9-]{1,120}")
"""Names that fit a PROCID of syslog and a header of HTTP, as all of ours do."""

_log = structlog.get_logger(__name__)


class Sink(Protocol):
    """A place to ship to. `settles_s`: how long it may take until it is known that what was sent did not arrive."""

    name: str
    settles_s: float

    def send(self, log: str, lines: Sequence[bytes]) -> None:
        """Whole records of one log in their order, without line ends. Raises SinkFailed, OSError."""

    def check(self) -> None:
        """Raise SinkFailed or OSError when the place is known to be gone."""

    def close(self) -> None:
        """Let go of it."""


class _Cursor:
    """How far each log was shipped, on disk. Offsets are bytes; logs that were shipped whole are names in a list that
    only grows while the process runs."""

    def __init__(self, directory: Path, name: str) -> None:
        self._offsets_path = directory / f"{name}.json"
        self._done_path = directory / f"{name}.done"
        self.offsets: dict[str, int] = {}
        self.done: set[str] = set()

    def load(self) -> None:
        """From disk. Raises OSError."""
        self.offsets = self._load()
        self.done = set(self._done_path.read_text().split()) if self._done_path.exists() else set()

    def note(self) -> None:
        """Put the offsets on disk. Raises OSError."""
        temporary = self._offsets_path.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(self.offsets))
        temporary.replace(self._offsets_path)

    def finish(self, log: str) -> None:
        """A closed log was shipped whole. Raises OSError."""
        with self._done_path.open("a") as file:
            file.write(f"{log}\n")
        self.done.add(log)
        self.offsets.pop(log, None)

    def prune(self, there: set[str]) -> None:
        """Forget closed logs that were taken away since. Raises OSError."""
        self.done &= there
        temporary = self._done_path.with_suffix(".new")
        temporary.write_text("".join(f"{log}\n" for log in sorted(self.done)))
        temporary.replace(self._done_path)

    def _load(self) -> dict[str, int]:
        try:
            return msgspec.json.decode(self._offsets_path.read_bytes(), type=dict[str, int])
        except FileNotFoundError:
            return {}
        except msgspec.MsgspecError:
            # As a power cut may leave it: from the beginning then, and twice rather than not at all.
            return {}


def shipped_whole(directory: Path, name: str) -> set[str]:
    """The closed logs of a directory that a sink has got to their ends. Raises OSError."""
    cursor = _Cursor(directory / CURSORS, name)
    cursor.load()
    return cursor.done


class Shipper:
    """Ships to one sink, in a thread of its own, which alone writes its attributes.

    `shipped`: records that were sent. `failures`: how often the sink did not take them. `dropped_logs`: logs that were
    taken away before they were shipped whole. `behind_bytes`: what it has not taken yet, by the files' sizes as of the
    last try. `failing`: why not, or None. `ships`: whether it is this process that does it.
    """

    def __init__(self, directory: Path, sink: Sink) -> None:
        self.name = sink.name
        self.shipped = self.failures = self.dropped_logs = self.behind_bytes = 0
        self.failing: str | None = None
        self.ships = False
        self._directory = directory
        self._place = directory / CURSORS
        self._sink = sink
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"audit-sink-{sink.name}", daemon=True)
        self._sent: deque[tuple[float, str, int]] = deque()
        self._reached: dict[str, int] = {}
        # The sizes of logs that end in no whole record, behind which there is nothing to ship.
        self._torn: dict[str, int] = {}
        self._noted_at = 0.0
        self._cursor = _Cursor(self._place, sink.name)
        # There from the start, with 0: an alert on what rises needs a first value.
        self._records = metrics.AUDIT_SINK_RECORDS.labels(sink.name)
        self._failures = metrics.AUDIT_SINK_FAILURES.labels(sink.name)
        self._dropped_logs = metrics.AUDIT_SINK_DROPPED.labels(sink.name)
        self._behind = metrics.AUDIT_SINK_BEHIND.labels(sink.name)

    def start(self) -> None:
        """Begin to ship. Raises AuditUnavailable."""
        prepare(self._place)
        self._thread.start()

    def close(self, patience_s: float = 3.0) -> None:
        """Ship what is left, but do not wait for a sink that hangs."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(patience_s)

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                self._take_turn()
                return
            except Exception as error:  # noqa: BLE001  # told and counted
                # Of the cursor's files, as on a full disk: the sink itself is not even asked.
                self._complain(error)
            if self._stop.wait(pause_s):
                return
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _take_turn(self) -> None:
        """Wait for the lock, then ship until the stop."""
        descriptor = os.open(self._place / f"{self.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not self._locked(descriptor):
                # Who has it tells.
                self._tell_behind(0)
                if self._stop.wait(LOCK_S):
                    return
            self.ships = True
            self._cursor.load()
            self._reached = dict(self._cursor.offsets)
            paths = self._logs()
            self._measure(paths)
            self._cursor.prune(set(paths))
            self._serve()
        finally:
            self.ships = False
            os.close(descriptor)

    def _logs(self) -> dict[str, Path]:
        """What there is to ship; files of other names are not ours."""
        named = {path.name.removesuffix(chain.SUFFIX): path for path in logs_in([self._directory])}
        return {log: path for log, path in named.items() if _LOG.fullmatch(log)}

    def _locked(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _serve(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            # Asked first, so that what was written before the stop is in the last round.
            stopping = self._stop.is_set()
            try:
                moved = self._round()
            except Exception as error:  # noqa: BLE001  # told and counted
                # Also of a kind that nobody has thought of: a thread that ended would ship nothing any more.
                self._failed(error)
                if stopping or self._stop.wait(pause_s):
                    break
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            if moved:
                pause_s = FIRST_PAUSE_S
                self._recovered()
            elif stopping:
                break
            else:
                self._stop.wait(LOOK_S)
        self._sink.close()
        with contextlib.suppress(OSError):
            self._cursor.note()

    def _failed(self, error: Exception) -> None:
        # Whatever is not known to have arrived goes again.
        self._sent.clear()
        self._torn.clear()
        self._reached = dict(self._cursor.offsets)
        self._sink.close()
        self._measure(self._logs())
        self._complain(error)

    def _complain(self, error: Exception) -> None:
        self.failures += 1
        self._failures.inc()
        reason = _reason(error)
        before, self.failing = self.failing, reason
        if before is None:
            _log.warning("an audit sink takes no records", sink=self.name, reason=reason)

    def _recovered(self) -> None:
        before, self.failing = self.failing, None
        if before is not None:
            _log.info("an audit sink takes records again", sink=self.name, behind_bytes=self.behind_bytes)

    def _measure(self, paths: dict[str, Path]) -> None:
        """How far the sink is behind. Raises OSError."""
        behind = 0
        for log, path in paths.items():
            size = path.stat().st_size
            if log not in self._cursor.done and self._torn.get(log) != size:
                behind += max(0, size - self._reached.get(log, 0))
        self._tell_behind(behind)

    def _tell_behind(self, behind: int) -> None:
        self.behind_bytes = behind
        self._behind.set(behind)

    def _round(self) -> bool:
        """Send what is new, at most AT_ONCE bytes of each log; whether there was anything."""
        paths = self._logs()
        # Before the sink is asked: it may keep us waiting.
        self._measure(paths)
        self._sink.check()
        self._settle()
        for log in self._reached.keys() - paths.keys():
            self._dropped(log)
        moved = False
        for log, path in paths.items():
            if log in self._cursor.done:
                continue
            size, reached = path.stat().st_size, self._reached.get(log, 0)
            if size < reached:
                self._begin_again(log)
                moved = True
            elif reached < size:
                sent = self._send(log, path, reached)
                moved |= sent
                if not sent:
                    self._torn[log] = size
            elif self._cursor.offsets.get(log, 0) == size and ends_closed(path):
                self._cursor.finish(log)
                self._reached.pop(log, None)
        self._measure(paths)
        if time.monotonic() - self._noted_at >= NOTE_S:
            self._noted_at = time.monotonic()
            self._cursor.note()
        return moved

    def _send(self, log: str, path: Path, reached: int) -> bool:
        """Whether there was anything to do."""
        with path.open("rb") as file:
            if reached and os.pread(file.fileno(), 1, reached - 1) != b"\n":
                self._begin_again(log)
                return True
            file.seek(reached)
            text = file.read(AT_ONCE)
        # A record longer than that has no end in it and is read whole; a torn one has none at all.
        end = text.rfind(b"\n") + 1
        if not end and len(text) == AT_ONCE:
            text = path.read_bytes()[reached:]
            end = text.find(b"\n") + 1
        if not end:
            return False
        lines = text[: end - 1].split(b"\n")
        self._sink.send(log, lines)
        self.shipped += len(lines)
        self._records.inc(len(lines))
        self._reached[log] = reached + end
        self._sent.append((time.monotonic(), log, reached + end))
        self._settle()
        return True

    def _begin_again(self, log: str) -> None:
        """What was shipped last is not there any more: a disk may lose what could be read before it was durable."""
        self._sent = deque(one for one in self._sent if one[1] != log)
        self._reached[log] = 0
        self._cursor.offsets.pop(log, None)
        _log.error("an audit log lost records that were shipped; it is shipped again", sink=self.name, log=log)

    def _settle(self) -> None:
        """Believe that what was sent long enough ago has arrived."""
        until = time.monotonic() - self._sink.settles_s
        while self._sent and self._sent[0][0] <= until:
            _, log, offset = self._sent.popleft()
            self._cursor.offsets[log] = offset

    def _dropped(self, log: str) -> None:
        self.dropped_logs += 1
        self._dropped_logs.inc()
        self._reached.pop(log)
        self._cursor.offsets.pop(log, None)
        _log.error("an audit log was taken away before it was shipped whole", sink=self.name, log=log)


def _reason(error: Exception) -> str:
    """Without the words of an exception that nobody has thought of: they may quote what was sent."""
    if isinstance(error, SinkFailed):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__} at {place_of(error.__traceback__)}"
