"""What every call brings in its headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from hsmkms.domain.access import Caller
from hsmkms.domain.ids import canonical_uuid, new_id
from hsmkms.errors import InvalidInstance
from hsmkms.iam.bearer import BearerVerifier

CORRELATION_HEADERS: Final = ("correlation-id", "x-correlation-id")
"""In the order of trust (additions section 0, row 7)."""
DECISIVE_HEADERS: Final = frozenset({"authorization", "bluemix-instance"})


@dataclass(frozen=True, slots=True)
class Envelope:
    """Caller, instance and ring of one call; `minimal` is Prefer: return=minimal."""

    caller: Caller
    instance_id: str
    key_ring_id: str | None
    minimal: bool
    representation: bool


def header_map(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by lower-case name. One that decides who asks for what is empty when it is given twice, and so refused:
    neither value is more right, and a proxy in front may have read the other one."""
    headers: dict[str, str] = {}
    for name, value in raw:
        known = name.decode("latin-1")
        headers[known] = "" if known in headers and known in DECISIVE_HEADERS else value.decode("latin-1")
    return headers


def correlation_id(headers: Mapping[str, str]) -> str:
    """The caller's UUID, or a new one."""
    for name in CORRELATION_HEADERS:
        found = canonical_uuid(headers.get(name, ""))
        if found is not None:
            return found
    return new_id()


def envelope(headers: Mapping[str, str], verifier: BearerVerifier) -> Envelope:
    """Authenticate first, then read the rest. Raises Unauthenticated, BearerUnreadable, InvalidInstance."""
    caller = verifier.verify(headers.get("authorization"))
    instance_id = canonical_uuid(headers.get("bluemix-instance", ""))
    if instance_id is None:
        raise InvalidInstance
    prefer = headers.get("prefer", "").replace(" ", "").lower()
    return Envelope(
        caller,
        instance_id,
        headers.get("x-kms-key-ring") or None,
        minimal="return=minimal" in prefer,
        representation="return=representation" in prefer,
    )
