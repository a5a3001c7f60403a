"""Tables. Times are microseconds since 1970 in UTC, which sort and compare alike on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    func,
    literal_column,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def microseconds(moment: datetime) -> int:
    """A moment as it is stored, for arithmetic in SQL."""
    return (moment - _EPOCH) // _MICROSECOND


class UtcTime(TypeDecorator[datetime]):
    """An aware datetime in UTC, stored as an integer of microseconds."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else microseconds(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _EPOCH + value * _MICROSECOND


_UUID: Final = String(36)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

instance = Table(
    "instance",
    metadata,
    Column("id", _UUID, primary_key=True),
    Column("name", Text, nullable=False),
    Column("region", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("sealing_id", _UUID, nullable=False),
    Column("sealing_created_at", UtcTime, nullable=False),
    Column("sealing_check_value", LargeBinary, nullable=False),
    Column("resource_group", Text),
    Column("plan_id", Text),
    Column("created_by", Text),
    Column("updated_at", UtcTime),
    Column("deleted_at", UtcTime),
    Column("deleted_by", Text),
    # By a token key over all of the above; a row without a right one is not an instance.
    Column("mac", LargeBinary),
)

# Everything that grants: identities, API keys, groups, policies, logins, signing keys. One table, because what they
# have in common is what matters: a document whose bytes carry a MAC by a token key.
record = Table(
    "record",
    metadata,
    Column("kind", String(32), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("account", String(64), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("mac", LargeBinary, nullable=False),
    Index("ix_record_kind_account", "kind", "account"),
)

# Written at every log-in, so it is no part of the API key's sealed record; it grants nothing.
api_key_use = Table(
    "api_key_use",
    metadata,
    Column("api_key_id", String(64), primary_key=True),
    Column("last_used_at", UtcTime, nullable=False),
    Column("uses", Integer, nullable=False, server_default="0"),
)

key_ring = Table(
    "key_ring",
    metadata,
    Column("instance_id", _UUID, ForeignKey("instance.id"), primary_key=True),
    Column("id", String(100), primary_key=True),
    Column("created_at", UtcTime, nullable=False),
    Column("created_by", Text, nullable=False),
)

key = Table(
    "key",
    metadata,
    Column("id", _UUID, primary_key=True),
    Column("instance_id", _UUID, ForeignKey("instance.id"), nullable=False),
    # The ring `default` has no row, so this is no foreign key.
    Column("key_ring_id", String(100), nullable=False),
    Column("name", Text, nullable=False),
    Column("name_folded", Text, nullable=False),
    Column("description", Text),
    Column("tags", JSON, nullable=False),
    Column("extractable", Boolean, nullable=False),
    Column("imported", Boolean, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("updated_at", UtcTime),
    Column("rotated_at", UtcTime),
    Column("expires_at", UtcTime),
    Column("deleted_at", UtcTime),
    Column("deleted_by", Text),
    Column("sealed_payload", LargeBinary),
    Column("disabled_at", UtcTime),
    Column("deletion_set_at", UtcTime),
    Column("deletion_set_by", Text),
    # When the services that registered resources were last told something about the key.
    Column("noticed_at", UtcTime),
    # From here on nobody sees the key; its material is being destroyed, and its rows go last.
    Column("purge_began_at", UtcTime),
    Index("ix_key_instance_id_key_ring_id", "instance_id", "key_ring_id"),
)

last_update = func.coalesce(key.c.updated_at, key.c.created_at, type_=UtcTime())
"""A key that was never changed shows its creation as its last update."""

SEEN: Final = key.c.purge_began_at.is_(None)
"""From the first moment of its purge on nobody sees a key."""

_FILTERED: Final = (
    key.c.state,
    key.c.extractable,
    key.c.imported,
    key.c.key_ring_id,
    key.c.created_at,
    key.c.updated_at,
    key.c.rotated_at,
    key.c.expires_at,
    key.c.deleted_at,
    key.c.purge_began_at,
)


def _index(name: str, *columns: ColumnElement[Any], where: ColumnElement[bool]) -> None:
    Index(name, *columns, sqlite_where=where, postgresql_where=where)


def _listing(name: str, *order: ColumnElement[Any], where: ColumnElement[bool] = SEEN) -> None:
    """An order of lists together with all that filters ask for: keys are counted, and pages far down are reached,
    without a row of the table being read."""
    held = (column for column in _FILTERED if all(column is not one for one in order))
    _index(name, key.c.instance_id, *order, key.c.id, *held, where=where)


_listing("ix_key_listing")
_listing("ix_key_listing_created", key.c.created_at)
_listing("ix_key_listing_updated", last_update)
_listing("ix_key_listing_rotated", key.c.rotated_at, where=and_(SEEN, key.c.rotated_at.is_not(None)))
_listing("ix_key_listing_expires", key.c.expires_at, where=and_(SEEN, key.c.expires_at.is_not(None)))
_listing("ix_key_listing_deleted", key.c.deleted_at, where=and_(SEEN, key.c.deleted_at.is_not(None)))

# What the jobs look for. Literals: an index of a part is used only by a statement that says the same.
_index("ix_key_due_to_expire", key.c.expires_at, where=key.c.state == literal_column("1"))
_index("ix_key_due_to_purge", key.c.deleted_at, where=key.c.state == literal_column("5"))
_index("ix_key_purging", key.c.purge_began_at, where=key.c.purge_began_at.is_not(None))

key_version = Table(
    "key_version",
    metadata,
    Column("id", _UUID, primary_key=True),
    Column("key_id", _UUID, ForeignKey("key.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("check_value", LargeBinary, nullable=False),
    # How it came into the token; NULL is what was generated there.
    Column("passage", String(16)),
    UniqueConstraint("key_id", "number"),
)

key_alias = Table(
    "key_alias",
    metadata,
    Column("instance_id", _UUID, ForeignKey("instance.id"), primary_key=True),
    Column("alias", String(90), primary_key=True),
    Column("key_id", _UUID, ForeignKey("key.id"), nullable=False, index=True),
    Column("created_at", UtcTime),
    Column("created_by", Text),
)

key_policy = Table(
    "key_policy",
    metadata,
    Column("key_id", _UUID, ForeignKey("key.id"), primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("id", _UUID, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("interval_month", Integer),
    Column("created_at", UtcTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("updated_by", Text, nullable=False),
)

_index(
    "ix_key_policy_rotation",
    key_policy.c.key_id,
    key_policy.c.enabled,
    key_policy.c.interval_month,
    where=key_policy.c.kind == literal_column("'rotation'"),
)

import_token = Table(
    "import_token",
    metadata,
    Column("instance_id", _UUID, ForeignKey("instance.id"), primary_key=True),
    Column("id", _UUID, nullable=False, unique=True),
    Column("public_pem", LargeBinary, nullable=False),
    Column("nonce", LargeBinary, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("retrievals", Integer, nullable=False),
    Column("remaining", Integer, nullable=False),
    # Over all but `remaining`: who could put a public key of his own here would be sent everybody's keys.
    Column("mac", LargeBinary, nullable=False),
)

registration = Table(
    "registration",
    metadata,
    Column("key_id", _UUID, ForeignKey("key.id"), primary_key=True),
    Column("resource_crn", String(1200), primary_key=True),
    # The CRN's segments after the fourth, which a query may ask for one by one.
    Column("service", String(128), nullable=False),
    Column("region", String(128), nullable=False),
    Column("account", String(128), nullable=False),
    Column("service_instance", String(128), nullable=False),
    Column("resource_type", String(128), nullable=False),
    Column("resource", String(512), nullable=False),
    Column("version_id", _UUID, nullable=False),
    Column("version_created_at", UtcTime, nullable=False),
    Column("description", Text),
    Column("metadata", Text),
    Column("prevents_deletion", Boolean, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("updated_by", Text, nullable=False),
    Column("revision", Integer, nullable=False),
)

# An outbox: written in the transaction of what it tells. Rows are inserted behind the key's change number, so that
# their own numbers become visible in their order too.
key_event = Table(
    "key_event",
    metadata,
    Column("sequence", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", _UUID, nullable=False, unique=True),
    Column("type", String(16), nullable=False),
    Column("instance_id", _UUID, nullable=False),
    Column("key_id", _UUID, ForeignKey("key.id"), nullable=False, index=True),
    Column("resource_crn", String(1200), nullable=False),
    # The first eight segments of that CRN: whose the event is.
    Column("source", String(600), nullable=False),
    Column("key_state", SmallInteger, nullable=False),
    Column("version_id", _UUID, nullable=False),
    Column("correlation_id", _UUID, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("due_at", UtcTime, nullable=False),
    Column("acknowledged_at", UtcTime),
    Column("adopter_key_state", String(32)),
    Column("adopter_version_id", _UUID),
    Column("adopter_done_at", UtcTime),
    Index("ix_key_event_source", "source", "sequence"),
    # A number is never given twice, or a reader's cursor could pass over an event.
    sqlite_autoincrement=True,
)

delivery = Table(
    "delivery",
    metadata,
    Column("webhook_id", String(64), primary_key=True),
    Column("cursor", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", UtcTime),
    Column("last_error", Text),
)

pending_object = Table(
    "pending_object",
    metadata,
    Column("version_id", _UUID, primary_key=True),
    Column("purpose", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

lease = Table(
    "lease",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("until", UtcTime, nullable=False),
)

job_run = Table(
    "job_run",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("ended_at", UtcTime, nullable=False),
    Column("done", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
)

audit_head = Table(
    "audit_head",
    metadata,
    Column("log", String(160), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("closed", Boolean, nullable=False),
    Column("noted_at", UtcTime, nullable=False, index=True),
)

change_clock = Table(
    "change_clock",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),
)

schema_support = Table(
    "schema_support",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("oldest", String(32), nullable=False),
)

change = Table(
    "change",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String(32), nullable=False),
    Column("subject_id", String(64), nullable=False),
)
