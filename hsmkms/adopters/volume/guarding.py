"""The process that closes a volume when its standard input ends: whoever opened it is gone then (`guard`)."""

from __future__ import annotations

import contextlib
import os
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
from hsmkms.telemetry import logs

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
    logs.configure()
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
            for pid in users if late else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            mounts.wait_for_end(users, _LOOK_S)
        else:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
