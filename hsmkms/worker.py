"""One worker process: it answers that it lives at once, opens its rooms beside that, and hears commands of the host."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import traceback
from contextlib import ExitStack
from functools import partial
from typing import Final

import structlog
from starlette.types import ASGIApp

from hsmkms.api.serving import START_FAILED, end_with_parent
from hsmkms.api.waiting import WaitingApp
from hsmkms.application import application_of, closed_application_of, open_worker
from hsmkms.control import Answer, LoginRequest, Request, hearing
from hsmkms.domain.secrets import SecretText
from hsmkms.errors import HsmkmsError
from hsmkms.opening import Pins
from hsmkms.settings import Settings, load
from hsmkms.telemetry import metrics
from hsmkms.wiring import Rooms, configure_logs, journal_of, pin_of

_AGAIN_S: Final = 1.0
_JOIN_S: Final = 5.0
_YOUNG_OBJECTS: Final = 10_000
_M_ARENA_MAX: Final = -8
"""malloc.h of glibc; Python has no name for it."""
_ARENAS: Final = 2

_log = structlog.get_logger(__name__)


def application() -> ASGIApp:
    """What uvicorn calls in each process."""
    _share_arenas()
    end_with_parent()
    try:
        settings = load()
        pins = pin_of(settings)
    except HsmkmsError as error:
        # They were right when the service was started.
        configure_logs()
        _log.error("this process cannot start", reason=error.message)
        sys.exit(START_FAILED)
    configure_logs(settings)
    return Worker(settings, pins).app


class Worker:
    """Opens the rooms as soon as token and database let it, and closes them again."""

    def __init__(self, settings: Settings, pins: Pins) -> None:
        self._settings, self._pins = settings, pins
        self._rooms: Rooms | None = None
        self._stopping = False
        self._again = threading.Event()
        self._thread = threading.Thread(target=self._run, name="opening", daemon=True)
        self._control = ExitStack()
        self._journal = journal_of(settings)
        self.app = WaitingApp(self._start, self._close, partial(closed_application_of, self._journal))

    def _start(self) -> None:
        self._control.enter_context(hearing(self._settings.state_dir, self._answer))
        self._thread.start()

    def _close(self) -> None:
        self._control.close()
        self._stopping = True
        self._again.set()
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            # It hangs in the token's library, as a signature would. The process ends all the same, and another takes
            # its log over.
            return
        if self._rooms is not None:
            self._rooms.close.close()
        self._journal.close()

    def _run(self) -> None:
        try:
            self._open()
        finally:
            # Also of an error behind the open rooms: nobody would ever be let in. A process that ends is replaced.
            if sys.exception() is not None and not self._stopping:
                try:
                    traceback.print_exc()
                finally:
                    os._exit(os.EX_SOFTWARE)

    def _open(self) -> None:
        told = ""
        metrics.WORKERS_WAITING.set(1)
        while not self._stopping:
            try:
                rooms = open_worker(self._settings, self._pins, self._journal)
            except HsmkmsError as error:
                if error.message != told:
                    _log.error("this process cannot serve yet", reason=error.message)
                told = error.message
                self.app.settle()
                self._again.wait(_AGAIN_S)
                self._again.clear()
            else:
                self._rooms = rooms
                metrics.WORKERS_WAITING.set(0)
                _settle_memory()
                self.app.open(*application_of(rooms, self._settings))
                if told:
                    _log.warning("this process serves now")
                return

    def _answer(self, request: Request) -> Answer:
        """Of the control socket."""
        if isinstance(request, LoginRequest):
            self._take_pin(request.part, SecretText(request.pin))
        if self._rooms is None:
            return {"serves": False}
        return {"serves": True, "tokens": self._rooms.token.status()}

    def _take_pin(self, part: str, pin: SecretText) -> None:
        self._pins.take(part, pin)
        token = None if self._rooms is None else self._rooms.token.parts.get(part)
        if token is None:
            self._again.set()
            return
        try:
            token.take_pin(pin)
        except HsmkmsError as error:
            _log.warning("the token does not answer after a login", part=part, reason=error.message)


def _share_arenas() -> None:
    """Have all threads to come allocate from two arenas. glibc makes up to eight a core, and what threads that were in
    trouble together leave in each is seldom given back: a worker grew by 20 to 46 MiB in half an hour of faults."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, _ARENAS)


def _settle_memory() -> None:
    """Have the garbage collector leave alone what stays for good: to look through it holds up every request for tens of
    milliseconds. And have it look only after more objects than the requests of one turn are made of."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
