"""Access tokens for API keys, their renewal and revocation, and the keys that sign them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from hsmkms.clock import Clock
from hsmkms.domain.identities import ApiKey, ApiKeyUse, Identity, RevokedSession, SigningKey
from hsmkms.domain.ids import new_id
from hsmkms.domain.secrets import SecretText
from hsmkms.errors import (
    BearerUnreadable,
    CredentialsRefused,
    TokenUnavailable,
    Unauthenticated,
    Unavailable,
    VersionStale,
)
from hsmkms.iam import api_keys, issuing
from hsmkms.iam.bearer import ACCESS, CLOCK_SKEW, MAX_TOKEN_CHARS, REFRESH, Presented, TokenVerifier
from hsmkms.iam.callers import Callers
from hsmkms.iam.grants import Grants
from hsmkms.iam.throttle import Throttle
from hsmkms.service.acts import current
from hsmkms.service.rights import Change, Delete, Insert, Replace, RightsWriter
from hsmkms.service.snapshot import Snapshot
from hsmkms.store.records import RecordStore
from hsmkms.token.room import Token

OVERLAP: Final = issuing.SESSION_LIFETIME + CLOCK_SKEW
"""How long a replaced signing key goes on verifying: until its last refresh token has ended."""
_CLEARED_AT_ONCE: Final = 100
_NOTED_KEYS: Final = 20_000
_USE_NOTED_EVERY: Final = timedelta(minutes=1)


class TokenService:
    """The token endpoint's use cases. There is no caller yet: becoming one is the point."""

    def __init__(
        self,
        token: Token,
        grants: Grants,
        rights: RightsWriter,
        records: RecordStore,
        snapshot: Snapshot,
        callers: Callers,
        verifier: TokenVerifier,
        throttle: Throttle,
        clock: Clock,
    ) -> None:
        self._token = token
        self._grants = grants
        self._rights = rights
        self._records = records
        self._snapshot = snapshot
        self._callers = callers
        self._verifier = verifier
        self._throttle = throttle
        self._clock = clock
        self._noted: dict[str, datetime] = {}

    def exchange_api_key(self, secret: SecretText, address: str) -> issuing.IssuedTokens:
        """Tokens for the owner of an API key. `address` is where the request came from.

        Raises CredentialsRefused, whatever is wrong with the key, or TooManyAttempts.
        """
        api_key, identity = self._authenticate(secret, address)
        self._note_use(api_key)
        return self._log_in(api_key, identity)

    def warm_exchange(self, secret: SecretText, address: str) -> Callable[[], issuing.IssuedTokens] | None:
        """What is left to do of it: two signatures of the token, on this thread. None if it would have to wait for
        anything else, or would be refused."""
        if not (self._snapshot.fresh and self._token.is_fast):
            return None
        found = self._right(secret)
        if found is None or not self._was_noted(found[0], self._clock()):
            return None
        self._throttle.succeeded(found[0].id, address)
        return partial(self._log_in, *found)

    def _log_in(self, api_key: ApiKey, identity: Identity) -> issuing.IssuedTokens:
        now = self._clock()
        ends_at = (now + issuing.SESSION_LIFETIME).replace(microsecond=0)
        fences = (identity.fence, api_key.fence)
        return self._issue(issuing.LogIn(identity, api_key.id, new_id(), ends_at, fences))

    def api_key_of(self, secret: SecretText, address: str) -> ApiKey:
        """The API key with this secret. Raises CredentialsRefused, TooManyAttempts."""
        return self._authenticate(secret, address)[0]

    def refresh(self, refresh_token: SecretText) -> issuing.IssuedTokens:
        """New tokens of the same log-in, which ends when it would have. Raises CredentialsRefused."""
        self._snapshot.refresh()
        presented = self._presented(refresh_token, REFRESH)
        try:
            self._callers.caller_of(presented)
        except Unauthenticated as error:
            raise CredentialsRefused from error
        identity = self._grants.identity(presented.iam_id or "")
        if identity is None or presented.session_ends_at is None:
            raise CredentialsRefused
        key_id, session_id = presented.api_key_id or "", presented.session_id or ""
        return self._issue(issuing.LogIn(identity, key_id, session_id, presented.session_ends_at, presented.fences))

    def revoke(self, token: SecretText) -> None:
        """Refuse every token of the log-in that an access or refresh token belongs to (RFC 7009): who holds a token
        may end it. What is no token of ours, or none any more, is as good as revoked."""
        self._snapshot.refresh()
        for use in (ACCESS, REFRESH):
            try:
                # Also one that has ended: the refresh token of the same log-in may live on.
                presented = self._presented(token, use, ended=True)
            except CredentialsRefused:
                continue
            current().actor = presented.iam_id
            session = RevokedSession(id=presented.session_id or "", ends_at=presented.session_ends_at or self._clock())
            changes: list[Change] = [Insert(session), *self._ended_sessions()]
            try:
                self._rights.commit("", changes)
            except VersionStale:
                # Revoked already, or another process cleared the same ended sessions first.
                self._revoke_alone(session)
            return

    def public_keys(self) -> Sequence[SigningKey]:
        """The keys that verify tokens, newest first."""
        believed = [key for key in self._grants.about(SigningKey) if self._verifier.believes(key)]
        return sorted(believed, key=lambda key: key.created_at, reverse=True)

    def sign_security_event(self, event_id: str, audience: str, transaction: str, events: dict[str, Any]) -> str:
        """A Security Event Token (RFC 8417), which `public_keys` verify. By type and claims it is no access token."""
        now = int(self._clock().timestamp())
        claims = {"iss": self._verifier.issuer, "iat": now, "jti": event_id, "aud": audience, "txn": transaction}
        return issuing.signed({**claims, "events": events}, "secevent+jwt", self._signing_key(), self._token.sign)

    def rotate_signing_key(self, *, overlap: timedelta = OVERLAP) -> SigningKey:
        """Sign with a new key from now on; the others verify for `overlap` more. Keys whose time is over are destroyed.

        With an `overlap` of nothing every token that was issued until now is refused.
        """
        self._snapshot.refresh()
        now, key_id = self._clock(), new_id()
        retires_at = now + overlap
        changes: list[Change] = []
        gone = []
        for record, known in self._grants.entries(SigningKey):
            ends = retires_at if known.retires_at is None else min(known.retires_at, retires_at)
            if ends <= now:
                changes.append(Delete(record))
                gone.append(known.id)
            elif ends != known.retires_at:
                changes.append(Replace(record, dataclasses.replace(known, retires_at=ends)))
        public_pem = self._token.generate_signing_key(key_id)
        signing_key = SigningKey(id=key_id, public_pem=public_pem, created_at=now)
        committed = False
        try:
            self._rights.commit("", [Insert(signing_key), *changes])
            committed = True
        finally:
            if not committed:
                with contextlib.suppress(Unavailable):
                    self._token.destroy_signing_key(key_id)
        for old_id in gone:
            self._token.destroy_signing_key(old_id)
        return signing_key

    def _authenticate(self, secret: SecretText, address: str) -> tuple[ApiKey, Identity]:
        key_id = api_keys.id_of(secret) or ""
        self._snapshot.refresh()
        found = self._right(secret)
        if found is None:
            # Only failures wait. A client with an old secret must not lock out the one that has the new one, and 256
            # bits are not guessed however fast one may try.
            self._throttle.require(key_id, address)
            self._throttle.failed(key_id, address)
            raise CredentialsRefused
        self._throttle.succeeded(key_id, address)
        return found

    def _right(self, secret: SecretText) -> tuple[ApiKey, Identity] | None:
        """The API key with this secret and its owner, if both may log in."""
        api_key = self._grants.get(ApiKey, api_keys.id_of(secret) or "")
        identity = None if api_key is None else self._grants.identity(api_key.iam_id)
        right = api_keys.matches(secret, api_key)
        # Only of a key that there is: what somebody typed in its place may be a secret.
        current().reference = None if api_key is None else api_key.id
        if not right or api_key is None or identity is None or identity.locked or not api_key.usable(self._clock()):
            return None
        return api_key, identity

    def _note_use(self, api_key: ApiKey) -> None:
        now = self._clock()
        if self._was_noted(api_key, now):
            return
        use = self._records.last_use(api_key.id)
        if use is None or now - use.last_at >= _USE_NOTED_EVERY:
            self._records.note_use(api_key.id, now)
            use = ApiKeyUse(now, 0)
        if len(self._noted) >= _NOTED_KEYS:
            self._noted.clear()
        self._noted[api_key.id] = use.last_at

    def _was_noted(self, api_key: ApiKey, now: datetime) -> bool:
        """Whether this process knows that its last use was noted in the last minute."""
        noted_at = self._noted.get(api_key.id)
        return noted_at is not None and now - noted_at < _USE_NOTED_EVERY

    def _issue(self, log_in: issuing.LogIn) -> issuing.IssuedTokens:
        signing_key, issuer = self._signing_key(), self._verifier.issuer
        return issuing.issue(log_in, signing_key, issuer, self._token.sign, self._clock())

    def _signing_key(self) -> SigningKey:
        signing = [key for key in self.public_keys() if key.retires_at is None]
        if not signing:
            raise TokenUnavailable("There is no key to sign tokens with. Run `hsmkms init`.")
        return signing[0]

    def _presented(self, token: SecretText, use: str, *, ended: bool = False) -> Presented:
        text = token.reveal()
        if len(text) > MAX_TOKEN_CHARS or text.count(".") != 2:
            raise CredentialsRefused
        try:
            return self._verifier.verify(text, use, ended=ended)
        except (Unauthenticated, BearerUnreadable) as error:
            raise CredentialsRefused from error

    def _ended_sessions(self) -> list[Change]:
        """Revocations that nothing needs any more."""
        before = self._clock() - CLOCK_SKEW
        ended = (record for record, session in self._grants.entries(RevokedSession) if session.ends_at < before)
        return [Delete(record) for record in itertools.islice(ended, _CLEARED_AT_ONCE)]

    def _revoke_alone(self, session: RevokedSession) -> None:
        if self._grants.get(RevokedSession, session.id) is None:
            self._rights.commit("", [Insert(session)])
