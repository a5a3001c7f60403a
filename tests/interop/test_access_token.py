"""The access token as real clients read it (additions section 6.2).

Terraform's provider parses it with a key of the wrong type and goes on after the error "key is of invalid type". No Go
runs here, but what decides is in the token: a signed one (not `none`), and the claims below, which it takes unchecked.
"""

from __future__ import annotations

import base64
import json
import re

import httpx
import jwt
import pytest
from ibm_cloud_sdk_core.token_managers.iam_token_manager import IAMTokenManager

from tests.support.deployment import Service

GRANT = "urn:ibm:params:oauth:grant-type:apikey"
ENDPOINTS = ("/identity/token", "/oidc/token")


def test_claims_that_clients_read(shared_service: Service) -> None:
    """Python reads iat and exp without verifying; Terraform crashes without id, account.bss or iss."""
    claims = jwt.decode(shared_service.token(), options={"verify_signature": False})
    assert type(claims["iat"]) is int
    assert type(claims["exp"]) is int
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["id"] == claims["iam_id"] == claims["sub"]
    for text in (claims["id"], claims["account"]["bss"], claims["iss"]):
        assert isinstance(text, str)
        assert text
    # Terraform casts it to text without a look when it is there.
    assert isinstance(claims.get("email", ""), str)


def test_three_parts_of_base64url(shared_service: Service) -> None:
    """PyJWT decodes the signature before it decides not to check it (additions section 0, row 8); no padding."""
    parts = shared_service.token().split(".")
    assert len(parts) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", part) for part in parts)
    assert len(base64.urlsafe_b64decode(parts[2] + "==")) == 64


def test_public_keys_verify_it(shared_service: Service) -> None:
    token = shared_service.token()
    header = jwt.get_unverified_header(token)
    assert (header["alg"], header["typ"]) == ("ES256", "JWT")
    claims = jwt.decode(token, _public_key(shared_service, token), algorithms=["ES256"])
    assert claims["grant_type"] == GRANT


def test_public_keys_do_not_verify_another(shared_service: Service) -> None:
    """A claim was changed, the signature kept."""
    token = shared_service.token()
    head, _, signature = token.split(".")
    claims = jwt.decode(token, options={"verify_signature": False}) | {"sub": "somebody else"}
    forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(f"{head}.{forged}.{signature}", _public_key(shared_service, token), algorithms=["ES256"])


def test_public_keys_are_public_only(shared_service: Service) -> None:
    """RFC 7517: no member that belongs to a private key."""
    for key in httpx.get(f"{shared_service.url}/identity/keys").json()["keys"]:
        assert set(key) == {"kty", "crv", "x", "y", "kid", "use", "alg"}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_answer_of_both_endpoints(shared_service: Service, endpoint: str) -> None:
    """Go reads token_type as the scheme and expires_in as an integer; the token opens the API."""
    form = {"grant_type": GRANT, "apikey": shared_service.state.api_key, "response_type": "cloud_iam"}
    answer = httpx.post(shared_service.url + endpoint, data=form)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["token_type"], body["expires_in"]) == ("Bearer", 3600)
    claims = jwt.decode(body["access_token"], options={"verify_signature": False})
    assert body["expiration"] == claims["exp"]
    headers = {
        "Authorization": f"{body['token_type']} {body['access_token']}",
        "Bluemix-Instance": shared_service.state.instance_id,
    }
    assert httpx.get(f"{shared_service.url}/api/v2/keys", headers=headers).status_code == 200


def test_python_core_takes_it(shared_service: Service) -> None:
    """IBM's own token manager reads the token's times and keeps it: a second call does not fetch another."""
    manager = IAMTokenManager(shared_service.state.api_key, url=shared_service.url)
    token = manager.get_token()
    claims = jwt.decode(token, options={"verify_signature": False})
    assert manager.expire_time == claims["exp"]
    assert manager.get_token() == token


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_refusals_have_iams_shape(shared_service: Service, endpoint: str) -> None:
    url = shared_service.url + endpoint
    for form in ({"grant_type": GRANT, "apikey": "x"}, {"grant_type": "password"}, {"grant_type": GRANT}, {}):
        answer = httpx.post(url, data=form)
        assert answer.status_code == 400
        assert set(answer.json()) == {"errorCode", "errorMessage", "context"}
    assert httpx.post(url, content=b"\xff\xfe=%zz").status_code == 400


def _public_key(service: Service, token: str) -> jwt.PyJWK:
    keys = jwt.PyJWKSet.from_dict(httpx.get(f"{service.url}/identity/keys").json())
    return keys[jwt.get_unverified_header(token)["kid"]]
