"""The migrations make exactly the tables that the code uses, on both databases."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from hsmkms.errors import StoreRefused
from hsmkms.store.engine import Database
from hsmkms.store.tables import metadata


# SQLite's index over an expression cannot be compared; PostgreSQL's, of the same migration, is.
@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression:sqlalchemy.exc.SAWarning")
@pytest.mark.filterwarnings("ignore:autogenerate skipping")
def test_migrations_match_the_tables(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'schema.db'}"
    if database == "postgresql":
        url = request.getfixturevalue("postgres").new_database(f"schema{uuid.uuid4().hex}")
    opened = Database(url)
    assert opened.revision() is None
    opened.migrate()
    opened.migrate()
    assert opened.revision() == opened.newest_revision()
    with opened.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    opened.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y"])
def test_unfit_databases_are_refused(url: str) -> None:
    with pytest.raises(StoreRefused):
        Database(url)
