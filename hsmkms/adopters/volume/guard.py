"""Has a volume closed once whoever opened it is gone: for backends in the kernel, which would keep it open."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

from hsmkms.adopters.refusals import LockFailed
from hsmkms.adopters.volume.layout import Volume, VolumeLock

PROGRAM: Final = "hsmkms.adopters.volume.guarding"
_END_S: Final = 30.0


class Guard:
    """The process `guarding`, as the one that opens the volume knows it. To be started before the volume is opened.

    It hears of our end by that of a pipe, which no kill prevents, and holds the volume's lock until the data is shut.
    """

    def __init__(self, volume: Volume, lock: VolumeLock) -> None:
        paths = (volume.directory, volume.mount, volume.connection_file)
        command = [sys.executable, "-m", PROGRAM, volume.backend, str(volume.generation), *map(str, paths)]
        self._writer: int | None
        reader, self._writer = os.pipe()
        # No other program that we start gets the writing end.
        self._process = subprocess.Popen(command, stdin=reader, pass_fds=[lock.fd], start_new_session=True, cwd=os.sep)
        os.close(reader)
        self.pid = self._process.pid

    @property
    def lives(self) -> bool:
        """Whether it would notice our end."""
        return self._process.poll() is None

    def end(self) -> None:
        """Let go of it when the volume is closed; it has ended when this returns. Raises LockFailed."""
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired as error:
            raise LockFailed(f"The guard (process {self.pid}) does not end.") from error
