"""Our own access and refresh tokens, verified. The only algorithm is ES256, whatever a token's header says, and the
only keys are those of this deployment, whatever `jwk` or `x5u` it carries."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from hsmkms.clock import Clock
from hsmkms.domain.identities import LoginMethod, SigningKey
from hsmkms.errors import BearerUnreadable, Unauthenticated
from hsmkms.iam.grants import Grants

CLOCK_SKEW: Final = timedelta(seconds=60)
MAX_TOKEN_CHARS: Final = 16_384
ACCESS: Final = "access"
REFRESH: Final = "refresh"
_MALFORMED: Final = (jwt.PyJWTError, KeyError, TypeError, ValueError, OverflowError, AttributeError)


@dataclass(frozen=True, slots=True)
class Presented:
    """What a request proved of itself, before anything was looked up.

    Our own tokens name an `iam_id`; those of outside issuers and certificates have `claims` that a login maps to one.
    `expires_at` has the tolerated clock skew in it. `fences` are those of identity and API key when the log-in was
    checked: what has another fence now has ended the log-in, without any comparison of clocks.
    """

    issued_at: datetime
    expires_at: datetime
    iam_id: str | None = None
    account: str | None = None
    api_key_id: str | None = None
    session_id: str | None = None
    signing_key_id: str | None = None
    method: LoginMethod | None = None
    issuer: str = ""
    claims: dict[str, tuple[str, ...]] = field(default_factory=dict)
    session_ends_at: datetime | None = None
    fences: tuple[int, int] = (0, 0)


class TokenVerifier:
    """Verifies tokens that this deployment issued."""

    def __init__(self, grants: Grants, issuer: str, clock: Clock) -> None:
        self._grants = grants
        self.issuer = issuer
        self._clock = clock

    def verify(self, token: str, use: str, *, ended: bool = False) -> Presented:
        """What `token` proves, if it is of this use; with `ended` also when its time is over. Raises Unauthenticated or
        BearerUnreadable."""
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
        except jwt.PyJWTError as error:
            raise BearerUnreadable from error
        signing_key = self._grants.get(SigningKey, key_id) if isinstance(key_id, str) else None
        if signing_key is None or not self.believes(signing_key):
            raise Unauthenticated
        try:
            # The times are compared below with the injected clock.
            claims = jwt.decode(
                token,
                load_pem_public_key(signing_key.public_pem),  # type: ignore[arg-type]  # a P-256 key, as it was made
                algorithms=["ES256"],
                issuer=self.issuer,
                options={
                    "require": ["exp", "iat", "iss", "sub", "sid"],
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                    "verify_aud": False,
                },
            )
            presented = _presented(claims, use, signing_key.id)
        except _MALFORMED as error:
            raise Unauthenticated from error
        if not ended:
            require_in_time(claims, self._clock())
        return presented

    def believes(self, signing_key: SigningKey) -> bool:
        """Whether a signing key still verifies."""
        return signing_key.retires_at is None or self._clock() < signing_key.retires_at


def require_in_time(claims: dict[str, Any], now: datetime) -> None:
    """Check `exp`, `iat` and `nbf` with the tolerated skew. Raises Unauthenticated."""
    try:
        ends, *begins = (datetime.fromtimestamp(claims[name], UTC) for name in ("exp", "iat", "nbf") if name in claims)
        in_time = now < ends + CLOCK_SKEW and all(now >= begin - CLOCK_SKEW for begin in begins)
    except _MALFORMED as error:
        raise Unauthenticated from error
    if not in_time:
        raise Unauthenticated


def _presented(claims: dict[str, Any], use: str, signing_key_id: str) -> Presented:
    if claims["token_use"] != use:
        raise ValueError("a token of another use")
    texts = [*(claims[name] for name in ("iam_id", "sid", "identifier")), claims["account"]["bss"]]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("identifiers are texts")
    return Presented(
        issued_at=datetime.fromtimestamp(claims["iat"], UTC),
        expires_at=datetime.fromtimestamp(claims["exp"], UTC) + CLOCK_SKEW,
        iam_id=texts[0],
        session_id=texts[1],
        api_key_id=texts[2],
        account=texts[3],
        signing_key_id=signing_key_id,
        session_ends_at=datetime.fromtimestamp(claims["session_exp"], UTC),
        fences=(int(claims["fences"][0]), int(claims["fences"][1])),
    )
