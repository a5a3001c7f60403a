"""What background jobs did."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Done:
    """How much a run changed, and how much it could not and will try again."""

    changed: int
    failed: int


@dataclass(frozen=True, slots=True)
class JobRun:
    """The last run of a job: by which process, how much it changed, and how much it could not."""

    name: str
    holder: str
    ended_at: datetime
    done: int
    failed: int
