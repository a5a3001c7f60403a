"""Bulk wrap and bulk unwrap: ours, in the form of the single actions (docs/compatibility.md). `hot` serves them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from hsmkms.api import wire
from hsmkms.api.bodies import decode_object, parse
from hsmkms.api.problems import kms_resource
from hsmkms.api.requests import Envelope, Gate
from hsmkms.errors import InvalidField, NoBody
from hsmkms.service.acts import Act
from hsmkms.service.bulk import MAX_ITEMS, Bulk, BulkService, Refused, digest_of
from hsmkms.service.crypto import Unwrapped, Wrapped


class _WrapItem(msgspec.Struct, forbid_unknown_fields=True):
    plaintext: str | None = None
    aad: list[str] | None = None


class _UnwrapItem(msgspec.Struct, forbid_unknown_fields=True):
    ciphertext: str
    aad: list[str] | None = None


class _WrapItems(msgspec.Struct, forbid_unknown_fields=True):
    items: list[_WrapItem]


class _UnwrapItems(msgspec.Struct, forbid_unknown_fields=True):
    items: list[_UnwrapItem]


_decode_wrap: Final = msgspec.json.Decoder(_WrapItems).decode
_decode_unwrap: Final = msgspec.json.Decoder(_UnwrapItems).decode


class BulkActions:
    """Each method answers a call that was let in, and completes its act. Raises what the service raises, BadBody,
    NoBody, and TooManyRequests: a bulk counts as so many requests as it has items."""

    def __init__(self, bulk: BulkService, gate: Gate) -> None:
        self._bulk = bulk
        self._gate = gate

    async def wrap(self, call: Envelope, reference: str, body: bytes, act: Act) -> dict[str, Any]:
        """`{"items": [{"plaintext"?, "aad"?}]}`; each becomes what wrap answers, or an error."""
        wishes = _parse_wrap(body)
        self._count(call, len(wishes))
        items = [(_plaintext(wish.plaintext), wish.aad or ()) for wish in wishes]
        done = await self._bulk.wrap(call.caller, call.instance_id, reference, call.key_ring_id, items)
        answers = [_wrapped(one) if isinstance(one, Wrapped) else _refusal(one, act) for one in done.outcomes]
        _complete(act, done, [answer.get("ciphertext", "") for answer in answers])
        return {"items": answers}

    async def unwrap(self, call: Envelope, reference: str, body: bytes, act: Act) -> dict[str, Any]:
        """`{"items": [{"ciphertext", "aad"?}]}`; each becomes what unwrap answers, or an error."""
        offers = _parse_unwrap(body)
        self._count(call, len(offers))
        items = [(offer.ciphertext, offer.aad or ()) for offer in offers]
        done = await self._bulk.unwrap(call.caller, call.instance_id, reference, call.key_ring_id, items)
        _complete(act, done, [offer.ciphertext for offer in offers])
        return {
            "items": [_unwrapped(one) if isinstance(one, Unwrapped) else _refusal(one, act) for one in done.outcomes]
        }

    def _count(self, call: Envelope, items: int) -> None:
        if not 1 <= items <= MAX_ITEMS:
            raise InvalidField("items", f"The field `items` takes 1 to {MAX_ITEMS} items.")
        if items > 1:
            self._gate.count_further(call.caller, call.instance_id, items - 1)


def _complete(act: Act, done: Bulk[Any], ciphertexts: Iterable[str]) -> None:
    act.key, act.version_id = done.key, done.key.current.id
    act.total, act.digest = len(done.outcomes), digest_of(ciphertexts)
    act.failed = sum(isinstance(one, Exception) for one in done.outcomes)


def _wrapped(one: Wrapped) -> dict[str, Any]:
    answer: dict[str, Any] = {"ciphertext": one.ciphertext, "keyVersion": {"id": one.version.id}}
    if one.plaintext is not None:
        answer["plaintext"] = wire.base64_text(one.plaintext)
    return answer


def _unwrapped(one: Unwrapped) -> dict[str, Any]:
    answer: dict[str, Any] = {"plaintext": wire.base64_text(one.plaintext), "keyVersion": {"id": one.version.id}}
    if one.rewrapped is not None:
        answer["ciphertext"] = one.ciphertext
        answer["rewrappedKeyVersion"] = {"id": one.rewrapped.id}
    return answer


def _refusal(one: Refused, act: Act) -> dict[str, Any]:
    return kms_resource(one, act.correlation_id, "The item could not be processed")


def _plaintext(text: str | None) -> bytes | Refused | None:
    try:
        return None if text is None else wire.plaintext_of(text)
    except InvalidField as refused:
        return refused


def _parse_wrap(body: bytes) -> Sequence[_WrapItem]:
    try:
        return _decode_wrap(body).items
    except (msgspec.MsgspecError, ValueError, RecursionError):
        # As in `hot`: other cases and `null`, or wrong; the patient way tells which.
        value = decode_object(body)
    if value is None:
        raise NoBody
    return [_WrapItem(item.plaintext, item.aad) for item in parse(wire.BulkWrapBody, value).items]


def _parse_unwrap(body: bytes) -> Sequence[_UnwrapItem]:
    try:
        return _decode_unwrap(body).items
    except (msgspec.MsgspecError, ValueError, RecursionError):
        value = decode_object(body)
    if value is None:
        raise NoBody
    return [_UnwrapItem(item.ciphertext, item.aad) for item in parse(wire.BulkUnwrapBody, value).items]
