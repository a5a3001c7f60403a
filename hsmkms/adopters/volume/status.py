"""What `run` leaves for `status`, metrics and health."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hsmkms.adopters.client import Event
from hsmkms.adopters.core import atomic
from hsmkms.adopters.core.dek_file import WrappedDekFile
from hsmkms.adopters.core.follower import Report
from hsmkms.adopters.volume.choice import backend_of
from hsmkms.adopters.volume.layout import Volume, VolumeRefused, is_locked

COLUMNS: Final = (
    "volume",
    "resource",
    "backend",
    "condition",
    "key",
    "key version",
    "wrapped at",
    "last look",
    "last event",
    "reason",
)
"""What `adopt status` shows of each resource, in this order."""


@dataclass(frozen=True)
class Status:
    """How a volume that is run was when its key was last looked at."""

    condition: str
    reason: str
    key_version: str
    looked_at: str
    pid: int
    started: int
    server_pid: int | None
    last_event: str | None

    @classmethod
    def of(cls, report: Report, server_pid: int | None, event: Event | None) -> Status:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        last = None if event is None else f"{event.type} ({event.correlation_id})"
        pid = os.getpid()
        return cls(
            report.condition.value,
            report.reason,
            report.key_version,
            now,
            pid,
            _started(pid) or 0,
            server_pid,
            last,
        )

    def write(self, volume: Volume) -> None:
        """Raises OSError."""
        atomic.replace(volume.status_file, json.dumps(asdict(self)).encode(), lasting=False)


def describe(volume: Volume) -> dict[str, Any]:
    """A volume as `adopt status` shows it. Raises AdopterError when its wrapped DEK is damaged."""
    dek = WrappedDekFile.read(volume.dek_file)
    found = _last(volume) or {}
    row: dict[str, Any] = {
        "volume": str(volume.directory),
        "resource": dek.resource_crn,
        "backend": volume.backend,
        "condition": "open, key not followed" if _is_open(volume) else "closed",
        "key": dek.key_crn,
        "key version": dek.key_version,
        "wrapped at": dek.wrapped_at,
        "last look": found.get("looked_at"),
        "last event": found.get("last_event"),
        "reason": None,
    }
    if followed_by(volume) is not None:
        row["condition"], row["reason"] = found.get("condition"), found.get("reason") or None
    return row


def describe_file(file: Path) -> dict[str, Any]:
    """A resource of which there is a wrapped DEK alone, such as a passphrase. Raises AdopterError."""
    dek = WrappedDekFile.read(file)
    return {
        "volume": str(file),
        "resource": dek.resource_crn,
        "backend": dek.kind,
        "condition": "at rest",
        "key": dek.key_crn,
        "key version": dek.key_version,
        "wrapped at": dek.wrapped_at,
        "last look": None,
        "last event": None,
        "reason": None,
    }


def _is_open(volume: Volume) -> bool:
    try:
        return is_locked(volume) or backend_of(volume).is_open(volume)
    except (VolumeRefused, OSError):
        # What its backend needs, or it itself, is not on this host, so nothing has it open here.
        return False


def followed_by(volume: Volume) -> int | None:
    """The process of the `run` that serves a volume now, None when there is none."""
    found = _last(volume) or {}
    pid, started = found.get("pid"), found.get("started")
    return pid if isinstance(pid, int) and started == _started(pid) else None


def _last(volume: Volume) -> dict[str, Any] | None:
    try:
        found = json.loads(volume.status_file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _started(pid: int) -> int | None:
    """When a process began, in ticks since the system did: numbers of processes are used again, these pairs are not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # Behind the name, which may hold anything, it is the twentieth (proc(5): the 22nd in all).
    return int(stat.rpartition(")")[2].split()[19])
