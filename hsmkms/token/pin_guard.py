"""A PIN that was refused is not tried again by any process of this host until an operator has brought a better one.

A few wrong PINs lock a token, and a worker that is replaced, a service that systemd restarts and a command beside them
are each as good as another try. So whoever was refused leaves a mark in the state directory, and whoever would log in
looks for it first, one process at a time. `hsmkms hsm login` takes it away. The mark holds nothing of the PIN, not even
a digest: PINs are short enough to be guessed from one.

Commands leave a mark of their own, which stops commands alone: their PIN may be another than the service's, such as a
typing error in somebody's environment. A mark of the service stops everybody.

It is made before the PIN is tried, and says then that there is no answer yet: where it cannot be written nothing is
tried, and a process that is killed before it knows the answer leaves one that allows one more try; further ones only
while the token counts no wrong PIN. An answer that may be a refusal in other words counts as none.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hsmkms.errors import PinNotTried, TokenBusy

_POLL_S: Final = 0.02
_BEGUN: Final = "no answer to try "
_TRIES: Final = 2
NO_ANSWER: Final = f"{_BEGUN}{_TRIES}"
UNREADABLE: Final = "its mark cannot be read"
_NO_REFUSALS: Final = (NO_ANSWER, UNREADABLE)


class PinGuard:
    """One token's mark. Without a directory it is kept in this process alone, as for a ceremony."""

    def __init__(self, directory: Path | None, token: str, *, by_command: bool = False, locks: bool = True) -> None:
        """`token` names the token among those of the directory, which is made when it is missing; `by_command` says
        that this is no process of the service. Without `locks` a
        process logs in whosever turn it is, as a part of its parent's try: that one hangs in it."""
        self.directory = None if directory is None else str(directory)
        self.by_command = by_command
        self._locks = locks
        self._turn: int | None = None
        self._turn_lock = threading.Lock()
        self._reason: str | None = None
        # Whose marks count here; the last is this process's own.
        self._marks: list[Path] = []
        if directory is not None:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            name = f"pin-refused-{hashlib.sha256(token.encode()).hexdigest()[:16]}"
            self._marks = [directory / name, directory / f"{name}-by-command"][: 1 + by_command]

    @contextlib.contextmanager
    def turn(self, wait_s: float) -> Iterator[None]:
        """Between looking at the mark and the answer to a PIN no other process of this host logs in.

        Raises TokenBusy when others have not done so after `wait_s` seconds, PinNotTried where nobody can take turns.
        """
        if not self._marks or not self._locks:
            yield
            return
        with _noted():
            descriptor = _open_lock(self._marks[0].with_name(f"{self._marks[0].name}.lock"))
        try:
            deadline = time.monotonic() + wait_s
            while not _lock(descriptor):
                # flock(2) waits without a limit or not at all, and who has the lock may hang in the library.
                if time.monotonic() > deadline:
                    raise TokenBusy("Another process is logging in to the HSM. Try again.")
                time.sleep(_POLL_S)
            self._turn = descriptor
            yield
        finally:
            with self._turn_lock:
                if self._turn == descriptor:
                    self._turn = None
                os.close(descriptor)

    @property
    def in_turn(self) -> bool:
        """Whether this process has the turn."""
        return self._turn is not None

    def leave_turn(self) -> None:
        """Let others log in, also while a thread of this process that is not waited for any more hangs in it: its try
        was noted."""
        with self._turn_lock:
            if self._turn is not None:
                fcntl.flock(self._turn, fcntl.LOCK_UN)
                self._turn = None

    @property
    def reason(self) -> str | None:
        """Why the PIN is not tried again: it was refused, NO_ANSWER or UNREADABLE. None when it may be tried."""
        return self._reason or next((found for found in map(_reason, self._marks) if found is not None), None)

    @property
    def refusal(self) -> str | None:
        """The reason if it is that the PIN was refused."""
        reason = self.reason
        return None if reason in _NO_REFUSALS else reason

    def require_notable(self) -> None:
        """Raise PinNotTried where a try could not be noted."""
        for mark in self._marks[-1:]:
            with _noted():
                _write(mark, _read(mark))

    def begin(self) -> None:
        """Note that the PIN is about to be tried. An operator's try leaves the mark of a refusal as it is. Raises
        PinNotTried."""
        for mark in self._marks[-1:]:
            with _noted():
                begun = _begun(_read(mark))
                if begun is not None:
                    _write(mark, f"{_BEGUN}{begun + 1}")

    def answered(self) -> None:
        """The token answered, and did not refuse the PIN. Raises PinNotTried."""
        for mark in self._marks[-1:]:
            with _noted():
                if _begun(_read(mark)) is not None:
                    mark.unlink(missing_ok=True)

    def refuse(self, reason: str) -> None:
        """Remember that the token did not take the PIN. Raises PinNotTried."""
        if not self._marks:
            self._reason = reason
        for mark in self._marks[-1:]:
            with _noted():
                _write(mark, reason)

    def clear(self) -> None:
        """The token took an operator's PIN. Raises PinNotTried."""
        self._reason = None
        for mark in self._marks:
            with _noted():
                mark.unlink(missing_ok=True)


def _reason(mark: Path) -> str | None:
    try:
        found = mark.read_text().strip()
    except FileNotFoundError:
        return None
    except PermissionError:
        return "its mark belongs to somebody else"
    except OSError:
        return UNREADABLE
    begun = _begun(found)
    if begun is None:
        return found
    return NO_ANSWER if begun >= _TRIES else None


def _begun(mark: str) -> int | None:
    """How many tries have had no answer; None if a mark says that one was refused. One that is empty says nothing: its
    writer was stopped before it tried."""
    if not mark:
        return 0
    return int(mark.removeprefix(_BEGUN)) if mark.startswith(_BEGUN) else None


@contextlib.contextmanager
def _noted() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PinNotTried(
            f"The token's PIN is not tried, because that cannot be noted: {error.strerror}. "
            "Make tokens-refused in the state directory writable."
        ) from error


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def _write(path: Path, text: str) -> None:
    """Over what is there and not after emptying it: a disk without room takes that too."""
    with os.fdopen(_open(path), "w") as file:
        file.write(f"{text}\n")
        file.flush()
        file.truncate()
        os.fsync(file.fileno())


def _open_lock(path: Path) -> int:
    """One that is there need not be written, as on a file system that became read-only."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return _open(path)


def _open(path: Path) -> int:
    """A file of the service's own, also when root was here first."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def _lock(descriptor: int) -> bool:
    with _noted():
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
