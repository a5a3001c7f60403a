"""The level of a line as systemd's journal wants it: `<3>` in front, which it takes off again (sd-daemon(3)).

Without, each line is `info` to `journalctl -p`.
"""

from __future__ import annotations

import os
import sys
from typing import Final

_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def is_journal() -> bool:
    """Whether standard error is the journal, which says in JOURNAL_STREAM what file that is (systemd.exec(5))."""
    try:
        file = os.fstat(sys.stderr.fileno())
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{file.st_dev}:{file.st_ino}"


def prefix(level: str) -> str:
    """What stands in front of a line of this level."""
    return f"<{_PRIORITIES.get(level, _PRIORITIES['info'])}>"
