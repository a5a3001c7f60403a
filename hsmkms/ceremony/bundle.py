"""The key of a ceremony for a service on another token: wrapped to that service's import token.

It is what `POST /api/v2/keys` takes under an import token, in our own words: the key under RSA-OAEP SHA-256, and the
import token's nonce under the key. The record holds the file's hash, so that no other is adopted in its place.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from hsmkms.ceremony.refusals import CeremonyRefused
from hsmkms.domain.importing import Oaep, WrappedMaterial
from hsmkms.domain.secrets import SecretBytes
from hsmkms.domain.wrapping import wrap_key

_FORMAT: Final = "hsmkms ceremony bundle 1"


@dataclass(frozen=True, slots=True)
class Destination:
    """Public key and nonce of the import token to which a key is wrapped."""

    public_key: rsa.RSAPublicKey
    nonce: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the public key's SubjectPublicKeyInfo in hexadecimal."""
        encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        return hashlib.sha256(self.public_key.public_bytes(encoding, form)).hexdigest()


def write(path: Path, destination: Destination, key_id: str, key: bytearray) -> str:
    """Wrap a key and write the bundle, whole or not at all; its SHA-256 in hexadecimal."""
    material = wrap_key(destination.public_key, destination.nonce, SecretBytes(bytes(key)), Oaep.SHA_256)
    members = {
        "format": _FORMAT,
        "key": key_id,
        "wrapped": _text(material.wrapped),
        "encrypted_nonce": _text(material.encrypted_nonce),
        "iv": _text(material.iv),
    }
    content = json.dumps(members, indent=1).encode() + b"\n"
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return hashlib.sha256(content).hexdigest()


def read(path: Path, key_id: str, digest: str) -> WrappedMaterial:
    """What is in the bundle of a record. Raises CeremonyRefused when it is another file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CeremonyRefused(f"The bundle {path} cannot be read: {error.strerror}.") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise CeremonyRefused(f"{path} is not the bundle of this record, or it was changed.")
    try:
        members = json.loads(content)
        if (members["format"], members["key"]) != (_FORMAT, key_id):
            raise CeremonyRefused(f"{path} is a bundle of another format or key.")
        names = ("wrapped", "encrypted_nonce", "iv")
        wrapped, nonce, iv = (base64.b64decode(members[name], validate=True) for name in names)
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise CeremonyRefused(f"{path} is no bundle of a ceremony.") from error
    return WrappedMaterial(wrapped, nonce, iv, Oaep.SHA_256)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
