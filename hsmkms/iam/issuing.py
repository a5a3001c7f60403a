"""Access and refresh tokens: JWTs (RFC 7519) signed with ES256 (RFC 7518 section 3.4) by a key in the token.

The claims are those that real clients read (additions section 6.2): Python `iat` and `exp`, Terraform `id`,
`account.bss` and `iss`. `sid` names the log-in, so that all its tokens can be revoked at once.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from hsmkms.domain.identities import Identity, IdentityKind, SigningKey
from hsmkms.domain.ids import new_id
from hsmkms.domain.secrets import SecretText
from hsmkms.iam.bearer import ACCESS, REFRESH

LIFETIME: Final = timedelta(hours=1)
SESSION_LIFETIME: Final = timedelta(hours=72)
"""How long a log-in may be refreshed before the API key has to be shown again."""
GRANT_API_KEY: Final = "urn:ibm:params:oauth:grant-type:apikey"
GRANT_REFRESH: Final = "refresh_token"
SCOPE: Final = "ibm openid"

Sign = Callable[[str, bytes], bytes]
"""(key id, message) → ECDSA signature of 64 bytes, made in the token."""


@dataclass(frozen=True, slots=True)
class IssuedTokens:
    """An access token of `iam_id`, when it ends, and what it can be renewed with."""

    access_token: SecretText
    refresh_token: SecretText
    expires_at: datetime
    iam_id: str


@dataclass(frozen=True, slots=True)
class LogIn:
    """Who logged in, by which API key; the session ends at `ends_at` however often it is refreshed. `fences` are those
    of identity and API key when the secret was checked (see `bearer.Presented`)."""

    identity: Identity
    api_key_id: str
    session_id: str
    ends_at: datetime
    fences: tuple[int, int]


def issue(log_in: LogIn, signing_key: SigningKey, issuer: str, sign: Sign, now: datetime) -> IssuedTokens:
    """Tokens from `now`: access for an hour or to the session's end, refresh to the session's end."""
    issued_at = now.replace(microsecond=0)
    expires_at = min(issued_at + LIFETIME, log_in.ends_at)
    identity = log_in.identity
    claims = {
        "iam_id": identity.iam_id,
        "id": identity.iam_id,
        "realmid": identity.iam_id.rpartition("-")[0] if identity.kind is IdentityKind.USER else "iam",
        "identifier": log_in.api_key_id,
        "sid": log_in.session_id,
        "session_exp": int(log_in.ends_at.timestamp()),
        "name": identity.name,
        "sub": identity.iam_id,
        "sub_type": "ServiceId" if identity.kind is IdentityKind.SERVICE_ID else "User",
        "account": {"valid": True, "bss": identity.account},
        "iat": int(issued_at.timestamp()),
        "fences": log_in.fences,
        "iss": issuer,
        "grant_type": GRANT_API_KEY,
        "scope": SCOPE,
        "client_id": "default",
    }

    def token(use: str, ends_at: datetime) -> SecretText:
        own = {**claims, "jti": new_id(), "token_use": use, "exp": int(ends_at.timestamp())}
        return SecretText(signed(own, "JWT", signing_key, sign))

    return IssuedTokens(token(ACCESS, expires_at), token(REFRESH, log_in.ends_at), expires_at, identity.iam_id)


def signed(claims: dict[str, Any], kind: str, signing_key: SigningKey, sign: Sign) -> str:
    """A JWT of the type `kind`."""
    header = {"alg": "ES256", "kid": signing_key.id, "typ": kind}
    message = _base64url(msgspec.json.encode(header)) + b"." + _base64url(msgspec.json.encode(claims))
    return (message + b"." + _base64url(sign(signing_key.id, message))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
