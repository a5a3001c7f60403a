"""Indexes that lists and jobs stand on when there are a hundred thousand keys.

Revision ID: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None
contracts = frozenset(
    {
        "index ix_key_instance_id_state is gone",
        "index ix_key_deleted_at is gone",
        "index ix_key_expires_at is gone",
    }
)

_FILTERED = (
    "state",
    "extractable",
    "imported",
    "key_ring_id",
    "created_at",
    "updated_at",
    "rotated_at",
    "expires_at",
    "deleted_at",
    "purge_began_at",
)
_OLD = {
    "ix_key_instance_id_state": ["instance_id", "state", "id"],
    "ix_key_deleted_at": ["deleted_at"],
    "ix_key_expires_at": ["expires_at"],
}
_JOBS = {
    "ix_key_due_to_expire": ("expires_at", "state = 1"),
    "ix_key_due_to_purge": ("deleted_at", "state = 5"),
    "ix_key_purging": ("purge_began_at", "purge_began_at IS NOT NULL"),
}
_LISTINGS = {
    "ix_key_listing": None,
    "ix_key_listing_created": "created_at",
    "ix_key_listing_updated": "coalesce(updated_at, created_at)",
    "ix_key_listing_rotated": "rotated_at",
    "ix_key_listing_expires": "expires_at",
    "ix_key_listing_deleted": "deleted_at",
}
_ROTATION = "ix_key_policy_rotation"
_NULLABLE = ("rotated_at", "expires_at", "deleted_at")


def upgrade() -> None:
    """Indexes in the place of others."""
    for name in _OLD:
        op.drop_index(name, "key")
    for name, order in _LISTINGS.items():
        first = [] if order is None else [sa.text(order)]
        where = "purge_began_at IS NULL" + (f" AND {order} IS NOT NULL" if order in _NULLABLE else "")
        _create(name, ["instance_id", *first, "id", *(one for one in _FILTERED if one != order)], where)
    for name, (column, where) in _JOBS.items():
        _create(name, [column], where)
    _create(_ROTATION, ["key_id", "enabled", "interval_month"], "kind = 'rotation'", table="key_policy")


def downgrade() -> None:
    """Take them away."""
    op.drop_index(_ROTATION, "key_policy")
    for name in (*_LISTINGS, *_JOBS):
        op.drop_index(name, "key")
    for name, columns in _OLD.items():
        op.create_index(name, "key", columns)


def _create(name: str, columns: list[str | sa.TextClause], where: str, table: str = "key") -> None:
    part = sa.text(where)
    op.create_index(name, table, columns, sqlite_where=part, postgresql_where=part)
