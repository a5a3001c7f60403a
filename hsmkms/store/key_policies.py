"""Rows of the policies of keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from hsmkms.domain.key_policies import KeyPolicy, KeyPolicyKind
from hsmkms.store import tables as t
from hsmkms.store.known import known
from hsmkms.store.listing import among


def policies_of(connection: Connection, key_ids: Sequence[str]) -> dict[str, list[KeyPolicy]]:
    """Policies by the id of their key, each key's in the order of their kinds."""
    found: dict[str, list[KeyPolicy]] = {}
    here = among(connection, t.key_policy.c.key_id, key_ids)
    for row in connection.execute(select(t.key_policy).where(here).order_by(t.key_policy.c.kind)).all():
        found.setdefault(row.key_id, []).append(_policy(row))
    return found


def _policy(row: Any) -> KeyPolicy:
    return KeyPolicy(
        id=row.id,
        kind=known(KeyPolicyKind, row.kind),
        enabled=row.enabled,
        interval_month=row.interval_month,
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
        updated_by=row.updated_by,
    )


def put_policy(connection: Connection, key_id: str, policy: KeyPolicy) -> None:
    """Put a policy of a key in the place of one of its kind."""
    place = (t.key_policy.c.key_id == key_id, t.key_policy.c.kind == policy.kind.value)
    connection.execute(delete(t.key_policy).where(*place))
    connection.execute(
        insert(t.key_policy).values(
            key_id=key_id,
            kind=policy.kind.value,
            id=policy.id,
            enabled=policy.enabled,
            interval_month=policy.interval_month,
            created_at=policy.created_at,
            created_by=policy.created_by,
            updated_at=policy.updated_at,
            updated_by=policy.updated_by,
        )
    )
