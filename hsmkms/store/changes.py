"""The change feed: which keys changed since a sequence number, so that every process can drop what it remembers.

Every writing transaction takes the next number from a single row. Its lock is held until commit, so numbers become
visible in their order and a reader that saw n has seen all before n.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, delete, func, insert, select, update

from hsmkms.store.engine import Database
from hsmkms.store.tables import change, change_clock

_KEPT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Changes:
    """`key_ids` that changed up to `sequence`; None when too many did to say which, or when an instance changed."""

    sequence: int
    key_ids: frozenset[str] | None


def record_change(connection: Connection, key_id: str | None) -> None:
    """Note in the writer's transaction that a key (or, with None, anything else) changed."""
    tick = update(change_clock).values(sequence=change_clock.c.sequence + 1).returning(change_clock.c.sequence)
    sequence = connection.execute(tick).scalar_one()
    connection.execute(insert(change).values(sequence=sequence, key_id=key_id))
    if sequence % 1_000 == 0:
        connection.execute(delete(change).where(change.c.sequence <= sequence - _KEPT))


def changes_since(database: Database, seen: int) -> Changes:
    """What changed after `seen`. Raises StoreUnavailable."""
    with database.read() as connection:
        newest = connection.execute(select(change_clock.c.sequence)).scalar_one()
        if newest == seen:
            return Changes(newest, frozenset())
        oldest = connection.execute(select(func.min(change.c.sequence))).scalar_one() or 0
        rows = connection.execute(
            select(change.c.key_id).where(change.c.sequence > seen, change.c.sequence <= newest)
        ).scalars()
        key_ids = set(rows)
    if oldest > seen + 1 or newest < seen or None in key_ids:
        return Changes(newest, None)
    return Changes(newest, frozenset(key_id for key_id in key_ids if key_id is not None))
