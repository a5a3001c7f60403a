"""Metrics and health of the follower of buckets' keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Final

from hsmkms.adopters.objectstorage.follower import LOOK_S, AccountFollower

_STALE_S: Final = 3 * LOOK_S


class FollowerMonitor:
    """Text for `/metrics` (Prometheus) and `/healthz`."""

    def __init__(self, followers: Sequence[AccountFollower], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._followers, self._monotonic = followers, monotonic

    def answer(self, path: str) -> tuple[HTTPStatus, str]:
        """Status and text for a path."""
        if path == "/metrics":
            return HTTPStatus.OK, self._metrics()
        if path != "/healthz":
            return HTTPStatus.NOT_FOUND, "Ask for /metrics or /healthz.\n"
        late = [follower.name for follower in self._followers if self._age_s(follower) > _STALE_S]
        if late:
            return HTTPStatus.SERVICE_UNAVAILABLE, f"not looked at for long: {', '.join(late)}\n"
        return HTTPStatus.OK, "following\n"

    def _age_s(self, follower: AccountFollower) -> float:
        return float("inf") if follower.looked_at is None else self._monotonic() - follower.looked_at

    def _metrics(self) -> str:
        rows = [row for follower in self._followers for row in follower.rows.values()]
        families = (
            (
                "open",
                "Whether the key service lets the bucket's DEK be opened.",
                [("resource", row.resource, row.condition == "open") for row in rows],
            ),
            (
                "key_service_away",
                "Whether the key service did not answer the last look.",
                [("resource", row.resource, row.condition == "key service away") for row in rows],
            ),
            (
                "last_look_age_seconds",
                "How long ago all buckets of the account were looked at.",
                [("account", one.name, self._age_s(one)) for one in self._followers],
            ),
            (
                "events_pending",
                "Events that are not acknowledged yet.",
                [("account", one.name, one.pending) for one in self._followers],
            ),
        )
        return "".join(line for name, words, values in families for line in _family(name, words, values))


def _family(name: str, words: str, values: Iterable[tuple[str, str, float]]) -> Iterable[str]:
    yield f"# HELP hsmkms_adopter_{name} {words}\n# TYPE hsmkms_adopter_{name} gauge\n"
    for label, value, number in values:
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        yield f'hsmkms_adopter_{name}{{{label}="{escaped}"}} {float(number):.10g}\n'
