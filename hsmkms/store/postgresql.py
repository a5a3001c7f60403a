"""Connections to PostgreSQL that give up on a server which does not answer, and go on to the next of several hosts."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Final, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import psycopg
import sqlalchemy
from psycopg.abc import PQGen
from sqlalchemy import Engine, event
from sqlalchemy.exc import ArgumentError

from hsmkms.errors import StoreRefused, StoreUnavailable

STATEMENT_MS: Final = 10_000
"""What the server cancels a statement after, and a wait for a lock."""
_ANSWER_S: Final = STATEMENT_MS / 1_000 + 2
"""A server that did not even do that has hung: its storage stands still, or it itself does."""
_POOL_WAIT_S: Final = 5
_CONNECTIONS: Final = 20
_KEPT_OPEN: Final = 10
_WRITERS: Final = 10
# Sorts of all keys stay in memory, statements of milliseconds are not compiled first, and indexes are believed to be in
# memory or on a disk without a head to move.
_PLANNER: Final = "-c work_mem=16MB -c jit=off -c random_page_cost=1.1"


class _BoundedConnection(psycopg.Connection[Any]):
    """Every answer has a bound, also that to a ping or a commit; `answer_s` is None while it has none."""

    answer_s: float | None = _ANSWER_S

    def wait(self, gen: PQGen[Any], interval: float = 0.1, timeout: float | None = None) -> Any:
        """As psycopg's, which waits for ever. Raises psycopg.OperationalError, with the connection closed."""
        try:
            return super().wait(gen, interval, timeout=self.answer_s if timeout is None else timeout)
        except psycopg.errors._WaitTimeout as error:
            if timeout is not None:
                raise
            self.close()
            raise psycopg.OperationalError("the server does not answer") from error


class WriterPlaces:
    """Keeps connections for those who read while all writers wait: for a lock, or for a synchronous standby that does
    not confirm their commits."""

    def __init__(self) -> None:
        self._free = threading.BoundedSemaphore(_WRITERS)

    def __enter__(self) -> None:
        """Take a place. Raises StoreUnavailable when none gets free."""
        if not self._free.acquire(timeout=_POOL_WAIT_S):
            raise StoreUnavailable("The database does not take changes. Try again.")

    def __exit__(self, *_: object) -> None:
        self._free.release()


@contextlib.contextmanager
def patient(connection: sqlalchemy.Connection) -> Iterator[None]:
    """For what may take as long as it takes, such as an index on many rows."""
    driver = cast(_BoundedConnection, connection.connection.driver_connection)
    driver.answer_s = None
    try:
        yield
    finally:
        driver.answer_s = _ANSWER_S


def make_url(url: str) -> sqlalchemy.URL:
    """A database URL. libpq's form with several hosts (`postgresql://user@one:5432,two:5432/name`) is understood too.

    Raises StoreRefused, which does not quote it: it may hold a password.
    """
    try:
        parts = urlsplit(url)
        user, at, places = parts.netloc.rpartition("@")
        if "," not in places:
            return sqlalchemy.engine.make_url(url)
        hosts, ports = zip(*(_split(place) for place in places.split(",")), strict=True)
        query = urlencode([*parse_qsl(parts.query), ("host", ",".join(hosts)), ("port", ",".join(ports))])
        return sqlalchemy.engine.make_url(urlunsplit((parts.scheme, user + at, parts.path, query, "")))
    except (ArgumentError, ValueError) as error:
        raise StoreRefused("The database_url cannot be read. Write it as postgresql://user@host:port/name.") from error


def _split(place: str) -> tuple[str, str]:
    """Host and port of `host`, `host:port` or `[address]:port`."""
    host, _, port = place.rpartition(":") if place.rpartition("]")[2].count(":") else (place, "", "")
    return host.strip("[]"), str(int(port or 5432))


def make_engine(url: sqlalchemy.URL) -> Engine:
    """An engine whose connections are tried before they are used, and bounded in all that they wait for."""
    engine = sqlalchemy.create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        pool_size=_KEPT_OPEN,
        max_overflow=_CONNECTIONS - _KEPT_OPEN,
        pool_timeout=_POOL_WAIT_S,
        connect_args={
            "connect_timeout": 5,
            "options": f"-c statement_timeout={STATEMENT_MS} -c lock_timeout={STATEMENT_MS} {_PLANNER}",
            # A host that vanished without a word is noticed too, whether something was sent to it or not.
            "tcp_user_timeout": STATEMENT_MS,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
        },
    )

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, arguments: list[Any], named: dict[str, Any]) -> _BoundedConnection:
        return _BoundedConnection.connect(*arguments, **named)

    return engine
