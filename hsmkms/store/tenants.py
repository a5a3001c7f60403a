"""Instances, API keys, signing keys and key rings."""

from __future__ import annotations

from sqlalchemy import Connection, Row, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from hsmkms.domain.ids import DEFAULT_KEY_RING
from hsmkms.domain.keys import KeyVersion
from hsmkms.domain.tenants import ApiKey, Instance, KeyRing, SigningKey
from hsmkms.errors import KeyRingExists
from hsmkms.store import tables as t
from hsmkms.store.changes import record_change
from hsmkms.store.engine import Database


class TenantStore:
    """Rows of tenants and identities. Methods raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_instance(self, new: Instance) -> None:
        """Commit an instance; the pending object of its sealing key is settled with it."""
        with self._database.write() as connection:
            connection.execute(
                insert(t.instance).values(
                    id=new.id,
                    name=new.name,
                    region=new.region,
                    account=new.account,
                    created_at=new.created_at,
                    sealing_id=new.sealing_key.id,
                    sealing_created_at=new.sealing_key.created_at,
                    sealing_check_value=new.sealing_key.check_value,
                )
            )
            connection.execute(delete(t.pending_object).where(t.pending_object.c.version_id == new.sealing_key.id))
            record_change(connection, None)

    def instances(self) -> list[Instance]:
        """All instances, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(t.instance).order_by(t.instance.c.created_at)).all()
        return [_instance(row) for row in rows]

    def add_api_key(self, new: ApiKey) -> None:
        """Commit an API key."""
        with self._database.write() as connection:
            connection.execute(
                insert(t.api_key).values(
                    id=new.id,
                    name=new.name,
                    iam_id=new.iam_id,
                    account=new.account,
                    administrator=new.administrator,
                    secret_sha256=new.secret_sha256,
                    created_at=new.created_at,
                )
            )

    def api_key(self, secret_sha256: bytes) -> ApiKey | None:
        """The API key with this hash, if there is one."""
        with self._database.read() as connection:
            row = connection.execute(select(t.api_key).where(t.api_key.c.secret_sha256 == secret_sha256)).one_or_none()
        return None if row is None else ApiKey(**row._asdict())

    def add_signing_key(self, new: SigningKey) -> None:
        """Commit the public half of a signing key."""
        with self._database.write() as connection:
            connection.execute(
                insert(t.signing_key).values(id=new.id, public_pem=new.public_pem, created_at=new.created_at)
            )

    def signing_keys(self) -> list[SigningKey]:
        """All signing keys, newest first; the first one signs."""
        with self._database.read() as connection:
            rows = connection.execute(select(t.signing_key).order_by(t.signing_key.c.created_at.desc())).all()
        return [SigningKey(**row._asdict()) for row in rows]

    def key_rings(self, instance_id: str) -> list[KeyRing]:
        """The rings of an instance that have a row, by id; `default` has none."""
        with self._database.read() as connection:
            return _key_rings(connection, instance_id)

    def add_key_ring(self, instance_id: str, ring: KeyRing, most: int) -> bool:
        """Commit a ring unless there are `most` already, which gives False. Raises KeyRingExists."""
        try:
            with self._database.write() as connection:
                # The change number first: it serialises writers, so that two creations cannot both pass the count.
                record_change(connection, None)
                if len(_key_rings(connection, instance_id)) >= most:
                    return False
                connection.execute(
                    insert(t.key_ring).values(
                        instance_id=instance_id, id=ring.id, created_at=ring.created_at, created_by=ring.created_by
                    )
                )
        except IntegrityError as error:
            raise KeyRingExists from error
        return True

    def delete_key_ring(self, instance_id: str, ring_id: str, *, move_in_state: int | None) -> bool:
        """Delete a ring that no key is in; False if a key is. Keys in `move_in_state` are moved to `default` first."""
        with self._database.write() as connection:
            record_change(connection, None)
            inside = (t.key.c.instance_id == instance_id, t.key.c.key_ring_id == ring_id)
            others = select(func.count()).where(*inside, t.key.c.state.is_distinct_from(move_in_state))
            if connection.execute(others).scalar_one():
                return False
            connection.execute(update(t.key).where(*inside).values(key_ring_id=DEFAULT_KEY_RING))
            connection.execute(
                delete(t.key_ring).where(t.key_ring.c.instance_id == instance_id, t.key_ring.c.id == ring_id)
            )
        return True


def _key_rings(connection: Connection, instance_id: str) -> list[KeyRing]:
    rows = connection.execute(
        select(t.key_ring).where(t.key_ring.c.instance_id == instance_id).order_by(t.key_ring.c.id)
    )
    return [KeyRing(row.id, row.created_at, row.created_by) for row in rows]


def _instance(row: Row[tuple[object, ...]]) -> Instance:
    return Instance(
        id=row.id,
        name=row.name,
        region=row.region,
        account=row.account,
        created_at=row.created_at,
        sealing_key=KeyVersion(row.sealing_id, row.sealing_created_at, row.sealing_check_value),
    )
