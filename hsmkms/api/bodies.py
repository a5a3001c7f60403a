"""Request bodies: read up to a limit, decoded strictly, member names matched without case.

No Content-Type is ever refused, since Go sends none (contract section 0 traps 2 to 4). An empty body, `null` and `{}`
all mean "no body", and a member that is null is absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec
import pydantic
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from hsmkms.api import registration_wire, wire
from hsmkms.api.problems import BodyTooLarge
from hsmkms.errors import BadBody, CollectionTotalMismatch, InvalidField, ResourceCount

COLD_LIMIT: Final = 64 * 1024
HOT_LIMIT: Final = 1024 * 1024
"""255 AAD strings of 255 characters, each written as a JSON escape of 12 bytes, and 4,096 bytes of plaintext fit."""
BULK_LIMIT: Final = 12 * 1024 * 1024
"""1,000 ciphertexts of 4,096 bytes each, with some AAD."""

_CANONICAL_NAMES: Final = {
    name.lower(): name
    for model in (
        wire.CollectionMetadata,
        wire.KeyWithPoliciesResource,
        wire.KeyCreateBody,
        wire.KeyPatchBody,
        wire.WrapBody,
        wire.UnwrapBody,
        wire.BulkWrapBody,
        wire.BulkUnwrapBody,
        wire.RotateBody,
        wire.ImportTokenBody,
        wire.RotationWish,
        wire.DualAuthWish,
        wire.InstancePolicyAttributes,
        wire.InstancePolicyData,
        wire.InstancePolicyWriteResource,
        registration_wire.RegistrationWriteResource,
        registration_wire.ResourceCrnResource,
        registration_wire.AcknowledgementResource,
        registration_wire.KeyStateData,
    )
    for name in model.model_fields
}
"""Lower case to the one spelling; no two members of the API differ by case alone."""

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z_]{0,31}", re.ASCII)

Model = TypeVar("Model", bound=pydantic.BaseModel)


async def read_body(receive: Receive, headers: Iterable[tuple[bytes, bytes]], limit: int) -> bytes:
    """The whole body. Raises BodyTooLarge as soon as it is known, from Content-Length if there is one."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise BodyTooLarge(limit)
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False) and message["type"] == "http.request":
        if len(body) > limit:
            raise BodyTooLarge(limit)
        return body
    chunks, length = [body], len(body)
    while message["type"] == "http.request" and message.get("more_body", False):
        message = await receive()
        chunks.append(message.get("body", b""))
        length += len(chunks[-1])
        if length > limit:
            raise BodyTooLarge(limit)
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return b"".join(chunks)


def decode_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object in `body` with canonical member names; None if there is no body. Raises BadBody."""
    if not body.strip():
        return None
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadBody("The request body is not valid JSON.") from error
    if value is None:
        return None
    if not isinstance(value, dict):
        raise BadBody("The request body must be a JSON object.")
    return _fold(value)


def parse(model: type[Model], value: dict[str, Any]) -> Model:
    """`value` as a model. Raises BadBody for an unknown or missing member or a wrong type."""
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as error:
        # Not chained: pydantic's text quotes the input.
        raise _refusal(error) from None


def require_collection(metadata: wire.CollectionMetadata, kind: str, count: int, *, exactly_one: bool) -> None:
    """Raise BadBody or CollectionTotalMismatch for a collection that is not of `kind` or not as long as it says."""
    if metadata.collectionType != kind:
        raise BadBody(f"The member metadata.collectionType must be {kind}.")
    if metadata.collectionTotal != count:
        raise CollectionTotalMismatch
    if exactly_one and count != 1:
        raise BadBody("The member resources must hold exactly one resource.")


def require_policies(metadata: wire.CollectionMetadata, count: int, *, one: bool) -> None:
    """Raise BadBody, CollectionTotalMismatch or ResourceCount for a collection of policies that is not one; with `one`
    the parameter `policy` named a single policy (contract section 1.4)."""
    require_collection(metadata, wire.POLICY_TYPE, count, exactly_one=False)
    if one and count != 1:
        raise ResourceCount


def parse_time(name: str, text: str) -> datetime:
    """The RFC 3339 time in the member `name`, in UTC. Raises InvalidField."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError
        return moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidField(name, f"The field `{name}` must be an RFC 3339 time.") from error


def _fold(value: dict[str, Any]) -> dict[str, Any]:
    """Canonical names, nulls dropped; two spellings of one member are refused, as neither is more right."""
    folded: dict[str, Any] = {}
    for name, member in value.items():
        canonical = _CANONICAL_NAMES.get(name.lower(), name)
        if canonical in folded:
            raise BadBody(f"The member {_shown(canonical)} is given twice.")
        if isinstance(member, dict):
            folded[canonical] = _fold(member)
        elif isinstance(member, list):
            folded[canonical] = [_fold(item) if isinstance(item, dict) else item for item in member]
        elif member is not None:
            folded[canonical] = member
    return folded


def _refusal(error: pydantic.ValidationError) -> BadBody:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(first["loc"][-1]) if first["loc"] else "body"
    if first["type"] == "extra_forbidden":
        return BadBody(f"Remove the unknown member. json: unknown field {_shown(name)}")
    if first["type"] == "missing":
        return BadBody(f"The member {_shown(name)} is missing.")
    return BadBody(f"The member {_shown(name)} has the wrong type.")


def _shown(name: str) -> str:
    """A member's name in quotes, if it looks like one: somebody may have put a secret in its place."""
    return f'"{name}"' if _NAME.fullmatch(name) else '"..."'
