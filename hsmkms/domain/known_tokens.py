"""The tokens that a deployment knows: one that is swapped for another of the same label is not of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownToken:
    """A token that was accepted; `id` is the serial number that it tells."""

    id: str
    label: str
    accepted_at: datetime
