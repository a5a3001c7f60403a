"""What the operator's two settings permit, on a token that does OAEP inside with SHA-1 only."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import Any

import httpx

from hsmkms.domain.importing import Oaep
from tests.api.refusals import require_refused
from tests.support.bringing import Fetched
from tests.support.deployment import Service, State, create_body
from tests.token.test_objects import described

Run = Callable[..., Service]


def fetch(client: httpx.Client) -> Fetched:
    assert client.post("/import_token").status_code == 200
    return Fetched.of(client.get("/import_token").json())


def bring(client: httpx.Client, fields: dict[str, Any]) -> httpx.Response:
    return client.post("/keys", json=create_body("brought", **fields))


def test_inside_or_not_at_all(state: State, run_service: Run) -> None:
    """The transport key may not even decrypt; SHA-1 comes in and SHA-256 does not."""
    service = run_service(state, HSMKMS_IMPORT_BY_PROCESS="false", HSMKMS_IMPORT_OAEP_SHA1="true")
    with service.client() as client:
        fetched = fetch(client)
        refused = bring(client, fetched.fields(os.urandom(32), Oaep.SHA_256))
        require_refused(refused, 403, "FEATURE_RESTRICTED_ERR")
        made = bring(client, fetched.fields(os.urandom(32), Oaep.SHA_1)).json()["resources"][0]
        assert made["importedBy"] == "token"
        token_id = client.post("/import_token").json()["id"]
    assert described(state, "privkey", token_id)["usage"] == {"unwrap"}


def test_no_way_under_an_import_token(state: State, run_service: Run) -> None:
    """No pair is made that no key could come by; a key in clear is a matter of the instance's policy."""
    with run_service(state, HSMKMS_IMPORT_BY_PROCESS="false").client() as client:
        require_refused(client.post("/import_token"), 403, "FEATURE_RESTRICTED_ERR")
        made = bring(client, {"payload": base64.b64encode(os.urandom(32)).decode()}).json()["resources"][0]
        assert made["importedBy"] == "process"


def test_the_way_is_told_of_the_newest_version(state: State, run_service: Run) -> None:
    with run_service(state, HSMKMS_IMPORT_OAEP_SHA1="true").client() as client:
        fetched = fetch(client)
        made = bring(client, fetched.fields(os.urandom(32), Oaep.SHA_256)).json()["resources"][0]
        assert made["importedBy"] == "process"
        rotated = client.post(f"/keys/{made['id']}/actions/rotate", json=fetched.fields(os.urandom(24), Oaep.SHA_1))
        assert rotated.status_code == 204
        assert client.get(f"/keys/{made['id']}/metadata").json()["resources"][0]["importedBy"] == "token"
