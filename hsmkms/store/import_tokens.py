"""Rows of import tokens: one an instance, counted down where it is read."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update

from hsmkms.domain.importing import ImportToken, transport_owner
from hsmkms.store import tables as t
from hsmkms.store.engine import Database


class ImportTokenStore:
    """Methods raise StoreUnavailable. Each row comes with its MAC, which the caller checks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def replace(self, token: ImportToken, mac: bytes) -> str | None:
        """Commit an import token in the place of the instance's old one, whose id it gives; its own row is no longer
        pending, and the old key pair's is from now on."""
        with self._database.write() as connection:
            # One at a time for an instance: two that replace each other's token would both insert.
            connection.execute(
                select(t.instance.c.id).where(t.instance.c.id == token.instance_id).with_for_update()
            ).first()
            gone = connection.execute(
                delete(t.import_token)
                .where(t.import_token.c.instance_id == token.instance_id)
                .returning(t.import_token.c.id)
            ).scalar_one_or_none()
            connection.execute(
                insert(t.import_token).values(
                    instance_id=token.instance_id,
                    id=token.id,
                    public_pem=token.public_pem,
                    nonce=token.nonce,
                    created_at=token.created_at,
                    expires_at=token.expires_at,
                    retrievals=token.retrievals,
                    remaining=token.remaining,
                    mac=mac,
                )
            )
            connection.execute(delete(t.pending_object).where(t.pending_object.c.version_id == token.id))
            if gone is not None:
                connection.execute(
                    insert(t.pending_object).values(
                        version_id=gone, purpose=transport_owner(token.instance_id), created_at=token.created_at
                    )
                )
        return gone

    def get(self, instance_id: str) -> tuple[ImportToken, bytes] | None:
        """The import token of an instance and its MAC."""
        with self._database.read() as connection:
            row = connection.execute(select(t.import_token).where(t.import_token.c.instance_id == instance_id)).first()
        return None if row is None else (_value(row), row.mac)

    def retrieve(self, instance_id: str, now: datetime) -> tuple[ImportToken, bytes] | None:
        """Count a retrieval and give the token with what is left; None if it expired or was read as often as it may."""
        with self._database.write() as connection:
            row = connection.execute(
                update(t.import_token)
                .where(
                    t.import_token.c.instance_id == instance_id,
                    t.import_token.c.expires_at > now,
                    t.import_token.c.remaining > 0,
                )
                .values(remaining=t.import_token.c.remaining - 1)
                .returning(*t.import_token.c)
            ).first()
        return None if row is None else (_value(row), row.mac)

    def has(self, key_id: str) -> bool:
        """True if an import token has this key pair."""
        with self._database.read() as connection:
            found = connection.execute(select(t.import_token.c.id).where(t.import_token.c.id == key_id)).first()
        return found is not None

    def expired(self, now: datetime, most: int) -> list[ImportToken]:
        """Import tokens whose time is over."""
        with self._database.read() as connection:
            rows = connection.execute(
                select(t.import_token).where(t.import_token.c.expires_at <= now).limit(most)
            ).all()
        return [_value(row) for row in rows]

    def count_expired(self, now: datetime) -> int:
        """How many there are."""
        with self._database.read() as connection:
            return connection.execute(
                select(func.count()).select_from(t.import_token).where(t.import_token.c.expires_at <= now)
            ).scalar_one()

    def remove(self, key_id: str) -> None:
        """Commit that an import token is no more, after its key pair was destroyed."""
        with self._database.write() as connection:
            connection.execute(delete(t.import_token).where(t.import_token.c.id == key_id))


def _value(row: Row[Any]) -> ImportToken:
    return ImportToken(
        id=row.id,
        instance_id=row.instance_id,
        public_pem=row.public_pem,
        nonce=row.nonce,
        created_at=row.created_at,
        expires_at=row.expires_at,
        retrievals=row.retrievals,
        remaining=row.remaining,
    )
