"""Keep what custodians enter out of swap space and core dumps, for as long as this process lives."""

from __future__ import annotations

import ctypes
import resource
from typing import Final

_MCL_CURRENT_AND_FUTURE: Final = 1 | 2


def lock() -> bool:
    """Lock all memory of this process, and forbid core dumps. False where the system's limit (RLIMIT_MEMLOCK) is too
    low for it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return bool(ctypes.CDLL(None).mlockall(_MCL_CURRENT_AND_FUTURE) == 0)
