"""The program that works on the open data: started, told to stop, and made to stop."""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hsmkms.adopters.volume.layout import VolumeRefused

FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_QUIT_S: Final = 5.0
_ASK_S: Final = 30.0


class Server:
    """One program with its arguments, run as another user if wished; may be started again and again.

    `stop_signal` asks it to end in good order: for PostgreSQL SIGINT, the fast shutdown. `stop_s` is the time that it
    gets for that; then SIGQUIT (PostgreSQL: immediate shutdown), then SIGKILL.
    """

    def __init__(self, command: Sequence[str], user: str | None, stop_signal: signal.Signals, stop_s: float) -> None:
        self.command, self._user = list(command), user
        self._stop_signal, self._stop_s = stop_signal, stop_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its process, while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def started(self) -> bool:
        """Whether it was started and not stopped again by us; it may have ended by itself."""
        return self._process is not None

    @property
    def exit_code(self) -> int | None:
        """What it ended with, as a shell says it: 128 and the signal's number if it was killed."""
        code = None if self._process is None else self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    def start(self, directory: Path) -> None:
        """Start it in a directory. Raises VolumeRefused."""
        if shutil.which(self.command[0]) is None:
            raise VolumeRefused(f"There is no program {self.command[0]}.")
        # In a process group of its own: a terminal's ^C comes to us, who pass it on once.
        command = [*self.prefix(pdeathsig=self._stop_signal), *self.command]
        try:
            self._process = subprocess.Popen(command, cwd=directory, process_group=0)
        except OSError as error:
            raise VolumeRefused(f"{self.command[0]} cannot be started: {error.strerror}.") from error

    def prefix(self, pdeathsig: signal.Signals | None = None) -> list[str]:
        """What runs a command as the server's user, and ends it when we are killed. Raises VolumeRefused."""
        options = []
        if self._user is not None:
            try:
                group = pwd.getpwnam(self._user).pw_gid
            except KeyError as error:
                raise VolumeRefused(f"There is no user {self._user}.") from error
            options += [f"--reuid={self._user}", f"--regid={group}", "--init-groups"]
        if pdeathsig is not None:
            options += ["--pdeathsig", pdeathsig.name.removeprefix("SIG")]
        return ["setpriv", *options, "--"] if options else []

    def send(self, number: int) -> None:
        """Pass a signal on."""
        if self._process is not None:
            self._process.send_signal(number)

    def stop(self) -> None:
        """End it; it has ended when this returns, and so have its children that stayed in its process group."""
        self._end((self._stop_signal, self._stop_s), (signal.SIGQUIT, _QUIT_S))

    def abort(self) -> None:
        """End it at once: its files are gone."""
        self._end((signal.SIGQUIT, _QUIT_S))

    def _end(self, *asked: tuple[signal.Signals, float]) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        ended = os.pidfd_open(process.pid)
        try:
            for number, wait_s in asked:
                process.send_signal(number)
                if select.select([ended], [], [], wait_s)[0]:
                    break
        finally:
            os.close(ended)
        # Before it is waited for: until then its number, which is the group's, is nobody else's.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def ask(self, *more: str) -> str | None:
        """What the server's program prints with more arguments, or None when it fails. Raises VolumeRefused."""
        try:
            done = subprocess.run(
                [*self.prefix(), *self.command, *more],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd=os.sep,
                check=False,
                timeout=_ASK_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise VolumeRefused(f"{self.command[0]} does not tell its settings: {error}.") from error
        return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None
