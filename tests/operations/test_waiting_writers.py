"""Writers that wait for something leave connections and threads to those who read: for a lock here, for a standby
elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from hsmkms.store.engine import Database
from tests.support.deployment import Service, create_key, make_state
from tests.support.postgresql import PostgresServer

WRITERS = 30
CHANGES = 50
"""More than a process has threads for its routes."""
READ_WITHIN_S = 1.0
BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    """A database with one table of one row."""
    made = postgres.new_database("writers")
    with psycopg.connect(made, autocommit=True) as connection:
        connection.execute("CREATE TABLE place AS SELECT 0 AS taken")
    return made


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """The same through the store."""
    database = Database(url)
    yield database
    database.close()


def test_readers_go_on(url: str, database: Database) -> None:
    def write() -> None:
        with database.write() as connection:
            connection.execute(text("UPDATE place SET taken = taken + 1"))

    with psycopg.connect(url) as holder, ThreadPoolExecutor(WRITERS) as threads:
        holder.execute("LOCK TABLE place IN SHARE MODE")
        writers = [threads.submit(write) for _ in range(WRITERS)]
        try:
            wait_until_all_wait(url)
            began = time.monotonic()
            database.check()
            took = time.monotonic() - began
        finally:
            holder.rollback()
        for writer in writers:
            writer.result()
    assert took < READ_WITHIN_S
    with database.read() as connection:
        assert connection.execute(text("SELECT taken FROM place")).scalar_one() == WRITERS


def test_a_worker_goes_on_reading(postgres: PostgresServer, tmp_path: Path) -> None:
    """A worker that is asked for more changes than it has threads; all are done once the lock is gone."""
    url = postgres.new_database("changes")
    with (
        Service(make_state(tmp_path / "state", HSMKMS_DATABASE_URL=url), HSMKMS_DATABASE_URL=url) as service,
        service.client() as client,
        ThreadPoolExecutor(CHANGES) as threads,
    ):
        with psycopg.connect(url) as holder:
            holder.execute("LOCK TABLE change_clock IN SHARE MODE")
            changes = [threads.submit(create_key, client) for _ in range(CHANGES)]
            wait_until_all_wait(url)
            began = time.monotonic()
            assert client.get("/keys").status_code == 200
            took = time.monotonic() - began
            holder.rollback()
        assert took < READ_WITHIN_S
        assert len({change.result() for change in changes}) == CHANGES


def wait_until_all_wait(url: str) -> None:
    """Until no further writer comes to wait for the lock."""
    blocked, before, deadline = 0, -1, time.monotonic() + 10
    with psycopg.connect(url, autocommit=True) as connection:
        while blocked == 0 or blocked != before:
            assert time.monotonic() < deadline, f"{blocked} writers wait"
            time.sleep(0.2)
            row = connection.execute(BLOCKED).fetchone()
            assert row is not None
            blocked, before = row[0], blocked
