"""Access tokens: JWTs (RFC 7519) signed with ES256 (RFC 7518 section 3.4) by a key in the token.

The claims are those that real clients read (additions section 6.2): Python `iat` and `exp`, Terraform `id`,
`account.bss` and `iss`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import msgspec

from hsmkms.domain.ids import new_id
from hsmkms.domain.secrets import SecretText
from hsmkms.domain.tenants import ApiKey, SigningKey

LIFETIME: Final = timedelta(hours=1)
GRANT_API_KEY: Final = "urn:ibm:params:oauth:grant-type:apikey"
SCOPE: Final = "ibm openid"

Sign = Callable[[str, bytes], bytes]
"""(key id, message) → ECDSA signature of 64 bytes, made in the token."""


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """An access token and when it ends."""

    access_token: SecretText
    issued_at: datetime
    expires_at: datetime


def issue(api_key: ApiKey, signing_key: SigningKey, issuer: str, sign: Sign, now: datetime) -> IssuedToken:
    """A token for the identity of `api_key`, valid for an hour from `now`."""
    issued_at = now.replace(microsecond=0)
    expires_at = issued_at + LIFETIME
    header = {"alg": "ES256", "kid": signing_key.id, "typ": "JWT"}
    claims = {
        "iam_id": api_key.iam_id,
        "id": api_key.iam_id,
        "realmid": "IBMid",
        "jti": new_id(),
        "identifier": api_key.id,
        "name": api_key.name,
        "sub": api_key.iam_id,
        "sub_type": "ServiceId",
        "account": {"valid": True, "bss": api_key.account},
        "adm": api_key.administrator,
        "iat": int(issued_at.timestamp()),
        "exp": int(expires_at.timestamp()),
        "iss": issuer,
        "grant_type": GRANT_API_KEY,
        "scope": SCOPE,
        "client_id": "default",
    }
    signed = _base64url(msgspec.json.encode(header)) + b"." + _base64url(msgspec.json.encode(claims))
    signature = _base64url(sign(signing_key.id, signed))
    return IssuedToken(SecretText((signed + b"." + signature).decode()), issued_at, expires_at)


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
