"""The wrapped DEK on disk: replaced whole or not at all, and refused in words when it is not what it should be."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hsmkms.adopters.client import Key, KeyState, Rewrapped, WrappedDek
from hsmkms.adopters.core.dek_file import FORMAT, DekFileInvalid, WrappedDekFile, aad_of
from hsmkms.domain.secrets import SecretBytes
from tests.support.small_disk import fill, small_file_system

DEK = b"a DEK that must not be on disk.."
KEY = Key("key-1", "crn:key", "name", KeyState.ACTIVE, "v1")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "dek.json"
    content().write(file)
    return file


def content() -> WrappedDekFile:
    return WrappedDekFile.of("volume", "crn:one", "dek-1", KEY, WrappedDek(SecretBytes(DEK), "c1", "v1"))


def test_a_rewrap_keeps_what_names_the_dek(file: Path) -> None:
    first = WrappedDekFile.read(file)
    first.moved(Rewrapped("c2", "v2")).write(file)
    second = WrappedDekFile.read(file)
    assert (second.ciphertext, second.key_version) == ("c2", "v2")
    assert (second.dek_id, second.aad, second.created_at) == (first.dek_id, first.aad, first.created_at)
    assert file.stat().st_mode & 0o777 == 0o600
    assert DEK not in file.read_bytes()


def test_the_aad_tells_resources_apart_and_fits_the_contract() -> None:
    long = "crn:" + "x" * 700
    assert aad_of("volume", long, "d") != aad_of("volume", long[:-1], "d") != aad_of("bucket", long[:-1], "d")
    assert all(0 < len(piece) <= 255 for piece in aad_of("volume", long, "d"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: b"", "is empty"),
        (lambda text: bytes(512), "is empty"),
        (lambda text: text[: len(text) // 2], "not JSON"),
        (lambda text: b"[]", "damaged"),
        (lambda text: text.replace(b'"c1"', b"7"), "damaged at ciphertext"),
        (lambda text: text.replace(b'"dek_id"', b'"other"'), "damaged at"),
        (lambda text: text.replace(b'"format": 1', b'"format": %d' % (FORMAT + 1)), "Use a newer one"),
    ],
    ids=["empty", "zeros", "truncated", "a list", "a number", "a member", "a later format"],
)
def test_damage_is_told_in_words(file: Path, damage: object, words: str) -> None:
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DekFileInvalid, match=words):
        WrappedDekFile.read(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DekFileInvalid, match="No such file"):
        WrappedDekFile.read(tmp_path / "dek.json")


def test_a_writer_killed_at_any_moment_leaves_one_whole_file(file: Path) -> None:
    writer = (
        "import sys; from pathlib import Path; from itertools import count\n"
        "from hsmkms.adopters.core.dek_file import WrappedDekFile, Rewrapped\n"
        "file = Path(sys.argv[1]); dek = WrappedDekFile.read(file); print('ready', flush=True)\n"
        "for turn in count(): dek.moved(Rewrapped(f'c{turn}' * 2000, f'v{turn}')).write(file)\n"
    )
    seen = set()
    for turn in range(8):
        with subprocess.Popen([sys.executable, "-c", writer, str(file)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            for _ in range(200 * (turn + 1)):
                WrappedDekFile.read(file)
            process.send_signal(signal.SIGKILL)
        found = WrappedDekFile.read(file)
        number = found.key_version.removeprefix("v")
        assert found.ciphertext in (f"c{number}" * 2000, "c1")
        seen.add(found.key_version)
    assert len(seen) > 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path, "64k") as place:
        yield place


def test_a_full_disk_leaves_the_one_before(small_disk: Path) -> None:
    file = small_disk / "dek.json"
    content().write(file)
    fill(small_disk)
    with pytest.raises(OSError, match="No space"):
        content().moved(Rewrapped("c2" * 3000, "v2")).write(file)
    assert WrappedDekFile.read(file).ciphertext == "c1"
    assert sorted(path.name for path in small_disk.iterdir()) == ["dek.json", "filler"]
    assert json.loads(file.read_text())["format"] == FORMAT
