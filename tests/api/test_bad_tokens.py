"""Nobody gets in with a token that this service did not sign for now."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.deployment import Service

Forge = Callable[[dict[str, Any], dict[str, Any], str], str]


def _segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def alg_none(header: dict[str, Any], claims: dict[str, Any], _: str) -> str:
    return f"{_segment({**header, 'alg': 'none'})}.{_segment(claims)}."


def hs256_with_the_public_key(header: dict[str, Any], claims: dict[str, Any], jwks: str) -> str:
    signed = f"{_segment({**header, 'alg': 'HS256'})}.{_segment(claims)}"
    mac = hmac.new(jwks.encode(), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def other_key_with_our_kid(header: dict[str, Any], claims: dict[str, Any], _: str) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    return jwt.encode(claims, key, "ES256", {"kid": header["kid"]})


def unknown_kid(_: dict[str, Any], claims: dict[str, Any], __: str) -> str:
    return jwt.encode(claims, ec.generate_private_key(ec.SECP256R1()), "ES256", {"kid": "nobody"})


def other_issuer(header: dict[str, Any], claims: dict[str, Any], jwks: str) -> str:
    return other_key_with_our_kid(header, {**claims, "iss": "https://elsewhere.example"}, jwks)


def embedded_key(_: dict[str, Any], claims: dict[str, Any], __: str) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    return jwt.encode(claims, key, "ES256", {"kid": public["x"], "jwk": public})


def pointed_at_key(header: dict[str, Any], claims: dict[str, Any], _: str) -> str:
    """Nobody is asked for the key: no such server is there, and the answer comes all the same."""
    key = ec.generate_private_key(ec.SECP256R1())
    places = {"x5u": "http://127.0.0.1:9/chain.pem", "jku": "http://127.0.0.1:9/keys"}
    return jwt.encode(claims, key, "ES256", {"kid": header["kid"], **places})


@pytest.mark.parametrize(
    "forge",
    [
        alg_none,
        hs256_with_the_public_key,
        other_key_with_our_kid,
        unknown_kid,
        other_issuer,
        embedded_key,
        pointed_at_key,
    ],
)
def test_forged(service: Service, client: httpx.Client, forge: Forge) -> None:
    good = service.token()
    claims = jwt.decode(good, options={"verify_signature": False})
    jwks = httpx.get(f"{service.url}/identity/keys").text
    forged = forge(jwt.get_unverified_header(good), claims, jwks)
    for method, path in (("GET", "/keys"), ("POST", "/keys/x/actions/wrap")):
        answer = client.request(method, path, headers={"Authorization": f"Bearer {forged}"})
        assert answer.status_code == 401
        assert "reasons" not in answer.json()["resources"][0]
        assert "WWW-Authenticate" in answer.headers


def test_changed_claims(service: Service, client: httpx.Client) -> None:
    head, body, signature = service.token().split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    forged = f"{head}.{_segment({**claims, 'exp': claims['exp'] + 86_400})}.{signature}"
    assert client.get("/keys", headers={"Authorization": f"Bearer {forged}"}).status_code == 401


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("", 401),
        ("Bearer", 400),
        ("Basic Yng6Yng=", 400),
        ("Bearer x", 400),
        ("Bearer a.b.c", 400),
        ("Bearer ..", 400),
        ("Bearer " + "a" * 10_000, 400),
    ],
)
def test_unreadable(client: httpx.Client, header: str, status: int) -> None:
    for method, path in (("GET", "/keys"), ("POST", "/keys/x/actions/wrap")):
        answer = client.request(method, path, headers={"Authorization": header})
        assert answer.status_code == status
        if status == 400:
            assert answer.json()["resources"][0]["reasons"][0]["code"] == "BEARER_SUB_EXTRACTION_ERR"


def test_one_megabyte_token(service: Service, client: httpx.Client) -> None:
    """The server may refuse the header itself; it goes on either way."""
    try:
        answer = client.get("/keys", headers={"Authorization": "Bearer " + "a" * 1_000_000})
    except httpx.TransportError:
        pass
    else:
        assert answer.status_code in (400, 401, 431)
    assert httpx.get(f"{service.url}/healthz").status_code == 200


def test_authentication_comes_before_the_body(client: httpx.Client) -> None:
    answer = client.post("/keys/x/actions/wrap", content=b"{", headers={"Authorization": ""})
    assert answer.status_code == 401


def test_token_lives_for_an_hour(service: Service) -> None:
    claims = jwt.decode(service.token(), options={"verify_signature": False})
    assert abs(claims["iat"] - time.time()) < 60
    assert claims["exp"] - claims["iat"] == 3_600
