"""Keeps what is in memory out of core dumps, swap and other processes' reach, as far as the system allows."""

from __future__ import annotations

import contextlib
import ctypes
import resource
from pathlib import Path
from typing import Final

_PR_SET_DUMPABLE: Final = 4
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4

_libc: Final = ctypes.CDLL(None, use_errno=True)


def guard() -> bool:
    """No core dumps of this process and of those it starts; no ptrace by the same user; pages kept out of swap.

    Returns whether the pages are: the limit RLIMIT_MEMLOCK may forbid it, which the caller should say.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Programs that cores are piped to get them whatever the limit: with this one there is nothing in them.
    with contextlib.suppress(OSError):
        Path("/proc/self/coredump_filter").write_text("0")
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    return bool(_libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0)
