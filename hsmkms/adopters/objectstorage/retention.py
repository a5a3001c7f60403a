"""Objects that nobody may delete or replace before their time: COS's retention policy of a bucket, without legal holds.

X-Container-Sysmeta-Hsmkms-Retention          the policy, as JSON, with the bucket
X-Object-Sysmeta-Hsmkms-Retained-Until        seconds since 1970, with each object that is written from then on
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

from hsmkms.adopters.refusals import AdopterError

POLICY: Final = "X-Container-Sysmeta-Hsmkms-Retention"
RETAINED_UNTIL: Final = "X-Object-Sysmeta-Hsmkms-Retained-Until"
_STORED: Final = "hsmkms-retention"
_DAY_S: Final = 86_400
_MAX_DAYS: Final = 365_243  # a thousand years, COS's own limit
_PERIOD: Final = "Retention-Period"
_DATE: Final = "Retention-Expiration-Date"


class RetentionRefused(AdopterError):
    """The policy, or what an object asks of it, cannot be."""


@dataclass(frozen=True)
class Retention:
    """A bucket's policy, in days."""

    minimum: int
    default: int
    maximum: int

    def __post_init__(self) -> None:
        """Raises RetentionRefused."""
        if not 0 <= self.minimum <= self.default <= self.maximum <= _MAX_DAYS or self.maximum == 0:
            raise RetentionRefused(
                f"Retention is in days: minimum, default, maximum, none less than the one before, up to {_MAX_DAYS}."
            )

    @classmethod
    def stored_in(cls, sysmeta: Mapping[str, str]) -> Retention | None:
        """From a container's system metadata, names in lower case. Raises RetentionRefused when it is damaged."""
        text = sysmeta.get(_STORED)
        if not text:
            return None
        try:
            return cls(**{name: int(days) for name, days in json.loads(text).items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise RetentionRefused("The bucket's retention policy is damaged.") from error

    def text(self) -> str:
        """As it is stored."""
        return json.dumps(asdict(self))

    def until(self, headers: Mapping[str, str], now: float) -> int:
        """Until when an object is kept that is written now with these headers. Raises RetentionRefused."""
        period, date = headers.get(_PERIOD), headers.get(_DATE)
        if period is not None and date is not None:
            raise RetentionRefused(f"{_PERIOD} and {_DATE} exclude each other.")
        if period is not None:
            if not period.isdecimal():
                raise RetentionRefused(f"{_PERIOD} is a number of seconds.")
            kept_s = float(period)
        elif date is not None:
            try:
                moment = datetime.fromisoformat(date)
            except ValueError as error:
                raise RetentionRefused(f"{_DATE} is a moment as ISO 8601 writes it.") from error
            kept_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
        else:
            kept_s = self.default * _DAY_S
        if not self.minimum * _DAY_S <= kept_s <= self.maximum * _DAY_S:
            raise RetentionRefused(f"The bucket keeps objects {self.minimum} to {self.maximum} days.")
        return int(now + kept_s)
