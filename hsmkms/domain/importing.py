"""Keys that are brought from outside: import tokens and what comes for them (contract section 1.2, additions 3.4)."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from hsmkms.domain.secrets import SecretBytes
from hsmkms.errors import InvalidField

ROOT_KEY_BYTES: Final = (16, 24, 32)
MAX_STANDARD_KEY_BYTES: Final = 7_500
NONCE_BYTES: Final = 12
TRANSPORT_KEY_BITS: Final = 4_096
LIFETIME_S: Final = (300, 86_400)
DEFAULT_LIFETIME_S: Final = 600
RETRIEVALS: Final = (1, 500)
DEFAULT_RETRIEVALS: Final = 1


class Oaep(enum.Enum):
    """RSA-OAEP (RFC 8017 section 7.1) with MGF1 of the same hash and an empty label, as the wire names it. The nonce
    comes with AES-GCM beside SHA-256, with AES-CBC and PKCS#7 padding beside SHA-1."""

    SHA_256 = "RSAES_OAEP_SHA_256"
    SHA_1 = "RSAES_OAEP_SHA_1"


@dataclass(frozen=True, slots=True)
class ImportToken:
    """A transport key of an instance: `id` is the CKA_ID of an RSA pair in the token, `nonce` what its user has to
    return under the key that he brings, `remaining` how often it may still be read."""

    id: str
    instance_id: str
    public_pem: bytes
    nonce: bytes
    created_at: datetime
    expires_at: datetime
    retrievals: int
    remaining: int


@dataclass(frozen=True, slots=True)
class PlainMaterial:
    """A key in clear, as far as this service goes; TLS is all that hid it on its way."""

    value: SecretBytes


@dataclass(frozen=True, slots=True)
class WrappedMaterial:
    """A key under an import token's public key, and the token's nonce under the key."""

    wrapped: bytes
    encrypted_nonce: bytes
    iv: bytes
    oaep: Oaep


@dataclass(frozen=True, slots=True)
class Carried:
    """A key without a nonce under a transport key that is not an import token's: another HSM wrapped it."""

    transport_key_id: str
    transport_owner: str
    wrapped: bytes
    oaep: Oaep


BroughtMaterial: TypeAlias = PlainMaterial | WrappedMaterial


class Passage(enum.Enum):
    """How a root key came into the token: born there, unwrapped there, or by way of this process."""

    GENERATED = "generated"
    TOKEN = "token"
    PROCESS = "process"


_TRANSPORT: Final = " import"


def transport_owner(instance_id: str) -> str:
    """Whose an import token's key pair is."""
    return f"{instance_id}{_TRANSPORT}"


def is_transport_owner(owner: str) -> bool:
    """Whether an object is a transport key and not a root key."""
    return owner.endswith(_TRANSPORT)


def require_lifetime(lifetime_s: int, retrievals: int) -> timedelta:
    """How long an import token lives. Raises InvalidField."""
    if not LIFETIME_S[0] <= lifetime_s <= LIFETIME_S[1]:
        raise InvalidField("expiration", f"The field `expiration` is {LIFETIME_S[0]} to {LIFETIME_S[1]} seconds.")
    if not RETRIEVALS[0] <= retrievals <= RETRIEVALS[1]:
        raise InvalidField(
            "maxAllowedRetrievals", f"The field `maxAllowedRetrievals` is {RETRIEVALS[0]} to {RETRIEVALS[1]}."
        )
    return timedelta(seconds=lifetime_s)


def require_material(material: BroughtMaterial, *, extractable: bool) -> None:
    """Raise InvalidField for a key of the wrong length, or a standard key under an import token."""
    if isinstance(material, WrappedMaterial):
        if extractable:
            raise InvalidField("encryptedNonce", "Import tokens are for root keys. Send a standard key as `payload`.")
        return
    length = len(material.value)
    if extractable and not 1 <= length <= MAX_STANDARD_KEY_BYTES:
        raise InvalidField("payload", f"A standard key has 1 to {MAX_STANDARD_KEY_BYTES} bytes.")
    if not extractable and length not in ROOT_KEY_BYTES:
        raise InvalidField("payload", "A root key has 16, 24 or 32 bytes.")
