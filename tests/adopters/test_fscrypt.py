"""Volumes that the kernel encrypts, on an ext4 file system made for the test: what is on the medium, who may hold what
open, and what is left after kills."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hsmkms.adopters.core.dek_file import WrappedDekFile
from hsmkms.adopters.refusals import LockFailed
from hsmkms.adopters.volume import operations
from hsmkms.adopters.volume.choice import choose
from hsmkms.adopters.volume.fscrypt import Fscrypt
from hsmkms.adopters.volume.layout import Volume, VolumeRefused, is_locked
from hsmkms.adopters.volume.mounts import mounted_at
from hsmkms.adopters.volume.reencrypt import reencrypt
from hsmkms.adopters.volume.status import describe
from tests.support.adopter import Adopter
from tests.support.deployment import create_key
from tests.support.followed import Act
from tests.support.volumes import (
    Disk,
    Run,
    disk,
    make,
    opened,
    place,
    processes_in,
    require,
    wait_for,
)

MARKER = b"a-row-that-the-medium-must-not-show"
SERVER = ("sh", "-c", 'exec 3>> held; trap "exit 0" TERM; echo $$ > started; while :; do sleep 0.05 & wait $!; done')
DEAF = ("sh", "-c", 'exec 3>> held; trap "" TERM QUIT INT; echo $$ > started; while :; do sleep 0.05; done')


@pytest.fixture(scope="module")
def ext4() -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("fscrypt: only root may mount")
    with place() as directory, disk(directory, 96, "encrypt") as made:
        require(Fscrypt(), Volume(made.place / "x", "fscrypt", made.place, made.place))
        yield made


@pytest.fixture
def volume(
    admin: httpx.Client, database: Adopter, connection_file: Path, ext4: Disk, request: pytest.FixtureRequest
) -> Volume:
    name = request.node.name[-40:]
    return make(ext4.place / name, connection_file, create_key(admin), database.crn(name), backend="fscrypt")


def test_neither_names_nor_content_are_on_the_medium_and_nothing_is_seen_when_closed(
    volume: Volume, ext4: Disk
) -> None:
    name = f"name-{MARKER.decode()}"
    (ext4.place / "plain").write_bytes(MARKER[::-1])
    with opened(volume) as data:
        (data / name).write_bytes(MARKER * 1000)
        assert describe(volume)["condition"] == "open, key not followed"
        assert (volume.cipher / name).samefile(data / name)
    assert (mounted_at(volume.mount), describe(volume)["condition"]) == (None, "closed")
    assert not ext4.holds(MARKER)
    assert ext4.holds(MARKER[::-1])
    (shown,) = volume.cipher.iterdir()
    assert shown.name != name
    with pytest.raises(OSError, match="Required key not available"):
        shown.read_bytes()
    with pytest.raises(OSError, match="Required key not available"):
        (volume.cipher / "more").touch()
    with opened(volume) as data:
        assert (data / name).read_bytes() == MARKER * 1000
    operations.close(volume)


def test_a_file_that_somebody_holds_open_is_told_and_all_others_are_locked(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsmkms.adopters.volume.fscrypt._LEAVE_S", 0.5)
    backend = operations.open_(volume)
    (volume.mount / "one").write_bytes(b"1")
    (volume.mount / "two").write_bytes(b"2")
    with (volume.mount / "one").open("rb") as held:
        with pytest.raises(LockFailed, match=rf"in use by .*\({os.getpid()}\)"):
            backend.close(volume)
        assert not backend.is_open(volume)
        assert held.read() == b"1"
        with pytest.raises(OSError, match=r"Required key|No such file"):
            (volume.mount / "two").read_bytes()
        with pytest.raises(LockFailed, match="in use by"):
            operations.remove(volume)
    backend.close(volume)
    assert mounted_at(volume.mount) is None
    operations.remove(volume)


def test_the_wrapped_dek_of_another_volume(
    volume: Volume, admin: httpx.Client, database: Adopter, ext4: Disk, connection_file: Path
) -> None:
    other = make(ext4.place / "other", connection_file, create_key(admin), database.crn("other"), backend="fscrypt")
    right = volume.dek_file.read_bytes()
    volume.dek_file.write_bytes(other.dek_file.read_bytes())
    with opened(other) as data:
        with pytest.raises(VolumeRefused, match="of another volume"):
            operations.open_(volume)
        (data / "still there").touch()
    assert mounted_at(volume.mount) is None
    volume.dek_file.write_bytes(right)
    with opened(volume) as data:
        (data / "there").touch()


def test_a_killed_wrapper_leaves_nothing_open(volume: Volume) -> None:
    """Its guard waits for the server, which the kernel tells of its wrapper's end."""
    with Run(volume, *SERVER) as run:
        run.wait_until("started", (volume.mount / "started").exists)
        with pytest.raises(VolumeRefused, match="Another process"):
            operations.open_(volume)
        run.process.kill()
        run.process.wait()
        wait_for("closed", lambda: not run.is_open and not is_locked(volume))
    assert not processes_in(volume)
    with pytest.raises(OSError, match="Required key not available"):
        (volume.cipher / "more").touch()


@pytest.mark.slow
def test_a_server_that_does_not_end_is_killed_for_its_lost_wrapper(volume: Volume) -> None:
    with Run(volume, *DEAF) as run:
        run.wait_until("started", (volume.mount / "started").exists)
        run.process.kill()
        run.process.wait()
        wait_for("closed", lambda: not run.is_open and not is_locked(volume))
    assert b'"killing": true' in run.log.read_bytes()


def test_what_two_kills_left_open_is_closed_by_the_next_run(volume: Volume) -> None:
    with Run(volume, *SERVER) as run:
        run.wait_until("started", (volume.mount / "started").exists)
        (guard,) = processes_in(volume, "guarding")
        os.kill(guard, signal.SIGSTOP)
        run.process.kill()
        run.process.wait()
        os.kill(guard, signal.SIGKILL)
        wait_for("unlocked", lambda: not is_locked(volume))
    assert run.is_open
    assert describe(volume)["condition"] == "open, key not followed"
    # What the first server leaves must not be taken for the second.
    wait_for("the first server ended", lambda: not processes_in(volume))
    (volume.mount / "started").unlink()
    with Run(volume, *SERVER) as run:
        run.wait_until("started anew", (volume.mount / "started").exists)
        assert run.end(signal.SIGTERM) == 0
    assert not run.is_open


@pytest.mark.slow
def test_a_lost_guard_is_as_a_lost_file_system(volume: Volume) -> None:
    with Run(volume, *SERVER) as run:
        run.wait_until("started", (volume.mount / "started").exists)
        (guard,) = processes_in(volume, "guarding")
        (volume.mount / "started").unlink()
        os.kill(guard, signal.SIGKILL)
        run.wait_until("another", lambda: processes_in(volume, "guarding") not in ([], [guard]))
        run.wait_until("started anew", (volume.mount / "started").exists)
        assert run.end(signal.SIGTERM) == 0
    assert not run.is_open


def test_a_disabled_key_locks_what_somebody_stands_in_as_soon_as_he_leaves(volume: Volume, act: Act) -> None:
    key = WrappedDekFile.read(volume.dek_file).key_id
    with Run(volume, *SERVER) as run:
        run.wait_until("started", (volume.mount / "started").exists)
        with subprocess.Popen(["sleep", "60"], cwd=volume.mount) as standing:
            act(key, "disable")
            run.wait_until("told", lambda: describe(volume)["condition"] == "LOCK FAILED")
            # The server comes back, although the volume was never shut.
            (volume.mount / "started").unlink()
            act(key, "enable")
            run.wait_until("open again", lambda: describe(volume)["condition"] == "open")
            run.wait_until("started anew", (volume.mount / "started").exists)
            act(key, "disable")
            run.wait_until("told", lambda: describe(volume)["condition"] == "LOCK FAILED")
            assert f"sleep ({standing.pid})" in describe(volume)["reason"]
            standing.kill()
        run.wait_until("locked", lambda: describe(volume)["condition"] == "locked")
        assert not run.is_open
        assert run.end(signal.SIGTERM) == 0


def test_a_new_dek(volume: Volume) -> None:
    with opened(volume) as data:
        (data / "below").mkdir()
        (data / "below" / "row").write_bytes(MARKER)
    current = reencrypt(volume, lambda _: None)
    assert not volume.cipher.exists()
    with opened(current) as data:
        assert (data / "below" / "row").read_bytes() == MARKER


def test_where_files_cannot_be_encrypted_another_is_chosen_and_told(ext4: Disk) -> None:
    there, elsewhere = ext4.place / "new", Path("/proc/new")
    _, reason = choose(Volume(there, "fscrypt", there, there))
    assert reason.startswith("fscrypt (the kernel's AES driver for files is ")
    with pytest.raises(VolumeRefused, match=r"not fscrypt: the file system of /proc is no ext4"):
        choose(Volume(elsewhere, "fscrypt", elsewhere, elsewhere))
