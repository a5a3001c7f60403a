"""Import tokens, and the members of a body that bring a key (contract section 1.2, additions section 3.4)."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from hsmkms.api import described as d
from hsmkms.api import wire
from hsmkms.api.cold import KmsRoute, answer, call_of, described, note_import_token, optional_body_of, services
from hsmkms.domain.access import Action
from hsmkms.domain.importing import (
    DEFAULT_LIFETIME_S,
    DEFAULT_RETRIEVALS,
    BroughtMaterial,
    Oaep,
    PlainMaterial,
    WrappedMaterial,
)
from hsmkms.domain.secrets import SecretBytes
from hsmkms.errors import InvalidField

router = APIRouter(prefix="/api/v2", route_class=KmsRoute, default_response_class=Response)

_FAILED: Final = "Import token could not be"


@router.post(
    "/import_token",
    openapi_extra=described(
        d.operation(
            "Make an import token in the place of the old one",
            ok=200,
            kind=wire.IMPORT_TOKEN_TYPE,
            answer=wire.ImportTokenAnswer,
            body=wire.ImportTokenBody,
            body_required=False,
            ring=False,
        ),
        Action.IMPORT_TOKEN_CREATE,
        f"{_FAILED} created",
    ),
)
async def create_import_token(request: Request) -> Response:
    """Make an import token: 200, without its public key."""
    call, body = call_of(request), optional_body_of(request, wire.ImportTokenBody) or wire.ImportTokenBody()
    lifetime_s = DEFAULT_LIFETIME_S if body.expiration is None else body.expiration
    retrievals = DEFAULT_RETRIEVALS if body.maxAllowedRetrievals is None else body.maxAllowedRetrievals
    create = services(request).imports.create
    made = await run_in_threadpool(create, call.caller, call.instance_id, lifetime_s, retrievals)
    note_import_token(request, made)
    return answer(wire.import_token(made), wire.IMPORT_TOKEN_TYPE)


@router.get(
    "/import_token",
    openapi_extra=described(
        d.operation(
            "Read the import token, which counts as a retrieval",
            ok=200,
            kind=wire.IMPORT_TOKEN_TYPE,
            answer=wire.ImportTokenAnswer,
            ring=False,
        ),
        Action.IMPORT_TOKEN_READ,
        f"{_FAILED} retrieved",
    ),
)
async def get_import_token(request: Request) -> Response:
    """Read the import token with its public key and nonce."""
    call = call_of(request)
    found = await run_in_threadpool(services(request).imports.read, call.caller, call.instance_id)
    note_import_token(request, found)
    response = answer(wire.import_token(found, whole=True), wire.IMPORT_TOKEN_TYPE)
    response.headers["Cache-Control"] = "no-store"
    return response


def brought_material(fields: wire.KeyCreateResource | wire.RotateBody) -> BroughtMaterial | None:
    """The key that a body brings, in clear or under an import token; None if it brings none. Raises InvalidField."""
    if fields.payload is None:
        for name in ("encryptedNonce", "iv", "encryptionAlgorithm"):
            if getattr(fields, name) is not None:
                raise InvalidField("payload", f"The field `{name}` belongs to a key in the field `payload`.")
        return None
    if fields.encryptedNonce is None and fields.iv is None:
        if fields.encryptionAlgorithm is not None:
            raise InvalidField("encryptedNonce", "A wrapped key comes with `encryptedNonce` and `iv`.")
        return PlainMaterial(SecretBytes(_decoded("payload", fields.payload)))
    if fields.encryptedNonce is None or fields.iv is None:
        name = "iv" if fields.iv is None else "encryptedNonce"
        raise InvalidField(name, "The fields `encryptedNonce` and `iv` come together.")
    try:
        oaep = Oaep(fields.encryptionAlgorithm or Oaep.SHA_256.value)
    except ValueError as error:
        known = " or ".join(one.value for one in Oaep)
        raise InvalidField("encryptionAlgorithm", f"The field `encryptionAlgorithm` is {known}.") from error
    return WrappedMaterial(
        _decoded("payload", fields.payload),
        _decoded("encryptedNonce", fields.encryptedNonce),
        _decoded("iv", fields.iv),
        oaep,
    )


def _decoded(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        # Not chained: what was decoded may be a key.
        raise InvalidField(name, f"The field `{name}` must be base64.") from None
