"""Optimistic concurrency of keys: a change counts only if what it was decided on is still so."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, select, update

from hsmkms.domain.keys import Key
from hsmkms.store import tables as t
from hsmkms.store.key_policies import policies_of


class StaleKey(Exception):
    """The row changed since the caller read it: read again and decide again."""


def update_seen(connection: Connection, seen: Key, **values: object) -> None:
    """Change the row of a key, which locks it until the transaction ends. Raises StaleKey."""
    if connection.execute(update(t.key).where(*_unchanged(seen)).values(**values)).rowcount != 1:
        raise StaleKey
    _require_same_policies(connection, seen)


def hold_seen(connection: Connection, seen: Key) -> None:
    """Lock the row of a key without changing it. Raises StaleKey."""
    if connection.execute(select(t.key.c.id).where(*_unchanged(seen)).with_for_update()).first() is None:
        raise StaleKey
    _require_same_policies(connection, seen)


def _require_same_policies(connection: Connection, seen: Key) -> None:
    """Whoever writes policies holds the row of their key too."""
    if tuple(policies_of(connection, [seen.id]).get(seen.id, [])) != seen.policies:
        raise StaleKey


def _unchanged(seen: Key) -> list[ColumnElement[bool]]:
    """That nobody changed what the caller's decision stood on."""
    return [
        t.key.c.id == seen.id,
        t.key.c.state == int(seen.state),
        t.key.c.key_ring_id == seen.key_ring_id,
        t.key.c.rotated_at.is_not_distinct_from(seen.rotated_at),
        t.key.c.deleted_at.is_not_distinct_from(seen.deleted_at),
        t.key.c.disabled_at.is_not_distinct_from(seen.disabled_at),
        t.key.c.deletion_set_at.is_not_distinct_from(seen.deletion_set_at),
        t.key.c.deletion_set_by.is_not_distinct_from(seen.deletion_set_by),
        t.key.c.noticed_at.is_not_distinct_from(seen.noticed_at),
        t.key.c.purge_began_at.is_(None),
    ]
