"""From an Authorization header to a Caller: checked once, then remembered until the token expires."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from hsmkms.clock import Clock
from hsmkms.domain.access import Caller
from hsmkms.domain.tenants import SigningKey
from hsmkms.errors import BearerUnreadable, Unauthenticated

CLOCK_SKEW: Final = timedelta(seconds=60)
MAX_TOKEN_CHARS: Final = 8_192
_REMEMBERED: Final = 10_000
_RELOAD_S: Final = 1.0


class BearerVerifier:
    """Verifies our own access tokens. The only algorithm is ES256, whatever a token's header says."""

    def __init__(self, load_signing_keys: Callable[[], list[SigningKey]], issuer: str, clock: Clock) -> None:
        self._load = load_signing_keys
        self._issuer = issuer
        self._clock = clock
        self._keys: dict[str, Any] = {}
        self._reload_at = 0.0
        self._callers: dict[bytes, Caller] = {}

    def verify(self, authorization: str | None) -> Caller:
        """The caller behind an Authorization header.

        Raises Unauthenticated (none, expired, forged) or BearerUnreadable (not a bearer token at all).
        """
        if not authorization:
            raise Unauthenticated
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or len(token) > MAX_TOKEN_CHARS or token.count(".") != 2:
            raise BearerUnreadable
        # Remembered by digest, so that this process does not keep usable tokens.
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        caller = self._callers.get(digest)
        if caller is None:
            caller = self._check(token)
            if len(self._callers) >= _REMEMBERED:
                del self._callers[next(iter(self._callers))]
            self._callers[digest] = caller
        if self._clock() >= caller.expires_at + CLOCK_SKEW:
            self._callers.pop(digest, None)
            raise Unauthenticated
        return caller

    def _check(self, token: str) -> Caller:
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
        except jwt.PyJWTError as error:
            raise BearerUnreadable from error
        key = self._key(key_id)
        if key is None:
            raise Unauthenticated
        try:
            # The times are compared below with the injected clock.
            claims = jwt.decode(
                token,
                key,
                algorithms=["ES256"],
                issuer=self._issuer,
                options={
                    "require": ["exp", "iat", "iss", "sub"],
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_aud": False,
                },
            )
            return self._caller(claims)
        except (jwt.PyJWTError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise Unauthenticated from error

    def _caller(self, claims: dict[str, Any]) -> Caller:
        issued_at = datetime.fromtimestamp(claims["iat"], UTC)
        if self._clock() < issued_at - CLOCK_SKEW:
            raise Unauthenticated
        return Caller(
            iam_id=claims["iam_id"],
            name=claims["name"],
            account=claims["account"]["bss"],
            administrator=claims["adm"] is True,
            expires_at=datetime.fromtimestamp(claims["exp"], UTC),
        )

    def _key(self, key_id: object) -> Any:
        """The public key of `key_id`; unknown ids are looked up anew at most once a second."""
        if not isinstance(key_id, str):
            return None
        if key_id not in self._keys and time.monotonic() >= self._reload_at:
            self._reload_at = time.monotonic() + _RELOAD_S
            self._keys = {key.id: load_pem_public_key(key.public_pem) for key in self._load()}
        return self._keys.get(key_id)
