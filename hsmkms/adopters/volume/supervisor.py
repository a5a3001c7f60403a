"""`run`: keeps a volume open, with a server on it, for as long as its key may be used.

One thread does everything but read events. It waits for whatever comes first: a signal, the end of the server or of the
file system, an event of the key, or a minute.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import structlog

from hsmkms.adopters.client import Event, KeyServiceClient
from hsmkms.adopters.core.follower import AWAY_LIMIT_S, Condition, Follower, Report
from hsmkms.adopters.core.listener import EventListener
from hsmkms.adopters.volume.backend import Backend
from hsmkms.adopters.volume.layout import Volume, VolumeLock, VolumeRefused
from hsmkms.adopters.volume.operations import drop_older
from hsmkms.adopters.volume.outside import require_inside
from hsmkms.adopters.volume.server import FORWARDED, Server
from hsmkms.adopters.volume.status import Status
from hsmkms.domain.secrets import SecretBytes

LOOK_S: Final = 60.0
_LOOK_AGAIN_S: Final = 5.0
_DEATHS: Final = 3
_DEATHS_WITHIN_S: Final = 300.0

_log = structlog.get_logger(__name__)


class Supervisor:
    """A volume and the server on it, as the follower's resource."""

    def __init__(
        self,
        volume: Volume,
        backend: Backend,
        lock: VolumeLock,
        client: KeyServiceClient,
        server: Server | None,
        *,
        data: Sequence[Path] = (),
        away_limit_s: float = AWAY_LIMIT_S,
        on_report: Callable[[Report], None] | None = None,
    ) -> None:
        self._volume, self._backend, self._lock, self._server = volume, backend, lock, server
        self._client, self._data, self._on_report = client, data, on_report
        self._follower = Follower(client, volume.dek_file, self, away_limit_s=away_limit_s)
        self._filesystem: int | None = None
        self._deaths: deque[float] = deque(maxlen=_DEATHS)
        self._events: queue.SimpleQueue[tuple[Event, ...]] = queue.SimpleQueue()

    @property
    def is_open(self) -> bool:
        """Whether the volume is open with its server on it."""
        serving = self._server is None or self._server.started
        return serving and self._backend.is_open(self._volume)

    def unlock(self, dek: SecretBytes) -> None:
        """Open the volume and start the server on it."""
        if not self._backend.is_open(self._volume):
            # Else an earlier lock stopped the server, but not this. A server that runs has lost its files.
            if self._server is not None:
                self._server.abort()
            self._filesystem = self._backend.open(self._volume, dek, self._lock)
        try:
            require_inside(self._volume.mount, self._server, self._data)
            if self._server is not None:
                self._server.start(self._volume.mount)
        except VolumeRefused:
            self._filesystem = None
            self._backend.close(self._volume)
            raise
        _log.info("open", volume=str(self._volume.directory), server=None if self._server is None else self._server.pid)

    def lock(self) -> None:
        """Stop the server and close the volume."""
        if self._server is not None:
            self._server.stop()
        self._filesystem = None
        self._backend.close(self._volume)

    def run(self) -> int:
        """Until the server ends by itself or is told to; its exit code. Raises AdopterError when it may not start."""
        with _signals() as signalled, _waker() as (woken, wake):
            drop_older(self._volume)
            listener = EventListener(self._client, functools.partial(self._tell, wake))
            try:
                report = self._reported(self._follower.start())
                listener.start()
                return self._watch(report, signalled, woken)
            finally:
                listener.stop()
                self.lock()

    def _watch(self, report: Report, signalled: socket.socket, woken: int) -> int:
        look_at = time.monotonic() + _pause_s(report)
        while True:
            self._wait(look_at, signalled, woken)
            for number in _numbers(signalled):
                if self._server is not None and self._server.pid is not None:
                    self._server.send(number)
                elif number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                    return 0
            looks = self._heard(woken)
            if self._filesystem_died():
                self._after_death()
                looks = True
            elif self._server is not None and self._server.exit_code is not None and self._server.pid is None:
                return self._server.exit_code
            if looks or time.monotonic() >= look_at:
                report = self._reported(self._follower.reconcile())
                look_at = time.monotonic() + _pause_s(report)

    def _wait(self, until: float, signalled: socket.socket, woken: int) -> None:
        """Until a signal, a death, an event, or the time."""
        server = None if self._server is None else self._server.pid
        if self._server is not None and self._server.started and server is None:
            # It ended since it was last looked at: no descriptor would tell.
            return
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as opened:
            selector.register(signalled, selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            for pid in (self._filesystem, server):
                if pid is not None:
                    with contextlib.suppress(ProcessLookupError):
                        ended = os.pidfd_open(pid)
                        opened.callback(os.close, ended)
                        selector.register(ended, selectors.EVENT_READ)
            selector.select(max(0.0, until - time.monotonic()))

    def _heard(self, woken: int) -> bool:
        """Take the events that came; whether the key has to be looked at."""
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 4096)
        looks = False
        with contextlib.suppress(queue.Empty):
            while True:
                events = self._events.get_nowait()
                looks = self._follower.take(events) or not events or looks
        return looks

    def _filesystem_died(self) -> bool:
        return self._filesystem is not None and not self._backend.is_open(self._volume)

    def _after_death(self) -> None:
        """The file system's process was killed, so the server cannot go on. Clear up, and let it be opened anew."""
        _log.error("the file system died", volume=str(self._volume.directory))
        self._deaths.append(time.monotonic())
        if self._server is not None:
            self._server.abort()
        self.lock()
        if len(self._deaths) == _DEATHS and self._deaths[-1] - self._deaths[0] < _DEATHS_WITHIN_S:
            raise VolumeRefused(
                f"The file system of {self._volume.directory} died {_DEATHS} times. See the system log."
            )

    def _reported(self, report: Report) -> Report:
        status = Status.of(report, None if self._server is None else self._server.pid, self._follower.last_event)
        try:
            status.write(self._volume)
        except OSError as error:
            _log.warning("the status cannot be written", reason=error.strerror)
        if self._on_report is not None:
            self._on_report(report)
        return report

    def _tell(self, wake: int, events: tuple[Event, ...]) -> None:
        self._events.put(events)
        with contextlib.suppress(OSError):
            os.write(wake, b"!")


def _pause_s(report: Report) -> float:
    return LOOK_S if report.condition in (Condition.OPEN, Condition.LOCKED) else _LOOK_AGAIN_S


def _numbers(signalled: socket.socket) -> bytes:
    try:
        return signalled.recv(64)
    except BlockingIOError:
        return b""


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """Where the numbers of signals arrive that would end this process otherwise."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in FORWARDED}
    woke = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(woke)
        for number, handler in before.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


@contextlib.contextmanager
def _waker() -> Iterator[tuple[int, int]]:
    """A pipe to wake the watching thread by."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    # Not closed: the thread that reads events may outlive the watching by the length of one request.
    yield reader, writer
