"""Rows of registrations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from hsmkms.domain.access import SourceCrn
from hsmkms.domain.keys import Key
from hsmkms.domain.registrations import Registration, RegistrationQuery, ResourceCrn
from hsmkms.errors import DeletionPrevented, ProtectedResource, RegistrationExists
from hsmkms.store import tables as t
from hsmkms.store.engine import Database
from hsmkms.store.seen import hold_seen


class StaleRegistration(Exception):
    """The row changed since the caller read it: read again and decide again."""


class RegistrationStore:
    """Methods raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, key: Key, crn: ResourceCrn) -> Registration | None:
        """The registration of a resource with a key."""
        with self._database.read() as connection:
            row = connection.execute(
                _select().where(t.registration.c.key_id == key.id, t.registration.c.resource_crn == str(crn))
            ).first()
        return None if row is None else _value(row)

    def page(
        self,
        instance_id: str,
        query: RegistrationQuery,
        *,
        key_id: str | None,
        ring_ids: Collection[str] | None,
        sources: Collection[SourceCrn] | None,
    ) -> tuple[Sequence[Registration], int]:
        """One page, and how many there are on all. None for a key, rings or sources means any."""
        where = [t.key.c.instance_id == instance_id, t.key.c.purge_began_at.is_(None), *_matching(query)]
        if key_id is not None:
            where.append(t.registration.c.key_id == key_id)
        if ring_ids is not None:
            where.append(t.key.c.key_ring_id.in_(sorted(ring_ids)))
        if sources is not None:
            where.append(or_(*(_owned_by(source) for source in sources)))
        with self._database.read() as connection:
            total = connection.execute(
                select(func.count()).select_from(t.registration.join(t.key)).where(*where)
            ).scalar_one()
            order = (t.registration.c.key_id, t.registration.c.resource_crn)
            rows = connection.execute(
                _select().where(*where).order_by(*order).limit(query.limit).offset(query.offset)
            ).all()
        return [_value(row) for row in rows], total

    def insert(self, seen: Key, registration: Registration) -> None:
        """Commit a registration, unless the key is no longer as it was seen. Raises StaleKey, RegistrationExists."""
        try:
            with self._database.write() as connection:
                hold_seen(connection, seen)
                connection.execute(insert(t.registration).values(key_id=seen.id, **_columns(registration)))
        except IntegrityError as error:
            raise RegistrationExists from error

    def replace(self, seen: Key, was: Registration, registration: Registration) -> None:
        """Commit a changed registration. Raises StaleKey, StaleRegistration."""
        with self._database.write() as connection:
            hold_seen(connection, seen)
            changed = connection.execute(
                update(t.registration)
                .where(
                    t.registration.c.key_id == seen.id,
                    t.registration.c.resource_crn == str(was.crn),
                    t.registration.c.revision == was.revision,
                )
                .values(**_columns(registration))
            )
            if changed.rowcount != 1:
                raise StaleRegistration

    def delete(self, registration: Registration) -> None:
        """Commit that a registration is no more, and that nobody needs to acknowledge anything for it."""
        with self._database.write() as connection:
            drop_registration(connection, registration.key_id, str(registration.crn))


def drop_registration(connection: Connection, key_id: str, resource_crn: str) -> None:
    """In the writer's transaction: a registration goes, with the events that nobody acknowledged for it."""
    for table in (t.registration, t.key_event):
        where = [table.c.key_id == key_id, table.c.resource_crn == resource_crn]
        if table is t.key_event:
            where.append(t.key_event.c.acknowledged_at.is_(None))
        connection.execute(delete(table).where(*where))


def require_deletable(connection: Connection, key: Key, *, force: bool) -> None:
    """In the writer's transaction, behind its lock of the key. Raises DeletionPrevented, ProtectedResource."""
    of_key = t.registration.c.key_id == key.id
    order = (t.registration.c.prevents_deletion.desc(), t.registration.c.resource_crn)
    first = connection.execute(_select().where(of_key).order_by(*order).limit(1)).first()
    if first is None:
        return
    if first.prevents_deletion:
        raise DeletionPrevented(first.resource_crn)
    if not force:
        raise ProtectedResource(first.resource_crn)


def _matching(query: RegistrationQuery) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = []
    if query.prevents_deletion is not None:
        where.append(t.registration.c.prevents_deletion.is_(query.prevents_deletion))
    if query.crn is None:
        return where
    c = t.registration.c
    *segments, last = query.crn.segments
    for column, value in zip(
        (c.service, c.region, c.account, c.service_instance, c.resource_type), segments, strict=True
    ):
        if value is not None:
            where.append(column == value)
    if last is not None:
        where.append(func.substr(c.resource, 1, len(last)) == last if query.crn.prefix else c.resource == last)
    return where


def _owned_by(source: SourceCrn) -> ColumnElement[bool]:
    c = t.registration.c
    return and_(
        c.service == source.service,
        c.region == source.region,
        c.account == source.account,
        c.service_instance == source.instance_id,
    )


def _select() -> Select[Any]:
    return select(t.registration, t.key.c.name).join(t.key)


def _columns(registration: Registration) -> dict[str, object]:
    crn = registration.crn
    return {
        "resource_crn": str(crn),
        "service": crn.service,
        "region": crn.region,
        "account": crn.account,
        "service_instance": crn.service_instance,
        "resource_type": crn.resource_type,
        "resource": crn.resource,
        "version_id": registration.version_id,
        "version_created_at": registration.version_created_at,
        "description": registration.description,
        "metadata": registration.metadata,
        "prevents_deletion": registration.prevents_deletion,
        "created_at": registration.created_at,
        "created_by": registration.created_by,
        "updated_at": registration.updated_at,
        "updated_by": registration.updated_by,
        "revision": registration.revision,
    }


def _value(row: Row[Any]) -> Registration:
    found = row._mapping
    crn = ResourceCrn(**{name: found[name] for name in ResourceCrn.__dataclass_fields__})
    return Registration(
        key_id=row.key_id,
        key_name=row.name,
        crn=crn,
        version_id=row.version_id,
        version_created_at=row.version_created_at,
        description=row.description,
        metadata=found["metadata"],
        prevents_deletion=row.prevents_deletion,
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
        updated_by=row.updated_by,
        revision=row.revision,
    )
