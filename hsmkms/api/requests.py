"""What every call brings in its headers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from starlette.types import Scope

from hsmkms.domain.access import Action, Caller
from hsmkms.domain.ids import canonical_uuid, new_id
from hsmkms.domain.instance_policies import Restrictions
from hsmkms.errors import InvalidInstance
from hsmkms.iam.callers import Callers
from hsmkms.iam.limits import RequestLimit
from hsmkms.service.authorize import require_any, require_place
from hsmkms.service.snapshot import Snapshot

CORRELATION_HEADERS: Final = ("correlation-id", "x-correlation-id")
"""In the order of trust (additions section 0, row 7)."""
DECISIVE_HEADERS: Final = frozenset({"authorization", "bluemix-instance"})
CERTIFICATE: Final = "client_certificate"
"""In the ASGI scope's `state`: DER of the certificate that the TLS handshake verified."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What it takes to know who is calling, from where, and how often."""

    snapshot: Snapshot
    callers: Callers
    restrictions: Callable[[str], Restrictions]
    identity_limit: RequestLimit
    instance_limit: RequestLimit
    threads: ThreadPoolExecutor

    def admit(self, caller: Caller, action: Action, instance_id: str, address: str, *, again: bool = False) -> None:
        """Refuse who has no right in the instance that could be enough, calls from where its policies do not admit it,
        or calls too often. With `again` the request has been counted before.

        Raises Unauthorized, TooManyRequests, StoreUnavailable.
        """
        if not again:
            self.identity_limit.take(caller.iam_id)
        require_any(caller, action, self.snapshot.instance(instance_id))
        require_place(caller, action, self.restrictions(instance_id), address)
        # Last, so that only who may call the instance spends what it may be called.
        if not again:
            self.instance_limit.take(instance_id)

    def count_further(self, caller: Caller, instance_id: str, count: int) -> None:
        """Count a call that was let in as so many more. Raises TooManyRequests."""
        self.identity_limit.take(caller.iam_id, count)
        self.instance_limit.take(instance_id, count)


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


def given_correlation_id(headers: Mapping[str, str]) -> str | None:
    """The caller's UUID, if there is one."""
    for name in CORRELATION_HEADERS:
        given = headers.get(name)
        found = None if given is None else canonical_uuid(given)
        if found is not None:
            return found
    return None


def correlation_id(headers: Mapping[str, str]) -> str:
    """The caller's UUID, or a new one."""
    return given_correlation_id(headers) or new_id()


async def authenticate(gate: Gate, headers: Mapping[str, str], scope: Scope) -> Caller:
    """The caller, from memory or, off the event loop, by whatever has to be checked.

    Raises Unauthenticated, BearerUnreadable, Unavailable.
    """
    loop = asyncio.get_running_loop()
    if not gate.snapshot.fresh:
        await loop.run_in_executor(gate.threads, gate.snapshot.refresh)
    shown = headers.get("authorization"), scope.get("state", {}).get(CERTIFICATE)
    caller = gate.callers.known(*shown)
    if caller is None:
        caller = await loop.run_in_executor(gate.threads, gate.callers.resolve, *shown)
    return caller


def credential_of(headers: Mapping[str, str]) -> str:
    """What kind of proof an authenticated caller brought: a token counts before a certificate."""
    return "token" if "authorization" in headers else "certificate"


def address_of(scope: Scope) -> str:
    """Where a request came from, as far as the socket tells."""
    client = scope.get("client")
    return client[0] if client else ""


def envelope(headers: Mapping[str, str], caller: Caller) -> Envelope:
    """The rest of what an authenticated call brings. Raises InvalidInstance."""
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
