"""What the follower found, left in a file for `hsmkms adopt status`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hsmkms.adopters.core import atomic
from hsmkms.adopters.objectstorage.configuration import Configuration
from hsmkms.adopters.objectstorage.follower import Row
from hsmkms.adopters.refusals import ConnectionInvalid


def write(file: Path, rows: Iterable[Row]) -> None:
    """Raises OSError."""
    looked_at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    content = {"looked_at": looked_at, "buckets": [asdict(row) for row in rows]}
    atomic.replace(file, json.dumps(content).encode(), 0o644)


def describe(file: Path) -> list[dict[str, Any]]:
    """The buckets of a configuration file as `adopt status` shows them. Raises ConnectionInvalid."""
    status_file = Configuration.read(file).status_file
    if status_file is None:
        raise ConnectionInvalid(f"{file} names no status_file, so nothing is known about its buckets.")
    try:
        found = json.loads(status_file.read_bytes())
        return [
            {
                "volume": None,
                "resource": row["resource"],
                "backend": "swift",
                "condition": row["condition"],
                "key": row["key"],
                "key version": row["key_version"],
                "wrapped at": None,
                "last look": found["looked_at"],
                "last event": row["last_event"],
                "reason": row["reason"],
            }
            for row in found["buckets"]
        ]
    except OSError as error:
        raise ConnectionInvalid(f"{status_file} cannot be read: {error.strerror}. Does the follower run?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConnectionInvalid(f"{status_file} is damaged; the follower writes it anew within minutes.") from error
