"""Run the application's server so that a stop cuts nobody off.

A connection that the kernel took and no worker has accepted yet would be reset when the listening socket is closed.
So the node first takes no further ones (a socket filter that passes nothing; who tries is told "connection refused" as
soon as the socket is closed), then accepts those that wait, and only then closes it. What is under way is answered;
connections between two requests stay open a moment longer (`api.protocol`).
"""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from typing import Final

import structlog
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

START_FAILED: Final = 1
"""Exit code of a worker that settings or certificates keep from starting; also Python's after an exception."""
_START_AGAIN_S: Final = 10.0
_ANSWERS_WITHIN_S: Final = 60.0
"""A worker that says nothing for so long is replaced. A thread of its own answers, also while the token hangs, but not
before Python has imported all, which takes a busy host 10 s and more: after uvicorn's 5 s workers were killed and
started again for ever."""
_ACCEPTED_WITHIN_S: Final = 2.0
_CLOSED_WITHIN_S: Final = 6.0
"""For a last signature and what is left to be shipped. With the wait for requests it has to be less than the
supervisor's patience."""
_LOOK_S: Final = 0.01
_SO_ATTACH_FILTER: Final = 26
"""asm-generic/socket.h; Python has no name for it."""
_PASS_NOTHING: Final = struct.pack("HBBI", 0x06, 0, 0, 0)
"""One instruction of classic BPF (linux/filter.h): return 0 bytes."""
_UNACKED_AT: Final = 24
"""tcpi_unacked in struct tcp_info, which of a listening socket is how many connections wait to be accepted."""

_log = structlog.get_logger(__name__)


def serve(config: uvicorn.Config) -> None:
    """Serve until a signal, in this process or in workers under it. Exits the process when the address cannot be bound
    or a worker cannot start."""
    listening = config.bind_socket()
    if config.workers > 1:
        _Workers(config, [listening]).run()
        return
    server = _Server(config)
    server.run(sockets=[listening])
    if not server.started:
        sys.exit(1)


def end_with_parent() -> None:
    """Have this worker stop when its parent dies, which could neither replace nor stop it any more and whose successor
    needs the address."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


class _Server(uvicorn.Server):
    """The only process of a node."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept what waits, then as uvicorn's."""
        for one in sockets or ():
            _take_no_more(one)
        deadline = time.monotonic() + _ACCEPTED_WITHIN_S
        while any(map(_waiting, sockets or ())) and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_S)
        await super().shutdown(sockets)


class _Workers(Multiprocess):
    """Workers under a parent, which all accept from one socket."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self._asked_at: dict[Process, float] = {}
        """Whose answer is awaited, and since when."""
        self._told = False
        self._fill_at = 0.0

    def init_processes(self) -> None:
        """Start them all."""
        self._fill()

    def keep_subprocess_alive(self) -> None:
        """Replace who died or hangs. uvicorn's waits for one answer after the other and hears no signal meanwhile; this
        looks at the next turn whether the answer is there."""
        for process in tuple(self.processes):
            if process.process.is_alive() and not self._hangs(process):
                continue
            self._asked_at.pop(process, None)
            process.kill()
            process.join()
            if process.exitcode in (START_FAILED, STARTUP_FAILURE):
                # What was changed since the service started has to be changed again, or the host is short of something;
                # meanwhile each try takes a second of a core from those that serve.
                self._fill_at = time.monotonic() + _START_AGAIN_S
            self.processes.remove(process)
        self._fill()

    def restart_all(self) -> None:
        """As uvicorn's, after SIGHUP."""
        try:
            super().restart_all()
        except OSError as error:
            self._say(error)

    def _fill(self) -> None:
        """Start who is missing. A host that is short of processes, memory or files is asked again at the next turn: an
        error would end this process while those that live go on without it."""
        try:
            while len(self.processes) < self.processes_num and time.monotonic() >= self._fill_at:
                self.processes.append(self._started())
        except OSError as error:
            self._say(error)
        else:
            self._told = False

    def _started(self) -> Process:
        process = Process(self.config, self.sockets)
        try:
            process.start()
        except OSError:
            process.parent_conn.close()
            process.child_conn.close()
            raise
        return process

    def _say(self, error: OSError) -> None:
        if not self._told:
            _log.error("a worker cannot be started, and it is tried again", reason=error.strerror)
        self._told = True

    def _hangs(self, process: Process) -> bool:
        now = time.monotonic()
        try:
            if process not in self._asked_at:
                process.parent_conn.send(b"ping")
                self._asked_at[process] = now
            elif process.parent_conn.poll():
                process.parent_conn.recv()
                del self._asked_at[process]
        except (OSError, EOFError):
            return True
        return now - self._asked_at.get(process, now) > _ANSWERS_WITHIN_S

    def terminate_all(self) -> None:
        """Let them accept what waits, then as uvicorn's."""
        for one in self.sockets:
            _take_no_more(one)
        _wait_until_accepted(self.sockets)
        super().terminate_all()
        # While one process has it open a client would wait for a connection that nobody accepts.
        for one in self.sockets:
            one.close()

    def join_all(self) -> None:
        """Wait until they have ended. Who stands still, or hangs where nothing can interrupt it, is killed."""
        patience = self.config.timeout_graceful_shutdown
        if patience is None:
            super().join_all()
            return
        deadline = time.monotonic() + patience + _CLOSED_WITHIN_S
        for process in self.processes:
            process.process.join(max(0.0, deadline - time.monotonic()))
            if process.process.is_alive():
                _log.error("a worker did not stop and is killed", pid=process.pid)
                process.kill()
                process.join()


def _take_no_more(listening: socket.socket) -> None:
    """No further connection gets into the queue. A kernel that refuses the filter leaves a window of microseconds."""
    program = ctypes.create_string_buffer(_PASS_NOTHING)
    try:
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))
    except OSError:
        return


def _wait_until_accepted(sockets: Sequence[socket.socket]) -> None:
    deadline = time.monotonic() + _ACCEPTED_WITHIN_S
    while any(map(_waiting, sockets)) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)


def _waiting(listening: socket.socket) -> int:
    """How many connections wait to be accepted."""
    information = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED_AT + 4)
    return int.from_bytes(information[_UNACKED_AT:], sys.byteorder)
