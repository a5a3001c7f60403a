"""Access tokens of the key service's IAM, checked with its public keys."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx
import jwt

from hsmkms.adopters.connection import Connection
from hsmkms.adopters.objectstorage.configuration import Account, User
from hsmkms.adopters.refusals import AdopterError, KeyServiceAway

_ALGORITHM: Final = "ES256"
_LEEWAY_S: Final = 10
_ASK_AGAIN_S: Final = 10.0
"""A token that names an unknown key asks for the keys anew, but not more often than this."""
_KEEP_S: Final = 3600.0


class TokenRefused(AdopterError):
    """The token is not one of this IAM, is too old, or its owner may not come here."""


@dataclass
class _Keys:
    found: Mapping[str, jwt.PyJWK]
    got_at: float


class Tokens:
    """Whom tokens stand for. May be used by many threads."""

    def __init__(self, accounts: Mapping[str, Account]) -> None:
        self._owners: dict[str, tuple[Account, User]] = {}
        for account in accounts.values():
            for iam_id, user in account.users.items():
                self._owners[iam_id] = account, user
        self._keys: dict[str, _Keys] = {}
        self._asking = threading.Lock()

    def user(self, token: str) -> User:
        """Whom a token stands for. Raises TokenRefused, KeyServiceAway, ConnectionInvalid."""
        try:
            header = jwt.get_unverified_header(token)
            claimed = jwt.decode(token, options={"verify_signature": False})
        except jwt.InvalidTokenError as error:
            raise TokenRefused("This is no access token.") from error
        # Whose it claims to be says whose keys to check it with, and nothing else.
        owner = self._owners.get(str(claimed.get("iam_id")))
        if owner is None:
            raise TokenRefused("The owner of this access token is no user of this object storage.")
        account, user = owner
        key = self._key(account.connection, str(header.get("kid")))
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iat", "iam_id", "token_use"], "verify_aud": False},
            )
        except jwt.InvalidTokenError as error:
            raise TokenRefused(f"The access token is not valid: {error}.") from error
        if claims["token_use"] != "access":
            raise TokenRefused("This is no access token.")
        return user

    def _key(self, connection: Connection, kid: str) -> jwt.PyJWK:
        url = f"{connection.token_url.removesuffix('/token')}/keys"
        with self._asking:
            keys, now = self._keys.get(url), time.monotonic()
            unknown = keys is None or kid not in keys.found
            if keys is None or now - keys.got_at > (_ASK_AGAIN_S if unknown else _KEEP_S):
                try:
                    keys = self._keys[url] = _Keys(_fetched(connection, url), now)
                except KeyServiceAway:
                    if keys is None or unknown:
                        raise
        if kid not in keys.found:
            raise TokenRefused("The access token is signed by an unknown key.")
        return keys.found[kid]


def _fetched(connection: Connection, url: str) -> dict[str, jwt.PyJWK]:
    try:
        with httpx.Client(verify=connection.trust(), trust_env=False, timeout=connection.timeout_s) as client:
            answer = client.get(url)
        found: Any = answer.json()
        keys = jwt.PyJWKSet.from_dict(found).keys if answer.is_success else None
    except (httpx.TransportError, ValueError, AttributeError, TypeError, jwt.PyJWTError) as error:
        raise KeyServiceAway(f"The public keys of access tokens cannot be got from {url}.") from error
    if keys is None:
        raise KeyServiceAway(f"The public keys of access tokens cannot be got from {url} ({answer.status_code}).")
    return {str(key.key_id): key for key in keys}
