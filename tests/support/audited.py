"""What audit logs say of calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.support.caller import Call


def recorded(directories: Sequence[Path]) -> dict[str, list[int]]:
    """Status of each outcome in audit logs, by correlation id."""
    found: dict[str, list[int]] = {}
    for path in (path for directory in directories for path in directory.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            if b'"event":' in line and line.endswith(b"}"):
                event = json.loads(line)["event"]
                if event["outcome"] != "pending":
                    found.setdefault(event["correlationId"], []).append(event["reason"]["reasonCode"])
    return found


def unrecorded(calls: Sequence[Call], directories: Sequence[Path], *, refusals_too: bool = True) -> Sequence[str]:
    """Answers without their one audit record. While the disk of the audit trail fails, that is what 503 says."""
    known = recorded(directories)
    return [
        f"{call.action} {call.correlation_id}: answer {call.status}, recorded {known.get(call.correlation_id)}"
        for call in calls
        if call.status and (refusals_too or call.status != 503)
        if known.get(call.correlation_id, []) != [call.status]
    ]
