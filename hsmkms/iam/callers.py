"""From what a request presents to a Caller with rights: checked once, then remembered for as long as nothing changed.

`known` answers from memory alone, for the event loop; `resolve` may check a signature, ask the token for a MAC or an
outside issuer for its keys.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import jwt

from hsmkms.clock import Clock
from hsmkms.domain.access import Caller
from hsmkms.domain.identities import ApiKey, Identity, Login, LoginMethod, RevokedSession, SigningKey
from hsmkms.errors import BearerUnreadable, Unauthenticated
from hsmkms.iam import certificates
from hsmkms.iam.bearer import ACCESS, MAX_TOKEN_CHARS, Presented, TokenVerifier
from hsmkms.iam.grants import Grants
from hsmkms.iam.outside import OutsideIssuer

_REMEMBERED: Final = 10_000


@dataclass(frozen=True, slots=True)
class Shown:
    """What was shown and who it proved; whether it still counts `Callers.believed` tells."""

    presented: Presented
    outside: OutsideIssuer | None
    generation: int
    epoch: int
    caller: Caller


class Callers:
    """Everybody who is let in, by what he shows."""

    def __init__(self, grants: Grants, verifier: TokenVerifier, outside: Sequence[OutsideIssuer], clock: Clock) -> None:
        self._grants = grants
        self._verifier = verifier
        self._outside = {issuer.settings.issuer: issuer for issuer in outside}
        self._clock = clock
        self._entries: dict[bytes, Shown] = {}
        self._lock = threading.Lock()

    def known(self, authorization: str | None, certificate: bytes | None) -> Caller | None:
        """The caller if this was shown before and nothing has changed since; None says nothing about who it is."""
        shown = self.shown(authorization, certificate)
        return None if shown is None else self.believed(shown)

    def shown(self, authorization: str | None, certificate: bytes | None) -> Shown | None:
        """What is remembered of this, whether it still counts or not."""
        return self._entries.get(_digest(authorization, certificate))

    def believed(self, shown: Shown) -> Caller | None:
        """The caller, if nothing has changed since it was checked."""
        grants = self._grants
        if shown.epoch != grants.epoch or self._clock() >= shown.caller.expires_at:
            return None
        if shown.presented.session_id in grants.revoked_sessions:
            return None
        return shown.caller if _still_believed(shown) else None

    def resolve(self, authorization: str | None, certificate: bytes | None) -> Caller:
        """The caller. A bearer token counts before a certificate.

        Raises Unauthenticated (nothing shown, expired, forged, revoked), BearerUnreadable (not a bearer token at all),
        Unavailable.
        """
        digest = _digest(authorization, certificate)
        entry = self._entries.get(digest)
        # Read before the rights: a change that is noticed meanwhile makes this entry an old one.
        epoch = self._grants.epoch
        if entry is not None and _still_believed(entry):
            presented, outside, generation = entry.presented, entry.outside, entry.generation
        else:
            presented, outside, generation = self._verify(authorization, certificate)
        caller = self._caller(presented)
        if self._clock() >= caller.expires_at:
            raise Unauthenticated
        with self._lock:
            while len(self._entries) >= _REMEMBERED:
                del self._entries[next(iter(self._entries))]
            # By digest, so that this process does not keep usable tokens.
            self._entries[digest] = Shown(presented, outside, generation, epoch, caller)
        return caller

    def caller_of(self, presented: Presented) -> Caller:
        """The caller behind something that was verified elsewhere, such as a refresh token. Raises Unauthenticated."""
        return self._caller(presented)

    def _verify(
        self, authorization: str | None, certificate: bytes | None
    ) -> tuple[Presented, OutsideIssuer | None, int]:
        """What was shown, by whose keys, and the generation of those keys before they were used."""
        if authorization is None and certificate is not None:
            return certificates.presented(certificate), None, 0
        if not authorization:
            raise Unauthenticated
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or len(token) > MAX_TOKEN_CHARS or token.count(".") != 2:
            raise BearerUnreadable
        outside = self._outside.get(_issuer_of(token)) if self._outside else None
        if outside is not None:
            presented, generation = outside.verify(token)
            return presented, outside, generation
        return self._verifier.verify(token, ACCESS), None, 0

    def _caller(self, presented: Presented) -> Caller:
        identity = self._identity(presented)
        if identity is None or identity.locked or presented.account not in (None, identity.account):
            raise Unauthenticated
        if presented.iam_id is not None and presented.fences[0] != identity.fence:
            raise Unauthenticated
        outside_until = identity.tokens_end_at if presented.method is LoginMethod.OIDC else None
        if outside_until is not None and presented.issued_at <= outside_until:
            raise Unauthenticated
        expires_at = presented.expires_at
        if presented.api_key_id is not None:
            api_key = self._grants.get(ApiKey, presented.api_key_id)
            if api_key is None or api_key.iam_id != identity.iam_id or not api_key.usable(self._clock()):
                raise Unauthenticated
            if presented.fences[1] != api_key.fence:
                raise Unauthenticated
            if api_key.expires_at is not None:
                expires_at = min(expires_at, api_key.expires_at)
        return Caller(
            iam_id=identity.iam_id,
            name=identity.name,
            account=identity.account,
            rights=self._grants.rights_of(identity),
            sources=frozenset(identity.sources),
            expires_at=expires_at,
        )

    def _identity(self, presented: Presented) -> Identity | None:
        if presented.iam_id is not None:
            key = self._grants.get(SigningKey, presented.signing_key_id or "")
            if key is None or not self._verifier.believes(key):
                return None
            if self._grants.get(RevokedSession, presented.session_id or "") is not None:
                return None
            return self._grants.identity(presented.iam_id)
        if presented.method is None:
            return None
        logins = self._grants.about(Login, f"{presented.method.value}:{presented.issuer}")
        # Somebody who would be two identities is neither.
        named = {login.iam_id for login in logins if login.value in presented.claims.get(login.claim, ())}
        return self._grants.identity(named.pop()) if len(named) == 1 else None


def _still_believed(entry: Shown) -> bool:
    return entry.outside is None or (entry.outside.fresh and entry.outside.generation == entry.generation)


def _digest(authorization: str | None, certificate: bytes | None) -> bytes:
    if certificate is not None and authorization is None:
        return hashlib.sha256(b"certificate\0" + certificate).digest()
    return hashlib.sha256(b"authorization\0" + (authorization or "").encode("utf-8", "surrogatepass")).digest()


def _issuer_of(token: str) -> str:
    """What an unverified token says of its issuer: it only chooses whose keys to try."""
    try:
        issuer = jwt.decode(token, options={"verify_signature": False}).get("iss")
    except jwt.PyJWTError:
        return ""
    return issuer if isinstance(issuer, str) else ""
