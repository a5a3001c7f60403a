"""Instances (tenants), identities and the public halves of signing keys, as the store keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from hsmkms.domain.keys import KeyVersion


@dataclass(frozen=True, slots=True)
class Instance:
    """One tenant. `sealing_key` is the token key under which its standard keys are sealed."""

    id: str
    name: str
    region: str
    account: str
    created_at: datetime
    sealing_key: KeyVersion


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key without its secret: only the SHA-256 of the secret is kept."""

    id: str
    name: str
    iam_id: str
    account: str
    administrator: bool
    secret_sha256: bytes
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SigningKey:
    """Public half of a P-256 key pair in the token; `id` is the JWS `kid` and the CKA_ID."""

    id: str
    public_pem: bytes
    created_at: datetime


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
