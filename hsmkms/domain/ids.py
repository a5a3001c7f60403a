"""Identifiers: UUIDs in their canonical text, aliases and key ring names."""

from __future__ import annotations

import os
import re

DEFAULT_KEY_RING = "default"
MAX_KEY_RINGS = 50
RESERVED_ALIASES = frozenset(
    [
        "allowed_ip",
        "key",
        "keys",
        "metadata",
        "policy",
        "policies",
        "registration",
        "registrations",
        "ring",
        "rings",
        "rotate",
        "wrap",
        "unwrap",
        "rewrap",
        "version",
        "versions",
    ]
)
"""Words that are path segments of the API and so cannot be aliases (contract section 1.5)."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_-]{2,90}", re.ASCII)
_RING = re.compile(r"[A-Za-z0-9-]{2,100}", re.ASCII)


def new_id() -> str:
    """A random (version 4) UUID in canonical lower-case text."""
    # What str(uuid.uuid4()) gives, in a third of the time: every request takes two.
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def is_uuid(text: str) -> bool:
    """True for the canonical lower-case text of a UUID, and for nothing that merely parses as one."""
    return _UUID.fullmatch(text) is not None


def canonical_uuid(text: str) -> str | None:
    """The lower-case form of a UUID that a caller wrote in any case, or None."""
    lowered = text.lower()
    return lowered if is_uuid(lowered) else None


def is_alias(text: str) -> bool:
    """2 to 90 letters, digits, `-`, `_`; no UUID and no reserved word (contract section 1.5)."""
    return _NAME.fullmatch(text) is not None and canonical_uuid(text) is None and text.lower() not in RESERVED_ALIASES


def is_key_ring_id(text: str) -> bool:
    """2 to 100 letters, digits and `-`."""
    return _RING.fullmatch(text) is not None
