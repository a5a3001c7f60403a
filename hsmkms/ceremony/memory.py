"""Keep what custodians enter out of swap space and core dumps, for as long as this process lives."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path
from typing import Final

from hsmkms.ceremony.refusals import CeremonyRefused

_MCL_CURRENT_AND_FUTURE: Final = 1 | 2
_SWAPS: Final = Path("/proc/swaps")
_MOUNTS: Final = Path("/proc/self/mounts")


def lock() -> bool:
    """Lock all memory of this process, and forbid core dumps. False where the system's limit (RLIMIT_MEMLOCK) is too
    low for it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return bool(ctypes.CDLL(None).mlockall(_MCL_CURRENT_AND_FUTURE) == 0)


def require_memory_only(directory: Path) -> None:
    """Raise CeremonyRefused unless what is written to a directory stays in memory and never comes on a disk."""
    if not directory.is_dir():
        raise CeremonyRefused(f"{directory} is no directory. Make one on a file system in memory, say in /dev/shm.")
    place, kind = directory.resolve(), ""
    for line in _MOUNTS.read_text().splitlines():
        _, mounted, found, *_ = line.split(" ")
        # The last of two at one place is the one that is seen.
        if place.is_relative_to(mounted) and len(mounted) >= len(kind.partition(" ")[2]):
            kind = f"{found} {mounted}"
    kind = kind.partition(" ")[0]
    if kind == "tmpfs" and len(_SWAPS.read_text().splitlines()) > 1:
        raise CeremonyRefused("What is in memory may be swapped to a disk. Turn that off: `swapoff -a`.")
    if kind not in ("tmpfs", "ramfs"):
        raise CeremonyRefused(f"{directory} is on a disk ({kind}). Sheets are only written to memory, say in /dev/shm.")
