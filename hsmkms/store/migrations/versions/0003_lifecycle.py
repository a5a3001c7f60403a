"""Suspension, deletion by two, purge, and policies of single keys.

Revision ID: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns and one table; keys keep all that they have."""
    for name in ("disabled_at", "deletion_set_at", "purge_began_at"):
        op.add_column("key", sa.Column(name, sa.BigInteger))
    op.add_column("key", sa.Column("deletion_set_by", sa.Text))
    op.add_column("key_alias", sa.Column("created_at", sa.BigInteger))
    op.add_column("key_alias", sa.Column("created_by", sa.Text))
    op.create_table(
        "key_policy",
        sa.Column("key_id", sa.String(36), sa.ForeignKey("key.id"), primary_key=True),
        sa.Column("kind", sa.String(32), primary_key=True),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("interval_month", sa.Integer),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("updated_by", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Suspended keys would be active again: restore a backup instead."""
    raise NotImplementedError("restore a backup to go back before the third schema")
