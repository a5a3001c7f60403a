"""What happens between two looks of the supervisor, made to happen exactly there."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hsmkms.adopters.core.dek_file import WrappedDekFile
from hsmkms.adopters.volume import operations
from hsmkms.adopters.volume.choice import backend_of
from hsmkms.adopters.volume.layout import Volume, VolumeLock
from hsmkms.adopters.volume.server import Server
from hsmkms.adopters.volume.supervisor import LOOK_S, Supervisor
from tests.support.adopter import Adopter
from tests.support.deployment import create_key
from tests.support.volumes import make, place, processes_in, require_fuse, wait_for


@pytest.fixture
def volume(admin: httpx.Client, database: Adopter, connection_file: Path) -> Iterator[Volume]:
    require_fuse()
    with place() as directory:
        yield make(directory / "one", connection_file, create_key(admin), database.crn("one"))


@contextlib.contextmanager
def supervisor(volume: Volume, server: Server) -> Iterator[Supervisor]:
    with VolumeLock(volume) as lock, operations.client_of(volume) as client:
        yield Supervisor(volume, backend_of(volume, supervised=True), lock, client, server)


class LookedAtTooLate(Server):
    """It has always ended by the time that its number is asked for."""

    @property
    def pid(self) -> int | None:
        if self._process is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return super().pid


def test_a_server_that_ends_between_two_looks_is_not_waited_for(volume: Volume) -> None:
    server = LookedAtTooLate(["sh", "-c", "exit 7"], None, signal.SIGTERM, 5)
    started = time.monotonic()
    with supervisor(volume, server) as watching:
        assert watching.run() == 7
    assert time.monotonic() - started < LOOK_S / 2


def test_a_file_system_that_died_just_before_a_look_takes_its_server_along(volume: Volume) -> None:
    """Else there were two servers, one of them without files."""
    server = Server(["sh", "-c", "while :; do sleep 0.05 & wait $!; done"], None, signal.SIGTERM, 5)
    dek = WrappedDekFile.read(volume.dek_file)
    with supervisor(volume, server) as watching:
        with operations.client_of(volume) as client:
            opened = client.unwrap(dek.key_id, dek.ciphertext, dek.aad).plaintext
        watching.unlock(opened)
        first = server.pid
        (filesystem,) = processes_in(volume, "-nosyslog")
        os.kill(filesystem, signal.SIGKILL)
        wait_for("dead", lambda: not watching.is_open)
        watching.unlock(opened)
        assert server.pid not in (None, first)
        assert first is not None
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)
        assert watching.is_open
        watching.lock()
    assert not processes_in(volume)
