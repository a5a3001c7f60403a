"""Identities, rights and API keys as sealed records; instances sealed too.

The API keys of the first schema carry no MAC and grant nothing any more: `hsmkms iam recover` makes a new one and
seals the instances.

Revision ID: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
contracts = frozenset(
    {
        "table api_key is gone",
        "table signing_key is gone",
        "column change.key_id is gone",
        "column change.kind is demanded",
        "column change.subject_id is demanded",
    }
)


def upgrade() -> None:
    """Replace the tables of API keys and signing keys; give instances and changes their new columns."""
    op.drop_table("api_key")
    op.drop_table("signing_key")
    op.create_table(
        "record",
        sa.Column("kind", sa.String(32), primary_key=True),
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("account", sa.String(64), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("document", sa.LargeBinary, nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_record_kind_account", "record", ["kind", "account"])
    op.create_table(
        "api_key_use",
        sa.Column("api_key_id", sa.String(64), primary_key=True),
        sa.Column("last_used_at", sa.BigInteger, nullable=False),
    )
    for name in ("resource_group", "plan_id", "created_by", "deleted_by"):
        op.add_column("instance", sa.Column(name, sa.Text))
    for name in ("updated_at", "deleted_at"):
        op.add_column("instance", sa.Column(name, sa.BigInteger))
    op.add_column("instance", sa.Column("mac", sa.LargeBinary))
    op.drop_table("change")
    op.create_table(
        "change",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("subject_id", sa.String(64), nullable=False),
    )


def downgrade() -> None:
    """The dropped tables are lost: restore a backup instead."""
    raise NotImplementedError("restore a backup to go back before the second schema")
