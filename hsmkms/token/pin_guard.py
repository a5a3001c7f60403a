"""A PIN that was refused is not tried again by any process of this host until an operator has brought a better one.

A few wrong PINs lock a token, and a worker that is replaced, a service that systemd restarts and a command beside them
are each as good as another try. So whoever was refused leaves a mark in the state directory, and whoever would log in
looks for it first, one process at a time. `hsmkms hsm login` takes it away. The mark holds nothing of the PIN, not even
a digest: PINs are short enough to be guessed from one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hsmkms.errors import TokenBusy

_POLL_S: Final = 0.02


class PinGuard:
    """One token's mark. Without a directory it is kept in this process alone, as for a ceremony."""

    def __init__(self, directory: Path | None, token: str, *, locks: bool = True) -> None:
        """`token` names the token among those of the directory, which is made when it is missing. Without `locks` a
        process logs in whosever turn it is: its parent hangs in it."""
        self.directory = None if directory is None else str(directory)
        self.in_turn = False
        self._locks = locks
        self._reason: str | None = None
        self._mark: Path | None = None
        if directory is not None:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._mark = directory / f"pin-refused-{hashlib.sha256(token.encode()).hexdigest()[:16]}"

    @contextlib.contextmanager
    def turn(self, wait_s: float) -> Iterator[None]:
        """Between looking at the mark and the answer to a PIN no other process of this host logs in.

        Raises TokenBusy when others have not done so after `wait_s` seconds.
        """
        if self._mark is None or not self._locks:
            yield
            return
        descriptor = _open(self._mark.with_name(f"{self._mark.name}.lock"))
        try:
            deadline = time.monotonic() + wait_s
            while not _lock(descriptor):
                # flock(2) waits without a limit or not at all, and who has the lock may hang in the library.
                if time.monotonic() > deadline:
                    raise TokenBusy("Another process is logging in to the HSM. Try again.")
                time.sleep(_POLL_S)
            self.in_turn = True
            yield
        finally:
            self.in_turn = False
            os.close(descriptor)

    @property
    def reason(self) -> str | None:
        """Why the PIN was refused; None when it was not."""
        if self._mark is None:
            return self._reason
        try:
            return self._mark.read_text().strip() or "refused"
        except FileNotFoundError:
            return None
        except PermissionError:
            return "its mark belongs to somebody else"

    def refuse(self, reason: str) -> None:
        """Remember that the token did not take the PIN."""
        self._reason = reason
        if self._mark is not None:
            with os.fdopen(_open(self._mark), "w") as file:
                file.truncate()
                file.write(f"{reason}\n")
                file.flush()
                os.fsync(file.fileno())

    def clear(self) -> None:
        """The token took a PIN."""
        self._reason = None
        if self._mark is not None:
            self._mark.unlink(missing_ok=True)


def _open(path: Path) -> int:
    """A file of the service's own, also when root was here first."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
