"""The first schema.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    uuid = sa.String(36)
    op.create_table(
        "instance",
        sa.Column("id", uuid, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("region", sa.Text, nullable=False),
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("sealing_id", uuid, nullable=False),
        sa.Column("sealing_created_at", sa.BigInteger, nullable=False),
        sa.Column("sealing_check_value", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "api_key",
        sa.Column("id", uuid, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("iam_id", sa.Text, nullable=False),
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("administrator", sa.Boolean, nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("secret_sha256", name="uq_api_key_secret_sha256"),
    )
    op.create_table(
        "signing_key",
        sa.Column("id", uuid, primary_key=True),
        sa.Column("public_pem", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "key_ring",
        sa.Column("instance_id", uuid, sa.ForeignKey("instance.id"), primary_key=True),
        sa.Column("id", sa.String(100), primary_key=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
    )
    op.create_table(
        "key",
        sa.Column("id", uuid, primary_key=True),
        sa.Column("instance_id", uuid, sa.ForeignKey("instance.id"), nullable=False),
        sa.Column("key_ring_id", sa.String(100), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("name_folded", sa.Text, nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("extractable", sa.Boolean, nullable=False),
        sa.Column("imported", sa.Boolean, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("updated_at", sa.BigInteger),
        sa.Column("rotated_at", sa.BigInteger),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("deleted_at", sa.BigInteger),
        sa.Column("deleted_by", sa.Text),
        sa.Column("sealed_payload", sa.LargeBinary),
    )
    op.create_index("ix_key_instance_id_state", "key", ["instance_id", "state", "id"])
    op.create_index("ix_key_instance_id_key_ring_id", "key", ["instance_id", "key_ring_id"])
    op.create_table(
        "key_version",
        sa.Column("id", uuid, primary_key=True),
        sa.Column("key_id", uuid, sa.ForeignKey("key.id"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("check_value", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("key_id", "number", name="uq_key_version_key_id"),
    )
    op.create_table(
        "key_alias",
        sa.Column("instance_id", uuid, sa.ForeignKey("instance.id"), primary_key=True),
        sa.Column("alias", sa.String(90), primary_key=True),
        sa.Column("key_id", uuid, sa.ForeignKey("key.id"), nullable=False),
    )
    op.create_index("ix_key_alias_key_id", "key_alias", ["key_id"])
    op.create_table(
        "pending_object",
        sa.Column("version_id", uuid, primary_key=True),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    clock = op.create_table(
        "change_clock",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "change",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("key_id", uuid),
    )
    op.bulk_insert(clock, [{"id": 1, "sequence": 0}])


def downgrade() -> None:
    """There is nothing before the first schema: restore a backup instead."""
    raise NotImplementedError("restore a backup to go back before the first schema")
