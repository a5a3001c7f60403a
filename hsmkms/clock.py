"""The clock that everybody is given, so that tests can move time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns the current time as an aware datetime in UTC."""


def system_clock() -> datetime:
    """The host's clock, in UTC, to the microsecond."""
    return datetime.now(UTC)
