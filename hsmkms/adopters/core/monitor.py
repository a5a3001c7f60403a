"""Metrics (Prometheus text) and health of one followed resource, for this host only."""

from __future__ import annotations

import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from hsmkms.adopters.core.follower import Condition, Report
from hsmkms.adopters.core.loopback import LoopbackServer

STALE_S: Final = 180.0
"""A report older than this means that nobody looks any more; he does once a minute."""


@dataclass(frozen=True)
class _Seen:
    report: Report
    at: float
    rewraps: int


class Monitor:
    """Serves `/metrics` and `/healthz` on 127.0.0.1 in threads of its own, from the newest report."""

    def __init__(self, port: int, resource_crn: str) -> None:
        """Raises PortTaken."""
        self._resource = resource_crn
        self._seen: _Seen | None = None
        self._server = LoopbackServer(port, self.answer)
        self.port = self._server.port

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def take(self, report: Report) -> None:
        """Show this report from now on."""
        before = self._seen
        moved = before is not None and before.report.key_version != report.key_version
        rewraps = (0 if before is None else before.rewraps) + moved
        self._seen = _Seen(report, time.time(), rewraps)

    def answer(self, path: str) -> tuple[HTTPStatus, str]:
        """Status and text for a path."""
        seen = self._seen
        if path == "/healthz":
            return _health(seen)
        if path != "/metrics":
            return HTTPStatus.NOT_FOUND, "Ask for /metrics or /healthz.\n"
        return HTTPStatus.OK, "" if seen is None else self._metrics(seen)

    def _metrics(self, seen: _Seen) -> str:
        condition = seen.report.condition
        values = (
            ("open", "gauge", "Whether the data can be read.", _is_open(condition)),
            ("lock_failed", "gauge", "Whether data is open that should not be.", condition is Condition.LOCK_FAILED),
            (
                "key_service_away",
                "gauge",
                "Whether the key service did not answer the last look.",
                condition in (Condition.AWAY, Condition.LOCKED_AWAY),
            ),
            ("rewrap_due", "gauge", "Whether the DEK is not under the newest key version yet.", seen.report.behind),
            ("last_look_timestamp_seconds", "gauge", "When the key was last looked at.", seen.at),
            ("rewraps_total", "counter", "How often the DEK moved to another version of its key.", seen.rewraps),
        )
        label = self._resource.replace("\\", "\\\\").replace('"', '\\"')
        return "".join(
            f"# HELP hsmkms_adopter_{name} {words}\n# TYPE hsmkms_adopter_{name} {kind}\n"
            f'hsmkms_adopter_{name}{{resource="{label}"}} {float(value):.10g}\n'
            for name, kind, words, value in values
        )


def _is_open(condition: Condition) -> bool:
    return condition in (Condition.OPEN, Condition.AWAY, Condition.LOCK_FAILED)


def _health(seen: _Seen | None) -> tuple[HTTPStatus, str]:
    if seen is None:
        return HTTPStatus.SERVICE_UNAVAILABLE, "starting\n"
    stale = time.time() - seen.at > STALE_S
    healthy = seen.report.condition in (Condition.OPEN, Condition.AWAY) and not stale
    words = f"{seen.report.condition.value}{', not looked at for long' if stale else ''}\n"
    return HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE, words
