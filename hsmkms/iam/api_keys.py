"""API keys: a public id and 256 random bits in one text; of the bits only the SHA-256 is kept.

A plain hash is enough here and a slow one would only cost: the secret is not a password, it has full entropy, and
guessing it is as hard as guessing an AES-256 key. The id finds the row, and gives failed log-ins something to count by.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import uuid
from typing import Final

from hsmkms.domain.identities import ApiKey
from hsmkms.domain.secrets import SecretBytes, SecretText

SECRET_BYTES: Final = 32
_PREFIX: Final = "ApiKey-"
_TEXT_CHARS: Final = 64
_NO_SECRET: Final = hashlib.sha256(b"").digest()


def new_id() -> str:
    """A new API key's id, as IAM writes it."""
    return f"{_PREFIX}{uuid.uuid4()}"


def format_secret(key_id: str, random: SecretBytes) -> SecretText:
    """The text of an API key: base64url of the id's 16 bytes and SECRET_BYTES random ones, 64 characters."""
    raw = uuid.UUID(key_id.removeprefix(_PREFIX)).bytes + random.reveal()
    return SecretText(base64.urlsafe_b64encode(raw).decode())


def id_of(secret: SecretText) -> str | None:
    """The id in an API key's text; None if it is no such text."""
    text = secret.reveal()
    if len(text) != _TEXT_CHARS:
        return None
    try:
        raw = base64.b64decode(text.encode(), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return f"{_PREFIX}{uuid.UUID(bytes=raw[:16])}"


def hash_secret(secret: SecretText) -> bytes:
    """SHA-256 of an API key's text, as the store keeps it."""
    return hashlib.sha256(secret.reveal().encode("utf-8", "surrogatepass")).digest()


def matches(secret: SecretText, api_key: ApiKey | None) -> bool:
    """Whether this is that key's text. Takes as long when there is no key."""
    kept = _NO_SECRET if api_key is None else api_key.secret_sha256
    return hmac.compare_digest(hash_secret(secret), kept) and api_key is not None
