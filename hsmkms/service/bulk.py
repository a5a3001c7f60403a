"""Many DEKs under one key with one call: for those who start with thousands of them.

Every item has an outcome of its own. Between slices of items others get their turn and the caller's right and the key's
state are looked at again; if they do not permit the rest, the whole call is refused and gives nothing out.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar, TypeVarTuple, Unpack

from hsmkms.domain.access import Action, Caller
from hsmkms.domain.keys import Key, KeyAction
from hsmkms.errors import HsmkmsError, InvalidField, UnprocessableCiphertext
from hsmkms.service.crypto import CryptoService, Unwrapped, Wrapped, parse, require_sealable
from hsmkms.telemetry import metrics

Ts = TypeVarTuple("Ts")

MAX_ITEMS: Final = 1_000
SLICE_ITEMS: Final = 16

Refused = InvalidField | UnprocessableCiphertext
"""What is wrong with one item, and says nothing of the others."""
R = TypeVar("R", Wrapped, Unwrapped)


@dataclass(frozen=True, slots=True)
class Bulk(Generic[R]):
    """Outcomes in the order of the items."""

    key: Key
    outcomes: Sequence[R | Refused]


class BulkService:
    """Each method raises for the whole what the single call raises for caller and key."""

    def __init__(self, crypto: CryptoService) -> None:
        self._crypto = crypto

    async def wrap(
        self,
        caller: Caller,
        instance_id: str,
        reference: str,
        key_ring_id: str | None,
        items: Sequence[tuple[bytes | Refused | None, Sequence[str]]],
    ) -> Bulk[Wrapped]:
        """Seal each plaintext, or random bytes of the token where it is None, with its AAD."""
        find = partial(self._crypto.find, caller, Action.KEY_WRAP, instance_id, reference, key_ring_id)
        key = await find()
        wishes = [_wish(*item) for item in items]
        return Bulk(key, await self._each(find, KeyAction.WRAP, wishes, partial(self._crypto.wrap_here, key)))

    async def unwrap(
        self,
        caller: Caller,
        instance_id: str,
        reference: str,
        key_ring_id: str | None,
        items: Sequence[tuple[str, Sequence[str]]],
    ) -> Bulk[Unwrapped]:
        """Open each ciphertext with its AAD; what an older version made also comes sealed anew."""
        find = partial(self._crypto.find, caller, Action.KEY_UNWRAP, instance_id, reference, key_ring_id)
        key = await find()
        offers = [_offer(*item) for item in items]
        if any(isinstance(offer, tuple) and key.version(offer[0]) is None for offer in offers):
            # Another node may have made that version just now, before the change feed told.
            key = await self._crypto.load(instance_id, key.id) or key

        return Bulk(key, await self._each(find, KeyAction.UNWRAP, offers, partial(self._crypto.unwrap_here, key)))

    async def _each(
        self,
        find: Callable[[], Awaitable[Key]],
        action: KeyAction,
        items: Sequence[tuple[*Ts] | Refused],
        one: Callable[[Unpack[Ts]], R],
    ) -> list[R | Refused]:
        outcomes: list[R | Refused] = []
        for start in range(0, len(items), SLICE_ITEMS):
            self._crypto.require_usable(await find(), action)
            outcomes += await self._crypto.on_token(partial(_some, items[start : start + SLICE_ITEMS], one))
            await asyncio.sleep(0)
        return outcomes


def digest_of(ciphertexts: Iterable[str]) -> str:
    """SHA-256 (hex) over ciphertexts in the order of their items, each with a line feed behind it; an item that was not
    wrapped has an empty one. Who holds them can prove which event of the audit trail is theirs."""
    return hashlib.sha256("\n".join([*ciphertexts, ""]).encode("utf-8", "surrogatepass")).hexdigest()


def _some(items: Sequence[tuple[*Ts] | Refused], one: Callable[[Unpack[Ts]], R]) -> list[R | Refused]:
    outcomes: list[R | Refused] = []
    with metrics.gathered():
        for item in items:
            if isinstance(item, tuple):
                try:
                    outcomes.append(one(*item))
                except UnprocessableCiphertext as refused:
                    outcomes.append(refused)
            else:
                outcomes.append(item)
    return outcomes


def _wish(plaintext: bytes | Refused | None, aad: Sequence[str]) -> tuple[bytes | None, Sequence[str]] | Refused:
    if isinstance(plaintext, HsmkmsError):
        return plaintext
    try:
        require_sealable(plaintext, aad)
    except InvalidField as refused:
        return refused
    return plaintext, aad


def _offer(text: str, aad: Sequence[str]) -> tuple[str, bytes, Sequence[str]] | Refused:
    try:
        return (*parse(text, aad), aad)
    except (InvalidField, UnprocessableCiphertext) as refused:
        return refused
