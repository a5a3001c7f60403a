"""The outbox: events are written with what they tell, read in order by those they are for, and acknowledged once."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update

from hsmkms.domain.events import Acknowledgement, AdopterKeyState, EventType, KeyEvent
from hsmkms.domain.keys import Key, KeyState
from hsmkms.domain.registrations import ResourceCrn
from hsmkms.store import tables as t
from hsmkms.store.changes import EVENT, record_change
from hsmkms.store.engine import Database
from hsmkms.store.registrations import drop_registration

_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Notice:
    """What to tell the services of a key, and by when they have to acknowledge it."""

    type: EventType
    correlation_id: str
    at: datetime
    due_at: datetime


def tell(connection: Connection, key: Key, state: KeyState, version_id: str | None, notice: Notice) -> None:
    """In the writer's transaction: one event for each registration of a key, and a ring for those who wait."""
    connection.execute(update(t.key).where(t.key.c.id == key.id).values(noticed_at=notice.at))
    columns = (c for c in t.registration.c if c.name in ResourceCrn.__dataclass_fields__)
    rows = connection.execute(select(*columns).where(t.registration.c.key_id == key.id)).all()
    crns = [ResourceCrn(**row._mapping) for row in rows]
    if not crns:
        return
    # A damaged key has no version; it is deleted all the same, and its services hear of that.
    told_version = version_id or (key.current.id if key.versions else "")
    record_change(connection, EVENT, key.instance_id)
    for start in range(0, len(crns), _BATCH):
        connection.execute(
            insert(t.key_event),
            [_event(key, state, told_version, crn, notice) for crn in crns[start : start + _BATCH]],
        )


class EventStore:
    """Rows of the outbox. Methods raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def after(self, instance_id: str, sources: Iterable[str], sequence: int, most: int) -> list[KeyEvent]:
        """Events of an instance for the resources of `sources` (first eight segments) behind a number, in order."""
        mine = t.key_event.c.source.in_(sorted(sources))
        where = (t.key_event.c.instance_id == instance_id, mine, t.key_event.c.sequence > sequence)
        return self._read(_select().where(*where).order_by(t.key_event.c.sequence).limit(most))

    def of_source(self, source: str, sequence: int, most: int) -> list[KeyEvent]:
        """Events of all instances for the resources of one source behind a number, in order."""
        where = (t.key_event.c.source == source, t.key_event.c.sequence > sequence)
        return self._read(_select().where(*where).order_by(t.key_event.c.sequence).limit(most))

    def of_key(self, key_id: str, most: int) -> list[KeyEvent]:
        """The newest events of a key, newest first."""
        return self._read(
            _select().where(t.key_event.c.key_id == key_id).order_by(t.key_event.c.sequence.desc()).limit(most)
        )

    def unacknowledged(self, most: int) -> list[KeyEvent]:
        """Events of the whole deployment that nobody acknowledged, oldest first."""
        return self._read(
            _select().where(t.key_event.c.acknowledged_at.is_(None)).order_by(t.key_event.c.sequence).limit(most)
        )

    def overdue(self, since: datetime | None, now: datetime) -> list[KeyEvent]:
        """Events that nobody acknowledged and whose time for that ended behind `since`, in the order of those times."""
        due = (t.key_event.c.acknowledged_at.is_(None), t.key_event.c.due_at <= now)
        query = _select().where(*due).order_by(t.key_event.c.due_at, t.key_event.c.sequence)
        return self._read(query if since is None else query.where(t.key_event.c.due_at > since))

    def get(self, instance_id: str, event_id: str) -> KeyEvent | None:
        """An event of an instance."""
        found = self._read(_select().where(t.key_event.c.id == event_id, t.key_event.c.instance_id == instance_id))
        return found[0] if found else None

    def acknowledge(self, event: KeyEvent, acknowledgement: Acknowledgement, now: datetime) -> None:
        """Commit what a service says of an event. A second word changes nothing: the first may be on record already."""
        with self._database.write() as connection:
            connection.execute(
                update(t.key_event)
                .where(t.key_event.c.id == event.id, t.key_event.c.acknowledged_at.is_(None))
                .values(
                    acknowledged_at=now,
                    adopter_key_state=acknowledgement.adopter_key_state.value,
                    adopter_version_id=acknowledgement.version_id,
                    adopter_done_at=acknowledgement.done_at,
                )
            )
            if acknowledgement.delete_registration:
                drop_registration(connection, event.key_id, event.resource_crn)

    def acknowledge_all(
        self, key_id: str, resource_crn: str, type: EventType, state: AdopterKeyState, now: datetime
    ) -> None:
        """Commit that a service has done what all pending events of a type told it about one registration."""
        with self._database.write() as connection:
            connection.execute(
                update(t.key_event)
                .where(
                    t.key_event.c.key_id == key_id,
                    t.key_event.c.resource_crn == resource_crn,
                    t.key_event.c.type == type.value,
                    t.key_event.c.acknowledged_at.is_(None),
                )
                .values(acknowledged_at=now, adopter_key_state=state.value, adopter_done_at=now)
            )

    def count_acknowledged(self, before: datetime) -> int:
        """How many events were acknowledged by then."""
        with self._database.read() as connection:
            return connection.execute(
                select(func.count()).select_from(t.key_event).where(t.key_event.c.acknowledged_at <= before)
            ).scalar_one()

    def forget_acknowledged(self, before: datetime, most: int) -> int:
        """Drop the oldest events that were acknowledged by then, and say how many."""
        old = (
            select(t.key_event.c.sequence)
            .where(t.key_event.c.acknowledged_at <= before)
            .order_by(t.key_event.c.sequence)
            .limit(most)
        )
        with self._database.write() as connection:
            return connection.execute(
                delete(t.key_event).where(t.key_event.c.sequence.in_(old.scalar_subquery()))
            ).rowcount

    def _read(self, statement: Select[Any]) -> list[KeyEvent]:
        with self._database.read() as connection:
            return [_value(row) for row in connection.execute(statement)]


def _event(key: Key, state: KeyState, version_id: str, crn: ResourceCrn, notice: Notice) -> dict[str, object]:
    return {
        "id": str(uuid.uuid4()),
        "type": notice.type.value,
        "instance_id": key.instance_id,
        "key_id": key.id,
        "resource_crn": str(crn),
        "source": crn.source,
        "key_state": int(state),
        "version_id": version_id,
        "correlation_id": notice.correlation_id,
        "created_at": notice.at,
        "due_at": notice.due_at,
    }


def _select() -> Select[Any]:
    """Events with the ring that their key is in now; those of a key that is being purged are gone with it."""
    return (
        select(t.key_event, t.key.c.key_ring_id)
        .join(t.key, t.key.c.id == t.key_event.c.key_id)
        .where(t.key.c.purge_began_at.is_(None))
    )


def _value(row: Row[Any]) -> KeyEvent:
    state = row.adopter_key_state
    return KeyEvent(
        sequence=row.sequence,
        id=row.id,
        type=EventType(row.type),
        instance_id=row.instance_id,
        key_id=row.key_id,
        key_ring_id=row.key_ring_id,
        resource_crn=row.resource_crn,
        key_state=KeyState(row.key_state),
        version_id=row.version_id,
        correlation_id=row.correlation_id,
        created_at=row.created_at,
        due_at=row.due_at,
        acknowledged_at=row.acknowledged_at,
        adopter_key_state=None if state is None else AdopterKeyState(state),
    )
