"""Policies of a single key: when it rotates by itself, and whether deleting it takes two people."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from hsmkms.errors import InvalidField

INTERVAL_MONTHS: Final = (1, 12)
MONTH: Final = timedelta(days=30)


class KeyPolicyKind(enum.Enum):
    """As the wire names them."""

    ROTATION = "rotation"
    DUAL_AUTH_DELETE = "dualAuthDelete"


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """One policy of a key; `interval_month` (months of 30 days) only for rotation."""

    id: str
    kind: KeyPolicyKind
    enabled: bool
    interval_month: int | None
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str


@dataclass(frozen=True, slots=True)
class KeyPolicyWish:
    """What somebody asks for; None for what he left out."""

    kind: KeyPolicyKind
    enabled: bool | None
    interval_month: int | None


def merged(wish: KeyPolicyWish, held: KeyPolicy | None) -> tuple[bool, int | None]:
    """`enabled` and `interval_month` after a wish on top of what is held (additions section 3.5). Raises InvalidField.

    Rotation keeps its interval when only `enabled` is given. Dual authorization is never taken off again.
    """
    enabled = True if wish.enabled is None else wish.enabled
    if wish.kind is KeyPolicyKind.DUAL_AUTH_DELETE:
        if held is not None and held.enabled and not enabled:
            raise InvalidField("enabled", "Dual authorization of a key cannot be taken off. Leave it enabled.")
        return enabled, None
    interval = wish.interval_month
    if interval is None and held is not None:
        interval = held.interval_month
    low, high = INTERVAL_MONTHS
    if (interval is None and enabled) or (interval is not None and not low <= interval <= high):
        raise InvalidField("interval_month", f"The field `interval_month` is a number from {low} to {high}.")
    return enabled, interval
