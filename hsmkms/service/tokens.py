"""Access tokens for API keys, and the public keys that verify them."""

from __future__ import annotations

from collections.abc import Sequence

from hsmkms.clock import Clock
from hsmkms.domain.secrets import SecretText
from hsmkms.domain.tenants import SigningKey
from hsmkms.errors import CredentialsRefused, TokenUnavailable
from hsmkms.iam import api_keys, issuing
from hsmkms.store.tenants import TenantStore
from hsmkms.token.room import Token


class TokenService:
    """The token endpoint's use cases. There is no caller yet: becoming one is the point."""

    def __init__(self, token: Token, tenants: TenantStore, issuer: str, clock: Clock) -> None:
        self._token = token
        self._tenants = tenants
        self._issuer = issuer
        self._clock = clock

    def exchange_api_key(self, secret: SecretText) -> issuing.IssuedToken:
        """An access token for the owner of an API key. Raises CredentialsRefused."""
        if len(secret.reveal()) > api_keys.MAX_CHARS:
            raise CredentialsRefused
        api_key = self._tenants.api_key(api_keys.hash_secret(secret))
        if api_key is None:
            raise CredentialsRefused
        signing_keys = self._tenants.signing_keys()
        if not signing_keys:
            raise TokenUnavailable("There is no key to sign access tokens with. Run `hsmkms init`.")
        return issuing.issue(api_key, signing_keys[0], self._issuer, self._token.sign, self._clock())

    def public_keys(self) -> Sequence[SigningKey]:
        """The signing keys, newest first."""
        return self._tenants.signing_keys()
