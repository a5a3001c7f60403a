"""One process of all has a lease, whatever a clock does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hsmkms.store.engine import Database
from hsmkms.store.jobs import JobStore

NOW = datetime(2026, 11, 27, 3, tzinfo=UTC)
LENGTH = timedelta(seconds=20)


@pytest.fixture
def jobs(tmp_path: Path) -> JobStore:
    database = Database(f"sqlite:///{tmp_path / 'leases.db'}")
    database.migrate()
    return JobStore(database)


def test_until_it_ends(jobs: JobStore) -> None:
    assert jobs.take_lease("jobs", "one", NOW, LENGTH)
    assert not jobs.take_lease("jobs", "two", NOW + LENGTH / 2, LENGTH)
    assert jobs.take_lease("jobs", "one", NOW + LENGTH / 2, LENGTH)
    assert not jobs.take_lease("jobs", "two", NOW + LENGTH, LENGTH)
    assert jobs.take_lease("jobs", "two", NOW + 2 * LENGTH, LENGTH)


def test_a_clock_that_was_set_back(jobs: JobStore) -> None:
    """The holder died an hour in the future; nobody waits for that."""
    assert jobs.take_lease("jobs", "one", NOW + timedelta(hours=1), LENGTH)
    assert jobs.take_lease("jobs", "two", NOW, LENGTH)


def test_clocks_that_differ_a_little(jobs: JobStore) -> None:
    assert jobs.take_lease("jobs", "one", NOW + timedelta(minutes=4), LENGTH)
    assert not jobs.take_lease("jobs", "two", NOW, LENGTH)
