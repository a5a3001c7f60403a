"""The access token as real clients read it (additions section 6.2)."""

from __future__ import annotations

import base64

import httpx
import jwt

from tests.support.deployment import Service


def test_claims_that_clients_read(shared_service: Service) -> None:
    """Python reads iat and exp without verifying; Terraform crashes without id, account.bss or iss."""
    claims = jwt.decode(shared_service.token(), options={"verify_signature": False})
    assert isinstance(claims["iat"], int)
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["id"] == claims["iam_id"] == claims["sub"]
    assert isinstance(claims["account"]["bss"], str)
    assert isinstance(claims["iss"], str)


def test_third_part_is_base64url(shared_service: Service) -> None:
    signature = shared_service.token().split(".")[2]
    assert len(base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))) == 64


def test_public_keys_verify_it(shared_service: Service) -> None:
    token = shared_service.token()
    keys = jwt.PyJWKSet.from_dict(httpx.get(f"{shared_service.url}/identity/keys").json())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key, algorithms=["ES256"], options={"verify_aud": False})
    assert claims["grant_type"] == "urn:ibm:params:oauth:grant-type:apikey"


def test_refusals_have_iams_shape(shared_service: Service) -> None:
    url = f"{shared_service.url}/identity/token"
    grant = "urn:ibm:params:oauth:grant-type:apikey"
    for form in ({"grant_type": grant, "apikey": "x"}, {"grant_type": "password"}, {"grant_type": grant}, {}):
        answer = httpx.post(url, data=form)
        assert answer.status_code == 400
        assert set(answer.json()) == {"errorCode", "errorMessage", "context"}
    assert httpx.post(url, content=b"\xff\xfe=%zz").status_code == 400
