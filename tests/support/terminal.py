"""A program under a pseudo-terminal, and somebody who types at it."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

ANSWER_S = 60


class Terminal:
    """A context manager; `shown` is everything that the program wrote, echo included."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        self._command, self._environment, self._directory = command, environment, directory
        self.shown = ""
        self._read = 0

    def __enter__(self) -> Terminal:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            self._command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=dict(self._environment),
            cwd=self._directory,
            start_new_session=True,
            # As at a real terminal: who runs the tests in the background may have them ignore Ctrl-C.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        os.close(slave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._master)

    def expect(self, text: str) -> None:
        """Wait until `text` is shown after what was expected before."""
        deadline = time.monotonic() + ANSWER_S
        while (place := self.shown.find(text, self._read)) < 0:
            assert time.monotonic() < deadline, f"{text!r} did not come:\n{self.shown[self._read :]}"
            assert self._receive(), f"the program ended before {text!r}:\n{self.shown[self._read :]}"
        self._read = place + len(text)

    def type(self, line: str) -> None:
        """Type a line and Enter."""
        self.write(f"{line}\n")

    def write(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def answer(self, prompt: str, line: str) -> None:
        """Type a line when it is asked for."""
        self.expect(f"{prompt}: ")
        self.type(line)

    def end(self) -> int:
        """Wait for the program's end; its exit code."""
        while self._receive():
            pass
        return self.process.wait(ANSWER_S)

    def _receive(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], ANSWER_S)
        assert ready, f"nothing was shown for {ANSWER_S} s:\n{self.shown[self._read :]}"
        try:
            data = os.read(self._master, 65_536)
        except OSError:
            # Linux says EIO when the last program has left the terminal.
            return False
        self.shown += data.decode("utf-8", "replace")
        return bool(data)
