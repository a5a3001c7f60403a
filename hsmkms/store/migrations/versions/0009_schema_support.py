"""Which programs may work on this schema: those that know its revision, and older ones down to `oldest`.

Revision ID: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One table of one row."""
    support = op.create_table(
        "schema_support",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("oldest", sa.String(32), nullable=False),
    )
    # Programs that know this revision are the first to look.
    op.bulk_insert(support, [{"id": 1, "oldest": "0009"}])


def downgrade() -> None:
    """Take it away."""
    op.drop_table("schema_support")
