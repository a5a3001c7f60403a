"""Instances (tenants), their key rings, and token objects that are about to be made."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from hsmkms.domain.keys import KeyVersion


@dataclass(frozen=True, slots=True)
class Instance:
    """One tenant. `sealing_key` is the token key under which its standard keys are sealed; from `deleted_at` on
    nobody reaches it, and the operator can bring it back."""

    id: str
    name: str
    region: str
    account: str
    created_at: datetime
    sealing_key: KeyVersion
    resource_group: str | None = None
    plan_id: str | None = None
    created_by: str | None = None
    updated_at: datetime | None = None
    deleted_at: datetime | None = None
    deleted_by: str | None = None


@dataclass(frozen=True, slots=True)
class SealedInstance:
    """An instance with the MAC over all its members; None in a database of the first schema."""

    instance: Instance
    mac: bytes | None


@dataclass(frozen=True, slots=True)
class KeyRing:
    """A named group of keys. `created_at` is None for the ring `default`, which always exists."""

    id: str
    created_at: datetime | None
    created_by: str | None


@dataclass(frozen=True, slots=True)
class PendingObject:
    """A token object that is about to be made: written before it, gone when its row is committed."""

    version_id: str
    purpose: str
    created_at: datetime
