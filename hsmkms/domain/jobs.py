"""What background jobs did."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

_FIRST_PAUSE: Final = timedelta(seconds=5)
_LONGEST_PAUSE: Final = timedelta(minutes=10)
_FORGOTTEN: Final = timedelta(days=1)


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


class PutOff:
    """What could not be changed waits twice as long each time, from 5 seconds to 10 minutes: each try is two audit
    records, and what never works would fill the disk that they need."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[datetime, timedelta]] = {}

    def is_due(self, thing: str, now: datetime) -> bool:
        """Whether it may be tried."""
        return thing not in self._until or now >= self._until[thing][0]

    def put_off(self, thing: str, now: datetime) -> None:
        """It could not be changed."""
        self._until = {one: known for one, known in self._until.items() if now - known[0] < _FORGOTTEN}
        pause = min(self._until[thing][1] * 2, _LONGEST_PAUSE) if thing in self._until else _FIRST_PAUSE
        self._until[thing] = (now + pause, pause)

    def changed(self, thing: str) -> None:
        """It was."""
        self._until.pop(thing, None)
