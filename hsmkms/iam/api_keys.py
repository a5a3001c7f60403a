"""API keys: 256 random bits, kept only as their SHA-256.

A plain hash is enough here and a slow one would only cost: the secret is not a password, it has full entropy, and
guessing it is as hard as guessing an AES-256 key. Looking up by hash also means that no secret is ever compared.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from hsmkms.domain.secrets import SecretBytes, SecretText

SECRET_BYTES: Final = 32
MAX_CHARS: Final = 256


def format_secret(random: SecretBytes) -> SecretText:
    """The text of an API key made of SECRET_BYTES random bytes."""
    return SecretText(base64.urlsafe_b64encode(random.reveal()).rstrip(b"=").decode())


def hash_secret(secret: SecretText) -> bytes:
    """SHA-256 of an API key's text, as the store keeps it."""
    return hashlib.sha256(secret.reveal().encode("utf-8", "surrogatepass")).digest()
