"""What heads of requests said, so that one that comes again byte for byte is not parsed again.

A client sends the same head with every wrap or unwrap of one key. What it says is the same each time; whether it still
counts (the caller, the key, the rights) is asked each time. Heads hold credentials, so they are known by their SHA-256
alone, as credentials are in `iam.callers`.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from hsmkms.iam.callers import Shown
from hsmkms.service.similar import Similar

_REMEMBERED: Final = 2_000
"""With the events of each some 8 MiB."""
_END: Final = b"\r\n\r\n"


class Opening(msgspec.Struct, frozen=True):
    """A head without a correlation id. `name` is `wrap` or `unwrap`, `action` what that is in the audit trail."""

    name: str
    action: str
    url: str
    reference: str
    shown: Shown
    instance_id: str
    key_ring_id: str | None
    credential: str
    body_length: int
    similar: Similar


class Openings:
    """For the event loop's thread alone."""

    def __init__(self) -> None:
        self._known: dict[bytes, Opening] = {}

    def find(self, request: bytes, certificate: bytes | None) -> tuple[Opening, bytes] | None:
        """Opening and body of a request, if it is whole and its head is known."""
        end = request.find(_END) + len(_END)
        opening = self._known.get(_digest(request[:end], certificate))
        if opening is None or len(request) - end != opening.body_length:
            return None
        return opening, request[end:]

    def remember(self, request: bytes, certificate: bytes | None, opening: Opening) -> None:
        """Note the head of a request that was parsed, if nothing but it and the body stands there."""
        end = request.find(_END) + len(_END)
        if len(request) - end != opening.body_length:
            return
        while len(self._known) >= _REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[_digest(request[:end], certificate)] = opening


def _digest(head: bytes, certificate: bytes | None) -> bytes:
    found = hashlib.sha256(head)
    if certificate is not None:
        # Behind the empty line no header can stand, so no head is another one with a certificate.
        found.update(certificate)
    return found.digest()
