"""What came of each fault: one row, one table, one JSON file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import quantiles

from tests.support.caller import Call

COLUMNS = ("fault", "sent", "answered", "refused", "cut off", "wrong", "lost", "back s", "a caller sees")


@dataclass
class Row:
    """Counts are of requests from the beginning of the fault until the service was well again. `back_s` is the time
    from the cure to the end of the first request that began after it and succeeded; for what has no cure, such as a
    kill, from the fault itself."""

    fault: str
    sent: int = 0
    answered: int = 0
    refused: int = 0
    cut_off: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    back_s: float | None = None
    sees: str = ""
    skipped: str = ""

    def count(self, calls: Sequence[Call]) -> None:
        """Take in the requests."""
        self.sent = len(calls)
        self.answered = sum(call.good for call in calls)
        self.refused = sum(call.status in (401, 409, 503) and not call.good for call in calls)
        self.cut_off = sum(not call.status for call in calls)

    def describe(self, calls: Sequence[Call]) -> None:
        """What callers got while the fault lasted, and how soon."""
        parts = []
        for status, count in Counter(_kind(call) for call in calls).most_common():
            waits = [call.took * 1_000 for call in calls if _kind(call) == status]
            middle, late = (waits * 2)[0:2] if len(waits) < 2 else _middle_and_late(waits)
            parts.append(f"{count} {status} ({middle:.0f} ms, 95 % in {late:.0f} ms)")
        self.sees = "; ".join(parts)

    @property
    def cells(self) -> tuple[str, ...]:
        if self.skipped:
            return (self.fault, *("-" for _ in COLUMNS[2:]), f"skipped: {self.skipped}")
        back = "-" if self.back_s is None else f"{self.back_s:.2f}"
        counts = (self.sent, self.answered, self.refused, self.cut_off, len(self.wrong), len(self.lost))
        return (self.fault, *map(str, counts), back, self.sees)


def _kind(call: Call) -> str:
    if call.good:
        return "answered"
    return "cut off" if call.status == 0 else "not connected" if call.status is None else str(call.status)


def _middle_and_late(waits: Sequence[float]) -> tuple[float, float]:
    cuts = quantiles(waits, n=20, method="inclusive")
    return cuts[9], cuts[18]


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of a text table."""
    cells = [COLUMNS, *(row.cells for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(COLUMNS) - 1)]

    def line(one: Sequence[str]) -> str:
        middle = "  ".join(text.rjust(width) for text, width in zip(one[1:-1], widths[1:], strict=True))
        return f"{one[0].ljust(widths[0])}  {middle}  {one[-1]}"

    return [line(COLUMNS), *map(line, cells[1:])]


def write_json(rows: Sequence[Row], path: Path) -> None:
    """The same for programs."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
