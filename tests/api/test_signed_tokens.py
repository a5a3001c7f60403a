"""Tokens with a genuine signature of this deployment's own key that must not count all the same: expired, too early,
of another issuer, without a claim, of another use (issue: "missing, expired, forged")."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import httpx
import jwt
import pytest

from tests.api.backstage import sign_tokens
from tests.api.refusals import require_refused
from tests.support.deployment import Service, create_key

ABSENT = object()
SKEW_S = 60
"""How far apart the clocks of two honest hosts may be."""

GOOD: dict[str, dict[str, Any]] = {
    "unchanged": {},
    "expired within the skew": {"exp": -SKEW_S + 30},
    "issued ahead within the skew": {"iat": SKEW_S - 30},
}
BAD: dict[str, dict[str, Any]] = {
    "expired": {"exp": -SKEW_S - 5},
    "expired long ago": {"exp": -86_400, "iat": -90_000},
    "issued in the future": {"iat": SKEW_S + 30},
    "not before tomorrow": {"nbf": 86_400},
    "other issuer": {"iss": "https://elsewhere.example/identity"},
    "issuer with a tail": {"iss": "https://hsmkms/identity/"},
    "no exp": {"exp": ABSENT},
    "no iat": {"iat": ABSENT},
    "no iss": {"iss": ABSENT},
    "no sub": {"sub": ABSENT},
    "no iam_id": {"iam_id": ABSENT},
    "no account": {"account": ABSENT},
    "account is text": {"account": "f" * 32},
    "exp is text": {"exp": "tomorrow"},
    "exp beyond all time": {"exp": 1e300},
    "exp is a list": {"exp": [1]},
    "iat is null": {"iat": None},
    "of nobody": {"iam_id": "iam-ServiceId-4d4ff6f0-0000-4000-8000-000000000000"},
    "iam_id is a list": {"iam_id": ["x"]},
    "of an API key that is not there": {"identifier": "ApiKey-4d4ff6f0-0000-4000-8000-000000000000"},
    "no API key": {"identifier": ABSENT},
    "API key is null": {"identifier": None},
    "no session": {"sid": ABSENT},
    "session is a number": {"sid": 7},
    "a refresh token": {"token_use": "refresh"},
    "use is a list": {"token_use": ["access"]},
    "no use": {"token_use": ABSENT},
    "no fences": {"fences": ABSENT},
    "another fence of the identity": {"fences": [1, 0]},
    "another fence of the API key": {"fences": [0, 1]},
    "other account": {"account": {"valid": True, "bss": "e" * 32}},
}
HEADERS: dict[str, dict[str, Any]] = {
    "alg none": {"alg": "none"},
    "alg HS256": {"alg": "HS256"},
    "alg ES384": {"alg": "ES384"},
    "alg missing": {"alg": ABSENT},
    "kid missing": {"kid": ABSENT},
    "kid of nobody": {"kid": "4d4ff6f0-0000-4000-8000-000000000000"},
    "critical extension": {"crit": ["exp2"], "exp2": 1},
}


def changed(value: dict[str, Any], changes: dict[str, Any], now: int) -> dict[str, Any]:
    """`value` with these members; small numbers of a time claim are seconds from `now`."""
    made = dict(value)
    for name, member in changes.items():
        if member is ABSENT:
            del made[name]
        elif name in ("exp", "iat", "nbf") and isinstance(member, int):
            made[name] = now + member
        else:
            made[name] = member
    return made


@pytest.fixture(scope="module")
def tokens(service: Service) -> dict[str, str]:
    """Every token of the tables, by its name."""
    good, now = service.token(), int(time.time())
    header, claims = jwt.get_unverified_header(good), jwt.decode(good, options={"verify_signature": False})
    parts = {name: (header, changed(claims, changes, now)) for name, changes in {**GOOD, **BAD}.items()}
    parts |= {name: (changed(header, changes, now), claims) for name, changes in HEADERS.items()}
    return dict(zip(parts, sign_tokens(service, list(parts.values())), strict=True))


@pytest.mark.parametrize("name", GOOD)
def test_within_the_skew(client: httpx.Client, tokens: dict[str, str], name: str) -> None:
    assert client.get("/keys", headers={"Authorization": f"Bearer {tokens[name]}"}).status_code == 200


@pytest.mark.parametrize("name", [*BAD, *HEADERS])
def test_refused_twice(client: httpx.Client, tokens: dict[str, str], name: str) -> None:
    """On the cold and on the hot path, and no better the second time, when a verifier might remember it."""
    key = create_key(client)
    headers = {"Authorization": f"Bearer {tokens[name]}"}
    for _ in range(2):
        for method, path in (("GET", "/keys"), ("POST", f"/keys/{key}/actions/wrap"), ("DELETE", f"/keys/{key}")):
            answer = client.request(method, path, headers=headers)
            if name == "critical extension":
                require_refused(answer, 400, "BEARER_SUB_EXTRACTION_ERR")
            else:
                require_refused(answer, 401, None)
        assert client.head("/keys", headers=headers).status_code in (400, 401)
    assert client.get(f"/keys/{key}").json()["resources"][0]["state"] == 1


def test_every_character_of_the_token_counts(service: Service, client: httpx.Client, tokens: dict[str, str]) -> None:
    """A token that was accepted before is not accepted with any one character changed."""
    good = tokens["unchanged"]
    # The last character of a segment has bits that no byte stands on; RFC 7515 base64url ignores them.
    spare = {place - 1 for place, character in enumerate(good + ".") if character == "."}
    for place, character in enumerate(good):
        if character == "." or place in spare:
            continue
        forged = good[:place] + ("A" if character != "A" else "B") + good[place + 1 :]
        answer = client.get("/keys", headers={"Authorization": f"Bearer {forged}"})
        assert answer.status_code in (400, 401), place


def test_missing_token(client: httpx.Client) -> None:
    for header in ({}, {"Authorization": ""}):
        bare = {"Bluemix-Instance": client.headers["Bluemix-Instance"], **header}
        for method, path in (("GET", "keys"), ("POST", "keys"), ("POST", "keys/x/actions/wrap"), ("POST", "keys/x")):
            require_refused(httpx.request(method, f"{client.base_url}{path}", headers=bare), 401, None)


def test_refusal_does_not_quote_the_token(service: Service, client: httpx.Client, tokens: dict[str, str]) -> None:
    """Neither the answer nor the log."""
    signature = tokens["expired"].rpartition(".")[2]
    answer = client.get("/keys", headers={"Authorization": f"Bearer {tokens['expired']}"})
    assert signature not in answer.text
    log = service.log.read_text()
    assert all(token.rpartition(".")[2] not in log for token in tokens.values())


def test_segments_that_are_not_objects(service: Service, client: httpx.Client) -> None:
    def segment(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    values: tuple[object, ...] = (None, 7, [], "text", {})
    for value in values:
        forged = f"{segment(value)}.{segment(value)}.AAAA"
        assert client.get("/keys", headers={"Authorization": f"Bearer {forged}"}).status_code in (400, 401)
