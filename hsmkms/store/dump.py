"""All rows of a database as lines of JSON, read in one snapshot while others write, and brought back into an empty one.

One form for SQLite and PostgreSQL, so that a backup of either is restored into either, needs no program of a server's
version beside ours, and into a newer schema goes the way of every old database: through the migrations. For each table
there is a line with its columns and then one for each row.
"""

from __future__ import annotations

import base64
import contextlib
import sqlite3
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
import sqlalchemy
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, LargeBinary, MetaData, Table, func, select, text
from sqlalchemy.exc import SAWarning

from hsmkms.domain.keys import KeyVersion, key_owner, sealing_owner
from hsmkms.errors import StoreRefused
from hsmkms.store import tables as t
from hsmkms.store.engine import Database, is_known, upgrade

EVENTS_GAP: Final = 1_000_000
"""How far events go on behind the last restored one: who read on after the backup has a cursor beyond it."""
_NOT_KEPT: Final = frozenset({"alembic_version", "lease"})
_AT_ONCE: Final = 1_000
_encode: Final = msgspec.json.Encoder().encode


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    table: str
    columns: list[str]
    binary: list[str]


class Dump:
    """One snapshot of the database, from the first statement on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def write(self, out: BinaryIO) -> dict[str, int]:
        """Write all rows; how many there were of each table."""
        counts = {}
        for table in _reflected(self._connection).sorted_tables:
            if table.name in _NOT_KEPT:
                continue
            # Reflection quotes some names, and gives these in a class of its own.
            name, columns = str(table.name), [str(column.name) for column in table.c]
            binary = [str(column.name) for column in table.c if isinstance(column.type, LargeBinary)]
            out.write(_encode(_Header(name, columns, binary)) + b"\n")
            counts[name] = 0
            places = [index for index, column in enumerate(table.c) if column.name in binary]
            query = select(table).order_by(*table.primary_key.columns)
            for row in self._connection.execution_options(yield_per=_AT_ONCE).execute(query):
                values = list(row)
                for place in places:
                    if values[place] is not None:
                        values[place] = base64.b64encode(values[place]).decode()
                out.write(_encode(values) + b"\n")
                counts[name] += 1
        return counts

    def needed_keys(self) -> list[KeyVersion]:
        """Versions of keys that are not being purged, and what seals the standard keys of each instance."""
        version, key, instance = t.key_version.c, t.key.c, t.instance.c
        versions = self._connection.execute(
            select(version.id, version.created_at, version.check_value, version.key_id, key.instance_id)
            .select_from(t.key_version.join(t.key))
            .where(key.purge_began_at.is_(None))
            .order_by(version.id)
        ).all()
        sealing = self._connection.execute(
            select(instance.sealing_id, instance.sealing_created_at, instance.sealing_check_value, instance.id)
        ).all()
        return [
            *(KeyVersion(row[0], row[1], row[2], key_owner(row[4], row[3])) for row in versions),
            *(KeyVersion(row[0], row[1], row[2], sealing_owner(row[3])) for row in sealing),
        ]

    def revision(self) -> str:
        """Revision of the schema."""
        return str(MigrationContext.configure(self._connection).get_current_revision())


@contextlib.contextmanager
def snapshot(database: Database) -> Iterator[Dump]:
    """A dump of everything that is committed now. Raises StoreUnavailable."""
    with database.read() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
            connection.execute(text("SET LOCAL statement_timeout = 0"))
        yield Dump(connection)


def bring_in(database: Database, revision: str, lines: Iterable[bytes], suffix: str) -> str | None:
    """Bring the rows of a dump of that revision into the place of what a database holds, and to this version's schema:
    whole or not at all. Where that is now which was there, or None if nothing was.

    SQLite's file gets another name, PostgreSQL's tables go to another schema. Raises StoreRefused while somebody uses
    them, or for a dump that does not fit; StoreUnavailable.
    """
    if not is_known(revision):
        raise StoreRefused(f"The backup is of revision {revision}, which a newer version made. Install that.")
    if database.url.get_backend_name() == "postgresql":
        with database.write() as connection:
            kept = _put_aside(connection, f"replaced_{suffix}")
            _load(connection, revision, lines)
        return kept
    file = Path(str(database.url.database))
    new = file.with_name(f".{file.name}.restoring")
    _remove(new)
    fresh = Database(f"sqlite:///{new}")
    try:
        with fresh.write() as connection:
            _load(connection, revision, lines)
        fresh.close()
        kept = _rename(database, file, suffix) if file.exists() else None
        new.rename(file)
    finally:
        fresh.close()
        _remove(new)
    return kept


def _load(connection: Connection, revision: str, lines: Iterable[bytes]) -> None:
    upgrade(connection, revision)
    found = _reflected(connection)
    table: Table | None = None
    binary: list[str] = []
    columns: list[str] = []
    batch: list[dict[str, Any]] = []
    for line in lines:
        if line.startswith(b"{"):
            _insert(connection, table, batch)
            header = _decode_header(line)
            table, columns, binary = found.tables.get(header.table), header.columns, header.binary
            if table is None or not set(columns) <= set(table.c.keys()):
                raise StoreRefused(f"The backup has a table {header.table} that revision {revision} does not have.")
            # A migration may have put its first row there.
            connection.execute(table.delete())
            continue
        row = dict(zip(columns, _decode_row(line), strict=True))
        for name in binary:
            row[name] = None if row[name] is None else base64.b64decode(row[name])
        batch.append(row)
        if len(batch) == _AT_ONCE:
            _insert(connection, table, batch)
    _insert(connection, table, batch)
    _go_on_behind(connection, found.tables.get(t.key_event.name))
    upgrade(connection)


def _reflected(connection: Connection) -> MetaData:
    """The tables as they are: of a revision that is not this version's there is no other description."""
    found = MetaData()
    with warnings.catch_warnings():
        # An index over an expression is passed over on SQLite; indexes are of no interest here.
        warnings.simplefilter("ignore", SAWarning)
        found.reflect(connection)
    return found


def _insert(connection: Connection, table: Table | None, batch: list[dict[str, Any]]) -> None:
    if table is not None and batch:
        connection.execute(table.insert(), batch)
    batch.clear()


def _go_on_behind(connection: Connection, events: Table | None) -> None:
    """Give new events numbers that nobody has read yet."""
    if events is None:
        return
    last = connection.execute(select(func.coalesce(func.max(events.c.sequence), 0))).scalar_one()
    if connection.dialect.name == "postgresql":
        sequence = func.pg_get_serial_sequence(events.name, "sequence")
        connection.execute(select(func.setval(sequence, last + EVENTS_GAP)))
    else:
        connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), {"name": events.name})
        values = {"name": events.name, "last": last + EVENTS_GAP}
        connection.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :last)"), values)


def _put_aside(connection: Connection, schema: str) -> str | None:
    if not sqlalchemy.inspect(connection).get_table_names():
        return None
    others = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = current_user"
        " AND pid <> pg_backend_pid()"
    )
    if connection.execute(others).scalar_one():
        raise StoreRefused(_IN_USE)
    quote = connection.dialect.identifier_preparer.quote
    connection.execute(text(f"CREATE SCHEMA {quote(schema)}"))
    for name in sqlalchemy.inspect(connection).get_table_names():
        connection.execute(text(f"ALTER TABLE {quote(name)} SET SCHEMA {quote(schema)}"))
    return f"schema {schema}"


def _remove(file: Path) -> None:
    for end in ("", "-wal", "-shm"):
        file.with_name(file.name + end).unlink(missing_ok=True)


def _rename(database: Database, file: Path, suffix: str) -> str:
    database.close()
    connection = sqlite3.connect(file, isolation_level=None, timeout=1)
    try:
        # In this mode SQLite wants the file for itself, and every other process that has it open is in the way.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.OperationalError as error:
        raise StoreRefused(_IN_USE) from error
    finally:
        connection.close()
    kept = file.with_name(f"{file.name}.replaced-{suffix}")
    file.rename(kept)
    _remove(file)
    return str(kept)


def _decode_header(line: bytes) -> _Header:
    try:
        return msgspec.json.decode(line, type=_Header)
    except msgspec.MsgspecError as error:
        raise StoreRefused(_NO_DUMP) from error


def _decode_row(line: bytes) -> list[Any]:
    try:
        return msgspec.json.decode(line, type=list[Any])
    except msgspec.MsgspecError as error:
        raise StoreRefused(_NO_DUMP) from error


_NO_DUMP: Final = "The backup's rows cannot be read."
_IN_USE: Final = "A process uses the database. Stop the service on every node first."
