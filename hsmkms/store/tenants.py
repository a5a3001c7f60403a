"""Instances and key rings."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from hsmkms.domain.ids import DEFAULT_KEY_RING
from hsmkms.domain.keys import KeyVersion, sealing_owner
from hsmkms.domain.tenants import Instance, KeyRing, SealedInstance
from hsmkms.errors import KeyRingExists
from hsmkms.store import tables as t
from hsmkms.store.changes import INSTANCE, KEY, KEY_RING, record_change
from hsmkms.store.engine import Database


class TenantStore:
    """Rows of tenants. Methods raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_instance(self, new: SealedInstance) -> None:
        """Commit an instance; the pending object of its sealing key is settled with it."""
        with self._database.write() as connection:
            connection.execute(insert(t.instance).values(_columns(new)))
            connection.execute(
                delete(t.pending_object).where(t.pending_object.c.version_id == new.instance.sealing_key.id)
            )
            record_change(connection, INSTANCE, new.instance.id)

    def replace_instance(self, seen: SealedInstance, new: SealedInstance) -> bool:
        """Change an instance that is still as it was seen; False if it is not."""
        with self._database.write() as connection:
            record_change(connection, INSTANCE, new.instance.id)
            changed = connection.execute(
                update(t.instance)
                .where(t.instance.c.id == new.instance.id, t.instance.c.mac.is_not_distinct_from(seen.mac))
                .values(_columns(new))
            )
            return changed.rowcount == 1

    def instances(self) -> list[SealedInstance]:
        """All instances, deleted ones too, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(t.instance).order_by(t.instance.c.created_at)).all()
        return [_instance(row) for row in rows]

    def key_rings(self, instance_id: str) -> list[KeyRing]:
        """The rings of an instance that have a row, by id; `default` has none."""
        with self._database.read() as connection:
            return _key_rings(connection, instance_id)

    def add_key_ring(self, instance_id: str, ring: KeyRing, most: int) -> bool:
        """Commit a ring unless there are `most` already, which gives False. Raises KeyRingExists."""
        try:
            with self._database.write() as connection:
                # The change number first: it serialises writers, so that two creations cannot both pass the count.
                record_change(connection, KEY_RING, instance_id)
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
            record_change(connection, KEY_RING, instance_id)
            inside = (t.key.c.instance_id == instance_id, t.key.c.key_ring_id == ring_id)
            others = select(func.count()).where(*inside, t.key.c.state.is_distinct_from(move_in_state))
            if connection.execute(others).scalar_one():
                return False
            for key_id in connection.execute(select(t.key.c.id).where(*inside)).scalars().all():
                record_change(connection, KEY, key_id)
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


def _columns(sealed: SealedInstance) -> dict[str, Any]:
    instance = sealed.instance
    return {
        "id": instance.id,
        "name": instance.name,
        "region": instance.region,
        "account": instance.account,
        "created_at": instance.created_at,
        "sealing_id": instance.sealing_key.id,
        "sealing_created_at": instance.sealing_key.created_at,
        "sealing_check_value": instance.sealing_key.check_value,
        "resource_group": instance.resource_group,
        "plan_id": instance.plan_id,
        "created_by": instance.created_by,
        "updated_at": instance.updated_at,
        "deleted_at": instance.deleted_at,
        "deleted_by": instance.deleted_by,
        "mac": sealed.mac,
    }


def _instance(row: Row[tuple[object, ...]]) -> SealedInstance:
    instance = Instance(
        id=row.id,
        name=row.name,
        region=row.region,
        account=row.account,
        created_at=row.created_at,
        sealing_key=KeyVersion(row.sealing_id, row.sealing_created_at, row.sealing_check_value, sealing_owner(row.id)),
        resource_group=row.resource_group,
        plan_id=row.plan_id,
        created_by=row.created_by,
        updated_at=row.updated_at,
        deleted_at=row.deleted_at,
        deleted_by=row.deleted_by,
    )
    return SealedInstance(instance, row.mac)
