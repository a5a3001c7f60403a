"""Registrations, the outbox of what services are told about their keys, and how far each webhook is.

Revision ID: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Three tables, and when services were last told."""
    op.add_column("key", sa.Column("noticed_at", sa.BigInteger))
    op.create_table(
        "registration",
        sa.Column("key_id", sa.String(36), sa.ForeignKey("key.id"), primary_key=True),
        sa.Column("resource_crn", sa.String(1200), primary_key=True),
        sa.Column("service", sa.String(128), nullable=False),
        sa.Column("region", sa.String(128), nullable=False),
        sa.Column("account", sa.String(128), nullable=False),
        sa.Column("service_instance", sa.String(128), nullable=False),
        sa.Column("resource_type", sa.String(128), nullable=False),
        sa.Column("resource", sa.String(512), nullable=False),
        sa.Column("version_id", sa.String(36), nullable=False),
        sa.Column("version_created_at", sa.BigInteger, nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("metadata", sa.Text),
        sa.Column("prevents_deletion", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("updated_by", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
    )
    op.create_table(
        "key_event",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(36), nullable=False, unique=True),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("instance_id", sa.String(36), nullable=False),
        sa.Column("key_id", sa.String(36), sa.ForeignKey("key.id"), nullable=False),
        sa.Column("resource_crn", sa.String(1200), nullable=False),
        sa.Column("source", sa.String(600), nullable=False),
        sa.Column("key_state", sa.SmallInteger, nullable=False),
        sa.Column("version_id", sa.String(36), nullable=False),
        sa.Column("correlation_id", sa.String(36), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("acknowledged_at", sa.BigInteger),
        sa.Column("adopter_key_state", sa.String(32)),
        sa.Column("adopter_version_id", sa.String(36)),
        sa.Column("adopter_done_at", sa.BigInteger),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_key_event_key_id", "key_event", ["key_id"])
    op.create_index("ix_key_event_source", "key_event", ["source", "sequence"])
    op.create_table(
        "delivery",
        sa.Column("webhook_id", sa.String(64), primary_key=True),
        sa.Column("cursor", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", sa.BigInteger),
        sa.Column("last_error", sa.Text),
    )


def downgrade() -> None:
    """Take them away."""
    op.drop_table("delivery")
    op.drop_table("key_event")
    op.drop_table("registration")
    op.drop_column("key", "noticed_at")
