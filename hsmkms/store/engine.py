"""The engine, its two kinds of transaction, and the one place where database trouble becomes our errors."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from hsmkms.errors import StoreRefused, StoreUnavailable
from hsmkms.telemetry import metrics

_SQLITE_BUSY_MS: Final = 10_000
_STATEMENT_MS: Final = 10_000
# Sorts of all keys stay in memory, statements of milliseconds are not compiled first, and indexes are believed to be in
# memory or on a disk without a head to move.
_PLANNER: Final = "-c work_mem=16MB -c jit=off -c random_page_cost=1.1"
_MIGRATIONS: Final = Path(__file__).parent / "migrations"


class Database:
    """SQLite (WAL, every commit synced) or PostgreSQL. Nothing else keeps state that another node needs."""

    def __init__(self, url: str) -> None:
        """`url` as SQLAlchemy writes it. Raises StoreRefused for another database than these two."""
        self.url = sqlalchemy.engine.make_url(url)
        backend = self.url.get_backend_name()
        self._one_writer: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if backend == "sqlite":
            self._engine = _sqlite_engine(self.url)
            # SQLite has one writer, and its waiting is a lottery: threads queue here so that only processes draw lots.
            self._one_writer = threading.Lock()
        elif backend == "postgresql":
            self._engine = sqlalchemy.create_engine(
                self.url.set(drivername="postgresql+psycopg"),
                pool_pre_ping=True,
                pool_size=10,
                connect_args={
                    "connect_timeout": 5,
                    "options": f"-c statement_timeout={_STATEMENT_MS} -c lock_timeout={_STATEMENT_MS} {_PLANNER}",
                    # A server that vanished without a word is noticed too.
                    "tcp_user_timeout": _STATEMENT_MS,
                },
            )
        else:
            raise StoreRefused(f"{backend} is not supported. Use sqlite:/// or postgresql:// in database_url.")

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads. Raises StoreUnavailable."""
        with _translated(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is durable when the block ends. Raises StoreUnavailable; IntegrityError passes through."""
        with _translated(), self._one_writer, self._engine.connect() as plain:
            connection = plain.execution_options(hsmkms_write=True)
            with connection.begin():
                yield connection

    def check(self) -> None:
        """One statement. Raises StoreUnavailable."""
        with self.read() as connection:
            connection.execute(text("SELECT 1"))

    def migrate(self) -> None:
        """Bring the schema to this version's revision (Alembic)."""
        with _translated(), self._engine.connect() as connection:
            config = Config()
            config.set_main_option("script_location", str(_MIGRATIONS))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def revision(self) -> str | None:
        """Revision of the schema in the database; None if it is empty."""
        with self.read() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    @staticmethod
    def newest_revision() -> str | None:
        """Revision that this version of the software wants."""
        return ScriptDirectory(str(_MIGRATIONS)).get_current_head()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except SQLAlchemyError as error:
        metrics.DATABASE_ERRORS.inc()
        raise StoreUnavailable("The database does not answer. Try again.") from error


class _SqliteCompiler(SQLiteCompiler):
    """Writes hints, `INDEXED BY` that is, which SQLAlchemy leaves out on SQLite."""

    def get_from_hint_text(self, table: object, text: str | None) -> str | None:
        """The hint, behind the table's name."""
        return text


def _sqlite_engine(url: sqlalchemy.URL) -> Engine:
    if url.database in (None, "", ":memory:"):
        raise StoreRefused("SQLite needs a file: an in-memory database is lost with its process.")
    engine = sqlalchemy.create_engine(url, connect_args={"check_same_thread": False})
    engine.dialect.statement_compiler = _SqliteCompiler

    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _: Any) -> None:
        # The driver's own BEGIN comes too late and is deferred; ours is sent below.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={_SQLITE_BUSY_MS}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A deferred transaction that reads first and writes later cannot wait for another writer: it fails at once.
        write = connection.get_execution_options().get("hsmkms_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine
