"""Sealed records: documents that grant something, each with a MAC that this room carries and does not understand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from hsmkms.domain.identities import ApiKeyUse
from hsmkms.domain.records import Record
from hsmkms.store import tables as t
from hsmkms.store.changes import record_change
from hsmkms.store.engine import Database

_BATCH = 500


class StaleRecord(Exception):
    """The record is not at the revision that the change was made for, or is there already, or is gone."""


class RecordStore:
    """Rows of sealed records. Methods raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self, places: Iterable[tuple[str, str]] | None) -> list[Record]:
        """The records at these (kind, id), or all of them for None; those that do not exist are left out."""
        with self._database.read() as connection:
            if places is None:
                return [_record(row) for row in connection.execute(select(t.record))]
            wanted, found = list(places), []
            for start in range(0, len(wanted), _BATCH):
                keys = tuple_(t.record.c.kind, t.record.c.id).in_(wanted[start : start + _BATCH])
                found += [_record(row) for row in connection.execute(select(t.record).where(keys))]
            return found

    @contextlib.contextmanager
    def write(self) -> Iterator[RecordWriter]:
        """Changes that are committed together when the block ends, or not at all."""
        with self._database.write() as connection:
            yield RecordWriter(connection)

    def note_use(self, api_key_id: str, used_at: datetime) -> None:
        """Remember when an API key was last used."""
        with self._database.write() as connection:
            changed = connection.execute(
                update(t.api_key_use)
                .where(t.api_key_use.c.api_key_id == api_key_id)
                .values(last_used_at=used_at, uses=t.api_key_use.c.uses + 1)
            )
            if changed.rowcount == 0:
                # Another process may be first; then its time is as good as ours.
                with contextlib.suppress(IntegrityError), connection.begin_nested():
                    connection.execute(
                        insert(t.api_key_use).values(api_key_id=api_key_id, last_used_at=used_at, uses=1)
                    )

    def last_use(self, api_key_id: str) -> ApiKeyUse | None:
        """When an API key was last used, if ever."""
        with self._database.read() as connection:
            row = connection.execute(
                select(t.api_key_use).where(t.api_key_use.c.api_key_id == api_key_id)
            ).one_or_none()
        return None if row is None else ApiKeyUse(row.last_used_at, row.uses)


class RecordWriter:
    """The changes of one transaction. What `of_account` reads cannot change before they are committed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def insert(self, new: Record) -> None:
        """Add a record at revision 1. Raises StaleRecord when there is one."""
        record_change(self._connection, new.kind, new.id)
        try:
            with self._connection.begin_nested():
                self._connection.execute(
                    insert(t.record).values(
                        kind=new.kind,
                        id=new.id,
                        account=new.account,
                        revision=new.revision,
                        document=new.document,
                        mac=new.mac,
                    )
                )
        except IntegrityError as error:
            raise StaleRecord from error

    def replace(self, new: Record) -> None:
        """Change the record that is one revision older. Raises StaleRecord."""
        record_change(self._connection, new.kind, new.id)
        changed = self._connection.execute(
            update(t.record)
            .where(t.record.c.kind == new.kind, t.record.c.id == new.id, t.record.c.revision == new.revision - 1)
            .values(account=new.account, revision=new.revision, document=new.document, mac=new.mac)
        )
        if changed.rowcount != 1:
            raise StaleRecord

    def delete(self, old: Record) -> None:
        """Take a record away. Raises StaleRecord when it is not at that revision any more."""
        record_change(self._connection, old.kind, old.id)
        gone = self._connection.execute(
            delete(t.record).where(
                t.record.c.kind == old.kind, t.record.c.id == old.id, t.record.c.revision == old.revision
            )
        )
        if gone.rowcount != 1:
            raise StaleRecord

    def of_account(self, account: str) -> list[Record]:
        """All records of an account as they will be after this transaction."""
        return [_record(row) for row in self._connection.execute(select(t.record).where(t.record.c.account == account))]


def _record(row: Any) -> Record:
    """What is of the wrong type was not written by us; without document or MAC nobody believes it."""
    document, mac = (value if isinstance(value, bytes) else b"" for value in (row.document, row.mac))
    revision = row.revision if isinstance(row.revision, int) else 0
    return Record(row.kind, row.id, row.account, revision, document, mac)
