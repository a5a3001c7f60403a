"""Metrics and health say what the last look at the key came to."""

from __future__ import annotations

import socket

import pytest

from hsmkms.adopters.core.follower import Condition, Report
from hsmkms.adopters.core.loopback import PortTaken
from hsmkms.adopters.core.monitor import Monitor


@pytest.mark.parametrize(
    ("condition", "status", "is_open", "failed", "away"),
    [
        (Condition.OPEN, 200, 1, 0, 0),
        (Condition.AWAY, 200, 1, 0, 1),
        (Condition.LOCKED, 503, 0, 0, 0),
        (Condition.LOCKED_AWAY, 503, 0, 0, 1),
        (Condition.LOCK_FAILED, 503, 1, 1, 0),
    ],
)
def test_each_condition(condition: Condition, status: int, is_open: int, failed: int, away: int) -> None:
    with Monitor(0, 'crn:"quoted"') as monitor:
        assert monitor.answer("/healthz") == (503, "starting\n")
        for version in ("v1", "v1", "v2"):
            monitor.take(Report(condition, "", None, version))
        assert monitor.answer("/healthz") == (status, f"{condition.value}\n")
        lines = monitor.answer("/metrics")[1].splitlines()
        label = '{resource="crn:\\"quoted\\""}'
        for name, value in (
            ("open", is_open),
            ("lock_failed", failed),
            ("key_service_away", away),
            ("rewraps_total", 1),
            ("rewrap_due", 0),
        ):
            assert f"hsmkms_adopter_{name}{label} {value}" in lines
        assert monitor.answer("/other")[0] == 404
        monitor.take(Report(condition, "", None, "v2", behind=True))
        assert f"hsmkms_adopter_rewrap_due{label} 1" in monitor.answer("/metrics")[1].splitlines()


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PortTaken, match="cannot be bound"):
        Monitor(taken.getsockname()[1], "crn")
