"""Writers that wait for something leave connections to those who read: for a lock here, for a standby elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import text

from hsmkms.store.engine import Database
from tests.support.postgresql import PostgresServer

WRITERS = 30
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
