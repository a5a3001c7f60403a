"""Keys of ceremonies, as their records tell of them: put on the token, or wrapped to an import token."""

from __future__ import annotations

from dataclasses import dataclass

from hsmkms.domain.check_values import CheckValues
from hsmkms.domain.importing import WrappedMaterial
from hsmkms.domain.keys import KeyVersion


@dataclass(frozen=True, slots=True)
class CeremonyKey:
    """`serial` is that of the token; `signing_key_id` names the object on it that signed the record, and
    `signing_public_pem` is its public half."""

    key_id: str
    instance_id: str
    name: str
    purpose: str
    version: KeyVersion
    check_values: CheckValues
    serial: str
    signing_key_id: str
    signing_public_pem: bytes


@dataclass(frozen=True, slots=True)
class BundledKey:
    """`check_value` is the first 8 bytes of the key wrap of 16 zero bytes, as of a key version."""

    key_id: str
    instance_id: str
    name: str
    purpose: str
    check_value: bytes
    material: WrappedMaterial
