"""What `run` leaves for `status`, metrics and health."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from hsmkms.adopters.client import Event
from hsmkms.adopters.core import atomic
from hsmkms.adopters.core.dek_file import WrappedDekFile
from hsmkms.adopters.core.follower import Report
from hsmkms.adopters.volume.layout import Volume, is_locked


@dataclass(frozen=True)
class Status:
    """How a volume that is run was when its key was last looked at."""

    condition: str
    reason: str
    key_version: str
    looked_at: str
    pid: int
    server_pid: int | None
    last_event: str | None

    @classmethod
    def of(cls, report: Report, server_pid: int | None, event: Event | None) -> Status:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        last = None if event is None else f"{event.type} ({event.correlation_id})"
        return cls(report.condition.value, report.reason, report.key_version, now, os.getpid(), server_pid, last)

    def write(self, volume: Volume) -> None:
        """Raises OSError."""
        atomic.replace(volume.status_file, json.dumps(asdict(self)).encode())


def describe(volume: Volume) -> dict[str, Any]:
    """A volume as `adopt status` shows it. Raises AdopterError when its wrapped DEK is damaged."""
    dek = WrappedDekFile.read(volume.dek_file)
    held = is_locked(volume)
    found = _last(volume)
    followed = held and found is not None and _lives(found.get("pid"))
    row: dict[str, Any] = {
        "volume": str(volume.directory),
        "resource": dek.resource_crn,
        "backend": volume.backend,
        "condition": "open, key not followed" if held else "closed",
        "key": dek.key_crn,
        "key version": dek.key_version,
        "wrapped at": dek.wrapped_at,
        "last look": None if found is None else found.get("looked_at"),
        "last event": None if found is None else found.get("last_event"),
        "reason": None,
    }
    if found is not None and (followed or _lives(found.get("pid"))):
        row["condition"], row["reason"] = found.get("condition"), found.get("reason") or None
    return row


def _last(volume: Volume) -> dict[str, Any] | None:
    try:
        found = json.loads(volume.status_file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _lives(pid: object) -> bool:
    """Whether the process that wrote the status still runs; numbers are used again, so this is no proof."""
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
