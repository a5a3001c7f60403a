"""The change feed: what changed since a sequence number, so that every process can drop what it remembers.

Every writing transaction takes the next number from a single row. Its lock is held until commit, so numbers become
visible in their order and a reader that saw n has seen all before n.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, delete, func, insert, select, update

from hsmkms.store.engine import Database
from hsmkms.store.tables import change, change_clock

KEY: Final = "key"
INSTANCE: Final = "instance"
KEY_RING: Final = "key_ring"
EVENT: Final = "key_event"
_OTHER_KINDS: Final = frozenset({KEY, INSTANCE, KEY_RING, EVENT})
_KEPT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed up to `sequence`: keys by id, sealed records by (kind, id), whether any instance did, the instances
    with new events. `everything` says that too much did to tell, and that all else is empty."""

    sequence: int
    everything: bool = False
    key_ids: frozenset[str] = frozenset()
    records: frozenset[tuple[str, str]] = frozenset()
    instances: bool = False
    events: frozenset[str] = frozenset()


def record_change(connection: Connection, kind: str, subject_id: str) -> None:
    """Note in the writer's transaction what it changes: KEY, INSTANCE, KEY_RING, the kind of a sealed record, EVENT for
    new events of an instance."""
    tick = update(change_clock).values(sequence=change_clock.c.sequence + 1).returning(change_clock.c.sequence)
    sequence = connection.execute(tick).scalar_one()
    connection.execute(insert(change).values(sequence=sequence, kind=kind, subject_id=subject_id))
    if sequence % 1_000 == 0:
        connection.execute(delete(change).where(change.c.sequence <= sequence - _KEPT))


def changes_since(database: Database, seen: int) -> Changes:
    """What changed after `seen`; a negative `seen` asks for everything. Raises StoreUnavailable."""
    with database.read() as connection:
        newest = connection.execute(select(change_clock.c.sequence)).scalar_one()
        if newest == seen:
            return Changes(newest)
        oldest = connection.execute(select(func.min(change.c.sequence))).scalar_one() or 0
        rows = connection.execute(
            select(change.c.kind, change.c.subject_id).where(change.c.sequence > seen, change.c.sequence <= newest)
        ).all()
    if seen < 0 or oldest > seen + 1 or newest < seen:
        return Changes(newest, everything=True)
    return Changes(
        newest,
        key_ids=frozenset(row.subject_id for row in rows if row.kind == KEY),
        records=frozenset((row.kind, row.subject_id) for row in rows if row.kind not in _OTHER_KINDS),
        instances=any(row.kind == INSTANCE for row in rows),
        events=frozenset(row.subject_id for row in rows if row.kind == EVENT),
    )
