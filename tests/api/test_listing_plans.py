"""Lists and the jobs' queries stand on indexes, as each database explains its plans; nothing is timed.

PostgreSQL prefers to read a small table whole, so it is told not to if it can help it: what is left to it then says
whether an index fits the statement.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, event

from hsmkms.domain.query import DATE_PROPS, SORT_PROPS, parse_key_query
from hsmkms.store.engine import Database
from hsmkms.store.keys import KeyStore
from tests.support.postgresql import PostgresServer

NOW = datetime.now(UTC)
INSTANCE = str(uuid.uuid4())
Statement = tuple[str, Any]
ORDERS = {
    "id": "ix_key_listing",
    "creationDate": "ix_key_listing_created",
    "lastUpdateDate": "ix_key_listing_updated",
    "lastRotateDate": "ix_key_listing_rotated",
    "expirationDate": "ix_key_listing_expires",
    "deletionDate": "ix_key_listing_deleted",
}
QUERIES = [
    *({"sort": sign + prop, "offset": offset} for prop in SORT_PROPS for sign in ("", "-") for offset in ("0", "9")),
    *({"filter": f"{prop}=none"} for prop in DATE_PROPS),
    *({"filter": f'{prop}=lt:"2026-01-01T00:00:00Z"', "sort": "-lastUpdateDate"} for prop in DATE_PROPS),
    *({"state": state} for state in ("1", "3", "1,3", "0,1,2,3,5")),
    {"sort": "-extractable,state,-lastUpdateDate", "offset": "9"},
    {"search": "ledger"},
    {"search": "not:exact:alias:ledger", "sort": "-creationDate"},
]
JOBS: dict[str, Callable[[KeyStore], object]] = {
    "ix_key_due_to_expire": lambda store: store.expired(NOW, 100),
    "ix_key_due_to_purge": lambda store: store.due_for_purge(NOW, 100),
    "ix_key_policy_rotation": lambda store: store.due_for_rotation(NOW, 100),
    "ix_key_purging": lambda store: store.purging(),
}


@pytest.fixture(scope="module")
def database_of(
    database: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """Empty, and of this module alone: what PostgreSQL knows of the rows of other tests would move its choice."""
    url = f"sqlite:///{tmp_path_factory.mktemp('plans')}/plans.db"
    if database == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.new_database("plans")
    made = Database(url)
    made.migrate()
    yield made
    made.close()


@contextmanager
def statements() -> Iterator[list[Statement]]:
    """What is asked of any database meanwhile, up to here."""
    seen: list[Statement] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def plan(database: Database, statement: Statement) -> str:
    """As the database explains it."""
    sqlite = database.url.get_backend_name() == "sqlite"
    with database.read() as connection:
        if not sqlite:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        explain = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
        return "\n".join(str(row[-1]) for row in connection.exec_driver_sql(explain + statement[0], statement[1]))


def of_keys(asked: list[Statement]) -> list[Statement]:
    return [one for one in asked if re.search(r'FROM "?key"?\s', one[0])]


def require_no_scan(explained: str) -> None:
    """SQLite says SCAN also of an index that it reads whole; of a table it names no index."""
    for line in explained.splitlines():
        assert "Seq Scan on key" not in line, explained
        assert not (re.match(r"SCAN key\b", line) and "INDEX" not in line), explained


@pytest.mark.parametrize(
    "rings", [None, ("one",), tuple(f"ring-{number}" for number in range(2_000))], ids=["all", "one", "many"]
)
@pytest.mark.parametrize("params", QUERIES, ids=str)
def test_lists(database_of: Database, params: dict[str, str], rings: tuple[str, ...] | None) -> None:
    """Pages and counts, whatever the order, the filter and the caller's rings."""
    store, query = KeyStore(database_of), parse_key_query(params)
    with statements() as asked:
        store.page(INSTANCE, query, NOW, rings, total=True)
        store.count(INSTANCE, query, NOW, rings, most=10)
    found = of_keys(asked)
    assert found
    for statement in found:
        require_no_scan(plan(database_of, statement))


@pytest.mark.parametrize(("prop", "index"), ORDERS.items())
@pytest.mark.parametrize("sign", ["", "-"])
def test_orders_come_from_their_index(database_of: Database, prop: str, index: str, sign: str) -> None:
    """No row is read and, but for keys that are equal, nothing is sorted."""
    with statements() as asked:
        KeyStore(database_of).page(INSTANCE, parse_key_query({"sort": sign + prop}), NOW, None, total=False)
    explained = plan(database_of, of_keys(asked)[0])
    if database_of.url.get_backend_name() == "sqlite":
        assert f"USING COVERING INDEX {index} (" in explained
        assert "USE TEMP B-TREE FOR ORDER BY" not in explained


@pytest.mark.parametrize(("index", "ask"), JOBS.items(), ids=list(JOBS))
def test_jobs(database_of: Database, index: str, ask: Callable[[KeyStore], object]) -> None:
    """Each of their queries has an index of its own."""
    with statements() as asked:
        ask(KeyStore(database_of))
    explained = plan(database_of, of_keys(asked)[0])
    require_no_scan(explained)
    assert index in explained
