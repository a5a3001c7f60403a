"""The token endpoint, where every official client finds it, revocation, and the public keys."""

from __future__ import annotations

import base64
import math
from datetime import datetime
from typing import Any, Final
from urllib.parse import parse_qs

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from hsmkms.api import described as d
from hsmkms.api import wire
from hsmkms.api.cold import TokenRoute, answer, raw_body_of, services
from hsmkms.api.requests import address_of
from hsmkms.domain.identities import SigningKey
from hsmkms.domain.secrets import SecretText
from hsmkms.errors import TokenRequestInvalid
from hsmkms.iam.issuing import GRANT_API_KEY, GRANT_REFRESH, SCOPE, IssuedTokens
from hsmkms.service.acts import Act

router = APIRouter(route_class=TokenRoute, default_response_class=Response)

TOKEN_PATHS: Final = ("/identity/token", "/oidc/token")
_JSON = "application/json"


@router.post(TOKEN_PATHS[0], openapi_extra=d.token_endpoint())
@router.post(TOKEN_PATHS[1], openapi_extra=d.token_endpoint())
async def issue_token(request: Request) -> Response:
    """Exchange an API key or a refresh token for an access token.

    Python, Node, Java and Terraform use the first path, Go and keyprotect 2.x the second (additions section 6.2). A
    client id and secret by HTTP Basic are ignored, as only the API key proves anything.
    """
    form = _form(raw_body_of(request))
    tokens = services(request).tokens
    act: Act = request.state.act
    if form.get("grant_type") == GRANT_API_KEY:
        act.credential, secret = "apikey", SecretText(_field(form, "apikey"))
        issued = await run_in_threadpool(tokens.exchange_api_key, secret, address_of(request.scope))
    elif form.get("grant_type") == GRANT_REFRESH:
        act.credential = "refresh-token"
        issued = await run_in_threadpool(tokens.refresh, SecretText(_field(form, "refresh_token")))
    else:
        raise TokenRequestInvalid(f"The form field grant_type must be {GRANT_API_KEY} or {GRANT_REFRESH}.")
    act.actor = issued.iam_id
    response = answer(token_answer(issued, services(request).clock()), _JSON)
    response.headers["Cache-Control"] = "no-store"
    return response


@router.post("/identity/revoke", openapi_extra=d.revocation())
async def revoke_token(request: Request) -> Response:
    """End a log-in; who holds one of its tokens may do so (RFC 7009)."""
    form = _form(raw_body_of(request))
    await run_in_threadpool(services(request).tokens.revoke, SecretText(_field(form, "token")))
    return Response(status_code=200)


@router.get("/identity/keys", openapi_extra=d.plain("Public keys of access tokens", "Identity", wire.JsonWebKeySet))
async def public_keys(request: Request) -> Response:
    """The JSON Web Key Set (RFC 7517)."""
    keys = await run_in_threadpool(services(request).tokens.public_keys)
    return answer({"keys": [_json_web_key(key) for key in keys]}, _JSON)


def token_answer(issued: IssuedTokens, now: datetime) -> dict[str, Any]:
    """What a log-in is answered with, and the only way of tokens into an answer."""
    return {
        "access_token": issued.access_token.reveal(),
        "refresh_token": issued.refresh_token.reveal(),
        "token_type": "Bearer",
        "expires_in": math.ceil((issued.expires_at - now).total_seconds()),
        "expiration": int(issued.expires_at.timestamp()),
        "scope": SCOPE,
    }


def _form(body: bytes) -> dict[str, str]:
    """The fields that are given exactly once."""
    try:
        fields = parse_qs(body.decode(), max_num_fields=32, strict_parsing=bool(body))
    except ValueError as error:
        raise TokenRequestInvalid("The body must be a form (application/x-www-form-urlencoded).") from error
    return {name: values[0] for name, values in fields.items() if len(values) == 1}


def _field(form: dict[str, str], name: str) -> str:
    if not form.get(name):
        raise TokenRequestInvalid(f"The form field {name} is missing.")
    return form[name]


def _json_web_key(key: SigningKey) -> dict[str, Any]:
    public = load_pem_public_key(key.public_pem)
    if not isinstance(public, EllipticCurvePublicKey):
        raise TypeError("a signing key is a P-256 key")
    numbers = public.public_numbers()

    def coordinate(number: int) -> str:
        return base64.urlsafe_b64encode(number.to_bytes(32)).rstrip(b"=").decode()

    return {
        "kty": "EC",
        "crv": "P-256",
        "x": coordinate(numbers.x),
        "y": coordinate(numbers.y),
        "kid": key.id,
        "use": "sig",
        "alg": "ES256",
    }
