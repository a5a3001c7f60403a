"""Leases and runs of background jobs; how often API keys were used.

Revision ID: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Two small tables."""
    op.create_table(
        "lease",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "job_run",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("ended_at", sa.BigInteger, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
    )
    op.add_column("api_key_use", sa.Column("uses", sa.Integer, nullable=False, server_default="0"))
    op.create_index("ix_key_deleted_at", "key", ["deleted_at"])
    op.create_index("ix_key_expires_at", "key", ["expires_at"])


def downgrade() -> None:
    """Take them away."""
    op.drop_index("ix_key_expires_at", "key")
    op.drop_index("ix_key_deleted_at", "key")
    op.drop_column("api_key_use", "uses")
    op.drop_table("job_run")
    op.drop_table("lease")
