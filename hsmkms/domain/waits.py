"""How long the rules of a key's life make one wait (contract section 3, additions section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final


@dataclass(frozen=True, slots=True)
class Waits:
    """`reversal`: from disable to enable and from delete to restore. `sync`: between two words to a key's services. The
    others are named for what they end."""

    reversal: timedelta = timedelta(seconds=30)
    rotation: timedelta = timedelta(hours=1)
    purge_allowed: timedelta = timedelta(hours=4)
    purge_scheduled: timedelta = timedelta(days=90)
    restore: timedelta = timedelta(days=30)
    deletion_authorization: timedelta = timedelta(days=7)
    acknowledgement: timedelta = timedelta(hours=4)
    sync: timedelta = timedelta(hours=1)


SHORT: Final = Waits(reversal=timedelta(0), rotation=timedelta(0), purge_allowed=timedelta(0), sync=timedelta(0))
"""For test deployments, whose suites would otherwise wait; nobody is protected from haste by it."""
