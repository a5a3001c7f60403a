"""LUKS2 images. What needs dm-crypt is skipped, visibly, where the kernel has none."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hsmkms.adopters.volume import operations
from hsmkms.adopters.volume.choice import choose
from hsmkms.adopters.volume.layout import Volume, VolumeRefused
from hsmkms.adopters.volume.luks import Luks, format_image, has_dm_crypt, image
from hsmkms.adopters.volume.mounts import mounted_at
from hsmkms.domain.secrets import SecretBytes
from tests.support.adopter import Adopter
from tests.support.deployment import create_key
from tests.support.volumes import opened, place, require

MARKER = b"a-row-that-the-image-must-not-show"


@pytest.fixture
def wanted() -> Iterator[Volume]:
    if shutil.which("cryptsetup") is None:
        pytest.skip("luks: cryptsetup is not installed")
    with place() as directory:
        yield Volume(directory / "one", "luks", directory / "one" / "data", directory, size_mib=64)


def opens(volume: Volume, key: bytes) -> bool:
    """Whether a key opens the header, which cryptsetup tries without the kernel."""
    options = ["--test-passphrase", "--type", "luks2", "--key-file", "-", "--keyfile-size", "32"]
    command = ["cryptsetup", "open", *options, str(image(volume))]
    return subprocess.run(command, input=key, capture_output=True, check=False).returncode == 0


def test_the_dek_alone_opens_the_header(wanted: Volume) -> None:
    dek = os.urandom(32)
    wanted.cipher.mkdir(parents=True)
    format_image(wanted, SecretBytes(dek))
    assert opens(wanted, dek)
    assert not opens(wanted, os.urandom(32))
    assert (image(wanted).stat().st_size, image(wanted).stat().st_mode & 0o777) == (64 << 20, 0o600)
    assert dek not in image(wanted).read_bytes()
    dump = subprocess.run(["cryptsetup", "luksDump", str(image(wanted))], check=True, capture_output=True).stdout
    assert b"aes-xts-plain64" in dump
    assert b"PBKDF:      pbkdf2" in dump


def test_what_is_missing_is_named(wanted: Volume) -> None:
    with pytest.raises(VolumeRefused, match=r"not luks: (this kernel has no dm-crypt|the size of its image)"):
        choose(Volume(wanted.directory, "luks", wanted.mount, Path()))


def test_data_comes_back_and_the_image_does_not_show_it(
    wanted: Volume, admin: httpx.Client, database: Adopter, connection_file: Path
) -> None:
    require(Luks(), wanted)
    assert has_dm_crypt()
    asked = Volume(wanted.directory, "luks", wanted.mount, connection_file, size_mib=64)
    volume, _ = operations.create(asked, create_key(admin), database.crn("luks"))
    with opened(volume) as data:
        (data / "row").write_bytes(MARKER * 1000)
    assert mounted_at(volume.mount) is None
    assert MARKER not in image(volume).read_bytes()
    with opened(volume) as data:
        assert (data / "row").read_bytes() == MARKER * 1000
        with pytest.raises(VolumeRefused, match="is open"):
            operations.remove(volume)
    operations.remove(volume)
