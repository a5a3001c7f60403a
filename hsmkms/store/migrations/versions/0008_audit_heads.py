"""Heads of audit logs.

Revision ID: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One table."""
    op.create_table(
        "audit_head",
        sa.Column("log", sa.String(160), primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("closed", sa.Boolean, nullable=False),
        sa.Column("noted_at", sa.BigInteger, nullable=False, index=True),
    )


def downgrade() -> None:
    """Take it away."""
    op.drop_table("audit_head")
