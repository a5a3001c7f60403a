"""The process that closes a volume when its standard input ends: whoever opened it is gone then (`guard`)."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Final

import structlog

from hsmkms.adopters.refusals import LockFailed
from hsmkms.adopters.volume import mounts
from hsmkms.adopters.volume.choice import backend_of
from hsmkms.adopters.volume.layout import Volume

_LEAVE_S: Final = 20.0
"""The time that a server which lost its wrapper has to end in good order."""
_LOOK_S: Final = 1.0
_NOT_OURS: Final = 1

_log = structlog.get_logger(__name__)


def main(backend: str, generation: str, directory: str, mount: str, connection_file: str) -> None:
    """Wait for the end of standard input, then close the volume; whoever still uses it after a while is killed."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        # A service manager that ends all processes of a unit must not end this one before the server.
        signal.signal(number, signal.SIG_IGN)
    volume = Volume(Path(directory), backend, Path(mount), Path(connection_file), int(generation))
    sys.stdin.buffer.read()
    until = time.monotonic() + _LEAVE_S
    while True:
        try:
            backend_of(volume).close(volume)
        except LockFailed as failed:
            late = time.monotonic() >= until
            users = {*mounts.holders_of(volume.mount), *mounts.holders_of(volume.cipher)} - {_NOT_OURS}
            _log.warning("who opened it is gone, but not all who use it", reason=failed.message, killing=late)
            _wait_for(users, kill=late)
        else:
            return


def _wait_for(users: set[int], *, kill: bool) -> None:
    """Until one of these processes ends, or a second is over."""
    ended = []
    try:
        for pid in users:
            try:
                ended.append(os.pidfd_open(pid))
            except ProcessLookupError:
                return
            if kill:
                signal.pidfd_send_signal(ended[-1], signal.SIGKILL)
        select.select(ended, [], [], _LOOK_S)
    finally:
        for process in ended:
            os.close(process)


if __name__ == "__main__":
    main(*sys.argv[1:])
