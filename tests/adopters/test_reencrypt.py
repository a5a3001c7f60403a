"""A volume with a new DEK: everything is there, under the new one alone, also after an interruption."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hsmkms.adopters.core.dek_file import WrappedDekFile
from hsmkms.adopters.volume import operations
from hsmkms.adopters.volume.layout import Volume, VolumeRefused, is_locked
from hsmkms.adopters.volume.reencrypt import Progress, reencrypt
from tests.support.adopter import Adopter
from tests.support.deployment import PROGRAM, create_key
from tests.support.small_disk import small_file_system
from tests.support.volumes import make, opened, place, require_fuse, wait_for

FILES = 40


class _PulledPlug(Exception):
    """The copy ends here."""


@pytest.fixture
def volume(admin: httpx.Client, database: Adopter, connection_file: Path) -> Iterator[Volume]:
    require_fuse()
    with place() as directory:
        volume = make(directory / "one", connection_file, create_key(admin), database.crn("one"))
        with opened(volume) as data:
            (data / "empty").mkdir(mode=0o750)
            (data / "deep" / "er").mkdir(parents=True)
            for number in range(FILES):
                (data / "deep" / f"{number:02}").write_bytes(os.urandom(1000) * number)
            (data / "deep" / "er" / "link").symlink_to("../07")
            (data / "deep" / "hard").hardlink_to(data / "deep" / "08")
            (data / "deep" / "09").chmod(0o640)
            (data / ("n" * 240)).write_bytes(b"a long name")
        yield volume


def listing(data: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Mode, time, links and content of everything."""
    found = {}
    for path in sorted(data.rglob("*")):
        status = path.lstat()
        content = os.fsencode(path.readlink()) if path.is_symlink() else b"" if path.is_dir() else path.read_bytes()
        links = 0 if path.is_dir() else status.st_nlink
        found[str(path.relative_to(data))] = (status.st_mode, status.st_mtime_ns, links, content)
    return found


def test_an_interrupted_exchange_is_taken_up_and_leaves_one_dek(volume: Volume, admin: httpx.Client) -> None:
    with opened(volume) as data:
        before = listing(data)
    old, files = WrappedDekFile.read(volume.dek_file), sorted(volume.cipher.rglob("*"))

    def pull_the_plug(progress: Progress) -> None:
        if progress.files == FILES // 2:
            raise _PulledPlug

    with pytest.raises(_PulledPlug):
        reencrypt(volume, pull_the_plug)
    assert Volume.read(volume.directory) == volume
    # Whoever goes on in between changes data; the copy has to follow.
    with opened(volume) as data:
        assert listing(data) == before
        (data / "deep" / "00").write_bytes(b"changed meanwhile")
        (data / "deep" / "01").unlink()
        before = listing(data)
    told: list[Progress] = []
    current = reencrypt(volume, lambda progress: told.append(Progress(**vars(progress))))
    assert told[-1].files == told[-1].all_files == len(before)
    assert told[-1].bytes == told[-1].all_bytes
    assert 0 < told[-1].kept < FILES
    assert Volume.read(volume.directory) == current
    with opened(current) as data:
        assert listing(data) == before
    new = WrappedDekFile.read(current.dek_file)
    assert (new.resource_crn, new.key_id) == (old.resource_crn, old.key_id)
    assert new.dek_id != old.dek_id
    assert not any(path.exists() for path in (volume.dek_file, volume.cipher, *files))
    with operations.client_of(current) as client:
        plaintexts = {client.unwrap(dek.key_id, dek.ciphertext, dek.aad).plaintext.reveal() for dek in (old, new)}
    assert len(plaintexts) == 2
    # And again, to a third one.
    assert reencrypt(current, lambda _: None).generation == 3
    operations.remove(Volume.read(volume.directory))
    assert admin.get(f"/keys/{old.key_id}/registrations").json()["resources"] == []


def test_killed_in_the_middle_it_goes_on(volume: Volume) -> None:
    with opened(volume) as data:
        (data / "large").write_bytes(os.urandom(1 << 20) * 150)
        before = listing(data)
    command = [str(PROGRAM), "adopt", "volume", "reencrypt", str(volume.directory)]
    following = volume.directory / "cipher-2"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        wait_for("copying", lambda: following.exists() and sum(1 for _ in following.rglob("*")) > 8)
        process.kill()
    assert Volume.read(volume.directory) == volume
    wait_for("closed", lambda: not is_locked(volume))
    told: list[Progress] = []
    current = reencrypt(volume, lambda progress: told.append(Progress(**vars(progress))))
    assert told[-1].kept > 0
    with opened(current) as data:
        assert listing(data) == before


def test_a_full_disk_in_the_middle_leaves_the_volume_as_it_was(
    admin: httpx.Client, database: Adopter, connection_file: Path, tmp_path: Path
) -> None:
    require_fuse()
    with small_file_system(tmp_path, "12m") as small:
        volume = make(small / "one", connection_file, create_key(admin), database.crn("one"))
        with opened(volume) as data:
            for number in range(8):
                (data / str(number)).write_bytes(os.urandom(1 << 20))
            before = listing(data)
        command = [str(PROGRAM), "adopt", "volume", "reencrypt", str(volume.directory)]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == 1
        assert done.stderr.decode().startswith("hsmkms: No space left on device: ")
        assert len(done.stderr.splitlines()) == 1
        assert Volume.read(volume.directory) == volume
        with opened(volume) as data:
            assert listing(data) == before
        subprocess.run(["mount", "-o", "remount,size=40m", str(small)], check=True)
        current = reencrypt(volume, lambda _: None)
        with opened(current) as data:
            assert listing(data) == before


def test_what_a_kill_after_the_exchange_left_is_taken_away(volume: Volume) -> None:
    """The old DEK has to go, also when nobody asks for another exchange."""
    old, cipher = volume.dek_file.read_bytes(), volume.cipher
    current = reencrypt(volume, lambda _: None)
    volume.dek_file.write_bytes(old)
    cipher.mkdir()
    with opened(current):
        assert not volume.dek_file.exists()
        assert not cipher.exists()


def test_an_open_volume_is_not_exchanged(volume: Volume) -> None:
    with opened(volume), pytest.raises(VolumeRefused, match="Another process"):
        reencrypt(volume, lambda _: None)
