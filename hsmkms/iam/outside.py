"""Access tokens of outside OpenID Connect issuers (OpenID Connect Discovery 1.0, RFC 7517, RFC 9068).

Only issuers that the operator named are asked, only over TLS or on this host, and only asymmetric algorithms count. A
key that the issuer took back verifies nothing here after the setting `keys_max_age_s`; an issuer is asked at most once
in RETRY_S, also for an unknown `kid` and also when it does not answer.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jwt

from hsmkms.clock import Clock
from hsmkms.domain.identities import LoginMethod
from hsmkms.errors import IssuerUnavailable, SettingsInvalid, Unauthenticated
from hsmkms.iam.bearer import CLOCK_SKEW, Presented, require_in_time
from hsmkms.outbound import is_private, opener

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
RETRY_S: Final = 5.0
_SOCKET_TIMEOUT_S: Final = 3.0
_FETCH_DEADLINE_S: Final = 10.0
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
    """One issuer, its keys in memory. Not asked before its first token comes, and by one thread at a time: whoever
    needs a key that is not there meanwhile is told to try again, and holds up nobody."""

    def __init__(self, settings: IssuerSettings, clock: Clock) -> None:
        """Raises SettingsInvalid for an issuer that would be asked in clear over a network."""
        if not is_private(settings.issuer):
            raise SettingsInvalid(f"The issuer {settings.issuer} must be an https URL: its keys decide who comes in.")
        self.settings = settings
        self._clock = clock
        self._opener = opener(settings.ca_file)
        self._lock = threading.Lock()
        self._fetching = False
        self._asked_at = float("-inf")
        self._fetched_at = float("-inf")
        self._published: object = None
        self._keys: dict[str, jwt.PyJWK] = {}
        self.generation = 0

    @property
    def fresh(self) -> bool:
        """Whether the keys in memory may still be believed."""
        return time.monotonic() < self._fetched_at + self.settings.keys_max_age_s

    def verify(self, token: str) -> tuple[Presented, int]:
        """What the token proves, and the generation of the keys before they were asked. Raises Unauthenticated, or
        IssuerUnavailable when the keys are not known."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise Unauthenticated from error
        key, generation = self._key(header.get("kid"))
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
            require_in_time(claims, self._clock())
            presented = Presented(
                issued_at=datetime.fromtimestamp(claims["iat"], UTC),
                expires_at=datetime.fromtimestamp(claims["exp"], UTC) + CLOCK_SKEW,
                method=LoginMethod.OIDC,
                issuer=self.settings.issuer,
                claims=_texts(claims),
            )
        except (jwt.PyJWTError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise Unauthenticated from error
        return presented, generation

    def _key(self, key_id: object) -> tuple[jwt.PyJWK | None, int]:
        if not isinstance(key_id, str):
            return None, self.generation
        now = time.monotonic()
        with self._lock:
            known = self._keys.get(key_id) if self.fresh else None
            # Half way through their life keys are fetched anew by one caller while the others still use them.
            ageing = now > self._fetched_at + self.settings.keys_max_age_s / 2
            wanted = known is None or ageing
            may_ask = wanted and not self._fetching and now >= self._asked_at + RETRY_S
            if not may_ask:
                if known is None and (self._fetching or not self.fresh):
                    raise IssuerUnavailable(f"The keys of {self.settings.issuer} are not known yet. Try again.")
                return known, self.generation
            self._fetching, self._asked_at = True, now
        try:
            self._fetch()
        except IssuerUnavailable:
            if known is None:
                raise
        finally:
            with self._lock:
                self._fetching = False
        with self._lock:
            return (self._keys.get(key_id) if self.fresh else None), self.generation

    def _fetch(self) -> None:
        """Discovery and key set. What an issuer does not publish any more is forgotten."""
        deadline = time.monotonic() + _FETCH_DEADLINE_S
        place = self.settings.issuer.rstrip("/") + "/.well-known/openid-configuration"
        found = self._get(place, deadline)
        where = found.get("jwks_uri")
        if found.get("issuer") != self.settings.issuer or not isinstance(where, str):
            raise IssuerUnavailable(f"{place} does not describe the issuer {self.settings.issuer}.")
        if not is_private(where):
            raise IssuerUnavailable(f"The issuer {self.settings.issuer} keeps its keys at no https URL.")
        published = self._get(where, deadline).get("keys")
        usable = _usable(published if isinstance(published, list) else [])
        with self._lock:
            if published != self._published:
                # Whoever came in by a key that is no more, or that is another one now, has to come in again.
                self.generation += 1
            self._published, self._keys, self._fetched_at = published, usable, time.monotonic()

    def _get(self, url: str, deadline: float) -> dict[str, Any]:
        try:
            with self._opener.open(url, timeout=_SOCKET_TIMEOUT_S) as answer:
                body = b""
                while chunk := answer.read1(65_536):
                    body += chunk
                    if len(body) > _MAX_ANSWER_BYTES or time.monotonic() > deadline:
                        raise IssuerUnavailable(f"The issuer {self.settings.issuer} answers too much or too slowly.")
            value = json.loads(body)
        except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
            raise IssuerUnavailable(f"The issuer {self.settings.issuer} does not answer. Try again.") from error
        if not isinstance(value, dict):
            raise IssuerUnavailable(f"The issuer {self.settings.issuer} does not answer as it should.")
        return value


def _usable(published: list[Any]) -> dict[str, jwt.PyJWK]:
    """Keys by id. One of a kind that is not known here verifies nothing, and the others are none the worse for it."""
    usable: dict[str, jwt.PyJWK] = {}
    for entry in published:
        if not isinstance(entry, dict) or entry.get("use") == "enc" or not isinstance(entry.get("kid"), str):
            continue
        try:
            key = jwt.PyJWK(entry)
        except (jwt.PyJWTError, TypeError, ValueError, AttributeError):
            continue
        if key.algorithm_name in ALGORITHMS:
            usable[entry["kid"]] = key
    return usable


def _texts(claims: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Claims that are a text or a list of texts; only these can be mapped."""
    texts: dict[str, tuple[str, ...]] = {}
    for name, value in claims.items():
        values = value if isinstance(value, list) else [value]
        texts[name] = tuple(text for text in values[:_MAX_CLAIM_VALUES] if isinstance(text, str))
    return texts
