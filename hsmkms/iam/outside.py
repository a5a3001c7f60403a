"""Access tokens of outside OpenID Connect issuers (OpenID Connect Discovery 1.0, RFC 7517, RFC 9068).

Only issuers that the operator named are asked, only over TLS or on this host, and only asymmetric algorithms count. An
issuer's keys are fetched anew when they are older than KEYS_MAX_AGE_S, and for an unknown `kid` at most once in
UNKNOWN_KEY_RETRY_S; so a key that the issuer took back verifies nothing here after KEYS_MAX_AGE_S.
"""

from __future__ import annotations

import ipaddress
import json
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jwt

from hsmkms.clock import Clock
from hsmkms.domain.identities import LoginMethod
from hsmkms.errors import IssuerUnavailable, SettingsInvalid, Unauthenticated
from hsmkms.iam.bearer import CLOCK_SKEW, Presented, require_in_time

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
UNKNOWN_KEY_RETRY_S: Final = 10.0
_FETCH_TIMEOUT_S: Final = 5.0
_MAX_ANSWER_BYTES: Final = 512 * 1024
_MAX_CLAIM_VALUES: Final = 500


@dataclass(frozen=True, slots=True)
class IssuerSettings:
    """An issuer whose tokens are accepted when they are for `audience`."""

    issuer: str
    audience: str
    ca_file: Path | None
    keys_max_age_s: float


class OutsideIssuer:
    """One issuer, its keys in memory. Not asked before its first token comes."""

    def __init__(self, settings: IssuerSettings, clock: Clock) -> None:
        """Raises SettingsInvalid for an issuer that would be asked in clear over a network."""
        _require_private(settings.issuer)
        self.settings = settings
        self._clock = clock
        context = ssl.create_default_context(cafile=settings.ca_file)
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context), urllib.request.ProxyHandler({}), _NoRedirect()
        )
        self._lock = threading.Lock()
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = float("-inf")
        self.generation = 0

    @property
    def fresh(self) -> bool:
        """Whether the keys in memory may still be believed."""
        return time.monotonic() < self._fetched_at + self.settings.keys_max_age_s

    def verify(self, token: str) -> Presented:
        """What the token proves. Raises Unauthenticated, or IssuerUnavailable when the keys cannot be fetched."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise Unauthenticated from error
        key = self._key(header.get("kid"))
        if key is None or header.get("alg") not in ALGORITHMS or key.algorithm_name != header["alg"]:
            raise Unauthenticated
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[header["alg"]],
                issuer=self.settings.issuer,
                audience=self.settings.audience,
                options={
                    "require": ["exp", "iat", "iss", "aud", "sub"],
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
            issued_at, ends_at = (datetime.fromtimestamp(claims[name], UTC) for name in ("iat", "exp"))
        except (jwt.PyJWTError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise Unauthenticated from error
        require_in_time(claims, self._clock())
        return Presented(
            issued_at=issued_at,
            expires_at=ends_at + CLOCK_SKEW,
            method=LoginMethod.OIDC,
            issuer=self.settings.issuer,
            claims=_texts(claims),
        )

    def _key(self, key_id: object) -> jwt.PyJWK | None:
        if not isinstance(key_id, str):
            return None
        with self._lock:
            age = time.monotonic() - self._fetched_at
            unknown = key_id not in self._keys and age > UNKNOWN_KEY_RETRY_S
            if unknown or age > self.settings.keys_max_age_s:
                self._fetch()
            return self._keys.get(key_id)

    def _fetch(self) -> None:
        """Discovery and key set. What an issuer does not publish any more is forgotten."""
        place = self.settings.issuer.rstrip("/") + "/.well-known/openid-configuration"
        found = self._get(place)
        if found.get("issuer") != self.settings.issuer or not isinstance(found.get("jwks_uri"), str):
            raise IssuerUnavailable(f"{place} does not describe the issuer {self.settings.issuer}.")
        try:
            _require_private(found["jwks_uri"])
            listed = self._get(found["jwks_uri"])
            keys = [entry for entry in listed.get("keys", []) if isinstance(entry, dict) and entry.get("use") != "enc"]
        except (SettingsInvalid, TypeError) as error:
            raise IssuerUnavailable(f"The keys of {self.settings.issuer} cannot be read.") from error
        usable: dict[str, jwt.PyJWK] = {}
        for entry in keys:
            try:
                key = jwt.PyJWK(entry)
            except jwt.PyJWTError:
                # A kind of key that is not known here verifies nothing, and the others are none the worse for it.
                continue
            if isinstance(entry.get("kid"), str) and key.algorithm_name in ALGORITHMS:
                usable[entry["kid"]] = key
        if usable.keys() != self._keys.keys():
            self.generation += 1
        self._keys, self._fetched_at = usable, time.monotonic()

    def _get(self, url: str) -> dict[str, Any]:
        try:
            with self._opener.open(url, timeout=_FETCH_TIMEOUT_S) as answer:
                body = answer.read(_MAX_ANSWER_BYTES + 1)
            value = json.loads(body) if len(body) <= _MAX_ANSWER_BYTES else None
        except (OSError, ValueError) as error:
            raise IssuerUnavailable(f"The issuer {self.settings.issuer} does not answer. Try again.") from error
        if not isinstance(value, dict):
            raise IssuerUnavailable(f"The issuer {self.settings.issuer} does not answer as it should.")
        return value


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An issuer's keys are where it says they are, and not where somebody else sends us."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _require_private(url: str) -> None:
    """Raise SettingsInvalid unless `url` is https, or http on this host."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if parts.scheme != "https" and not (parts.scheme == "http" and loopback):
        raise SettingsInvalid(f"The issuer {url} must be an https URL: its keys decide who comes in.")


def _texts(claims: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Claims that are a text or a list of texts; only these can be mapped."""
    texts: dict[str, tuple[str, ...]] = {}
    for name, value in claims.items():
        values = value if isinstance(value, list) else [value]
        texts[name] = tuple(text for text in values[:_MAX_CLAIM_VALUES] if isinstance(text, str))
    return texts
