"""The engine, its two kinds of transaction, and the one place where database trouble becomes our errors."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, event, select, text
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from hsmkms.errors import StoreRefused, StoreUnavailable
from hsmkms.store.postgresql import WriterPlaces, make_engine, make_url, patient
from hsmkms.store.tables import schema_support
from hsmkms.telemetry import metrics

_SQLITE_BUSY_MS: Final = 10_000
_LOCK_MS: Final = 100
_LOCK_NOT_AVAILABLE: Final = "55P03"
_MIGRATION_S: Final = 60.0
_MIGRATION_LOCK: Final = 0x68736D6B
_MIGRATIONS: Final = Path(__file__).parent / "migrations"


class Database:
    """SQLite (WAL, every commit synced) or PostgreSQL. Nothing else keeps state that another node needs."""

    def __init__(self, url: str) -> None:
        """`url` as SQLAlchemy or libpq writes it. Raises StoreRefused for another database than these two."""
        self.url = make_url(url)
        backend = self.url.get_backend_name()
        self._writers: contextlib.AbstractContextManager[object]
        if backend == "sqlite":
            self._engine = _sqlite_engine(self.url)
            # SQLite has one writer, and its waiting is a lottery: threads queue here so that only processes draw lots.
            self._writers = threading.Lock()
        elif backend == "postgresql":
            self._engine = make_engine(self.url)
            self._writers = WriterPlaces()
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
        with _translated(), self._writers, self._engine.connect() as plain:
            connection = plain.execution_options(hsmkms_write=True)
            with connection.begin():
                yield connection

    def check(self) -> None:
        """One statement. Raises StoreUnavailable."""
        with self.read() as connection:
            connection.execute(text("SELECT 1"))

    def migrate(self, target: str = "head") -> None:
        """Bring the schema to this version's revision (Alembic), in one transaction and by one process at a time, while
        others work on it. A schema that a newer version made is left as it is. Raises StoreUnavailable."""
        give_up_at = time.monotonic() + _MIGRATION_S
        while True:
            try:
                with self.write() as connection, self._patience(connection):
                    upgrade(connection, target)
            except StoreUnavailable as error:
                state = getattr(getattr(error.__cause__, "orig", None), "sqlstate", None)
                if state != _LOCK_NOT_AVAILABLE or time.monotonic() > give_up_at:
                    raise
                # Everything is given back, so that those who were in the way can end.
                time.sleep(random.uniform(0.02, 0.1))  # noqa: S311  # which of two goes first is no secret
            else:
                return

    def _patience(self, connection: Connection) -> contextlib.AbstractContextManager[None]:
        return patient(connection) if self._engine.dialect.name == "postgresql" else contextlib.nullcontext()

    def revision(self) -> str | None:
        """Revision of the schema in the database; None if it is empty."""
        if self.url.get_backend_name() == "sqlite" and not Path(str(self.url.database)).exists():
            # To ask would make the file.
            return None
        with self.read() as connection:
            return _revision_of(connection)

    def unfit(self) -> str | None:
        """Why this program cannot work on the schema, and what to do; None if it can.

        It can on its own revision, and on a newer one whose `schema_support` says so: a new version has migrated while
        this one still runs on other nodes, or starts once more.
        """
        newest = str(self.newest_revision())
        with self.read() as connection:
            found = _revision_of(connection)
            if found == newest:
                return None
            if found is None or is_known(found):
                return "The database is not of this version. Run `hsmkms init` (new) or `hsmkms serve` (old)."
            oldest = connection.execute(select(schema_support.c.oldest)).scalar_one_or_none()
        # Revisions are numbers of four digits, so that their texts stand in their order.
        if oldest is not None and oldest <= newest:
            return None
        return (
            f"A newer version has migrated the database to revision {found}; this one knows {newest} and is too old "
            "for it. Install the newer version."
        )

    @staticmethod
    def newest_revision() -> str | None:
        """Revision that this version of the software wants."""
        return ScriptDirectory(str(_MIGRATIONS)).get_current_head()


def upgrade(connection: Connection, target: str = "head") -> None:
    """Migrate within a transaction that writes."""
    postgresql = connection.dialect.name == "postgresql"
    if postgresql:
        # Two nodes that are started together: the second waits, and finds the work done. An index on many rows takes
        # longer than a statement of a request may.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MIGRATION_LOCK})
    found = _revision_of(connection)
    scripts = ScriptDirectory(str(_MIGRATIONS))
    if found == scripts.get_revision(target).revision or (found is not None and not is_known(found)):
        return
    if postgresql and found is not None:
        _take_all_tables(connection)
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, target)


def _take_all_tables(connection: Connection) -> None:
    """Lock every table before the first is changed: who holds one and waits for another would end in a deadlock, of
    which PostgreSQL ends either side. It looks for one after a second, so this gives up long before.

    Writers take their number from `change_clock`; once that is ours only those are left that had begun before.
    """
    quote = connection.dialect.identifier_preparer.quote
    names = sorted(sqlalchemy.inspect(connection).get_table_names(), key=lambda name: (name != "change_clock", name))
    for name in names:
        connection.execute(text(f"LOCK TABLE {quote(name)} IN ACCESS EXCLUSIVE MODE"))
        connection.execute(text(f"SET LOCAL lock_timeout = {_LOCK_MS}"))


def _revision_of(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def is_known(revision: str) -> bool:
    """Whether this version knows how to make the schema of a revision."""
    scripts = ScriptDirectory(str(_MIGRATIONS))
    return revision in {script.revision for script in scripts.walk_revisions()}


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
