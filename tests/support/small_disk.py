"""A file system that is soon full."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_file_system(directory: Path, size: str) -> Iterator[Path]:
    """A tmpfs of a size as mount(8) takes it; skips, visibly, where none can be mounted."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = directory / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "none", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("this system mounts no tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(place: Path) -> Path:
    """A file that takes all that is left."""
    filler, free = place / "filler", os.statvfs(place)
    with filler.open("wb") as file, contextlib.suppress(OSError):
        for _ in range(free.f_bavail):
            file.write(bytes(free.f_frsize))
            file.flush()
    return filler
