"""Databases of older schemas, and what a migration takes away from programs that know only these."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Column, MetaData, Table

from hsmkms.store import engine
from hsmkms.store.engine import Database

MIGRATIONS = Path(engine.__file__).parent / "migrations"


def revisions() -> list[Script]:
    """All migrations, oldest first."""
    scripts = list(ScriptDirectory(str(MIGRATIONS)).walk_revisions())
    return scripts[::-1]


def reflected(url: sqlalchemy.URL) -> MetaData:
    """The tables of a database as they are."""
    engine = sqlalchemy.create_engine(url.set(drivername=url.get_dialect().name + _DRIVER[url.get_backend_name()]))
    found = MetaData()
    try:
        found.reflect(engine)
    finally:
        engine.dispose()
    return found


_DRIVER = {"sqlite": "", "postgresql": "+psycopg"}


def taken_away(before: MetaData, after: MetaData) -> set[str]:
    """What a program that knows `before` can no longer do on `after`, in words."""
    lost: set[str] = set()
    for name, old in before.tables.items():
        new = after.tables.get(name)
        if new is None:
            lost.add(f"table {name} is gone")
            continue
        lost |= {f"column {name}.{one} is gone" for one in set(old.c.keys()) - set(new.c.keys())}
        lost |= {f"index {one} is gone" for one in _indexes(old) - _indexes(new)}
        lost |= {f"unique index {one} is new" for one in _indexes(new, unique=True) - _indexes(old, unique=True)}
        for column in new.c:
            if _demanded(column) and (column.name not in old.c or not _demanded(old.c[column.name])):
                lost.add(f"column {name}.{column.name} is demanded")
            if column.name in old.c and str(old.c[column.name].type) != str(column.type):
                lost.add(f"column {name}.{column.name} is {column.type} instead of {old.c[column.name].type}")
        lost |= {f"foreign key {one} is new" for one in _foreign_keys(new, old) - _foreign_keys(old, old)}
    return lost


def _indexes(table: Table, *, unique: bool = False) -> set[str]:
    return {str(index.name) for index in table.indexes if index.unique or not unique}


def _demanded(column: Column[Any]) -> bool:
    return not column.nullable and column.server_default is None and not column.primary_key


def _foreign_keys(table: Table, known: Table) -> set[str]:
    return {
        f"{table.name}.{one.parent.name} to {one.target_fullname}"
        for one in table.foreign_keys
        if one.parent.name in known.c
    }


def at_revision(source: Path, target: Path, revision: str) -> None:
    """The rows of a SQLite database in one of an older schema, as far as that has their tables and columns."""
    old = Database(f"sqlite:///{target}")
    old.migrate(revision)
    old.close()
    with sqlite3.connect(target) as connection:
        connection.execute("ATTACH ? AS new", (str(source),))
        for (name,) in connection.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall():
            known = {row[1] for row in connection.execute(f"PRAGMA new.table_info('{name}')")}
            columns = [row[1] for row in connection.execute(f"PRAGMA main.table_info('{name}')") if row[1] in known]
            if columns and name != "alembic_version" and not name.startswith("sqlite_"):
                listed = ", ".join(f'"{column}"' for column in columns)
                connection.execute(f'DELETE FROM main."{name}"')
                connection.execute(f'INSERT INTO main."{name}" ({listed}) SELECT {listed} FROM new."{name}"')
    connection.close()
