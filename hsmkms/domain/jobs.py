"""What a background job did."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class JobRun:
    """The last run of a job: by which process, how many keys it changed, and how many it could not."""

    name: str
    holder: str
    ended_at: datetime
    done: int
    failed: int
