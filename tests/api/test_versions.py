"""GET /keys/{id}/versions, and what an expired key still may do (contract sections 1.1 and 3, additions section 4)."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.api.refusals import require_refused
from tests.support.deployment import create_key


@pytest.fixture(scope="module")
def rotated(client: httpx.Client) -> tuple[str, list[str]]:
    """A key with two versions, and their ids, newest first."""
    key = create_key(client, aliases=["versioned"])
    first = client.get(f"/keys/{key}").json()["resources"][0]["keyVersion"]["id"]
    assert client.post(f"/keys/{key}/actions/rotate").status_code == 204
    second = client.get(f"/keys/{key}").json()["resources"][0]["keyVersion"]["id"]
    return key, [second, first]


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", slice(0, 2)),
        ("limit=1", slice(0, 1)),
        ("limit=1&offset=1", slice(1, 2)),
        ("offset=2", slice(2, 2)),
        ("offset=2147483647", slice(2, 2)),
        ("limit=0&offset=0", slice(0, 2)),
        ("limit=5000", slice(0, 2)),
        ("allKeyStates=true", slice(0, 2)),
    ],
)
def test_pages(client: httpx.Client, rotated: tuple[str, list[str]], query: str, wanted: slice) -> None:
    key, versions = rotated
    for reference in (key, "versioned"):
        body = client.get(f"/keys/{reference}/versions?{query}").json()
        assert [version["id"] for version in body["resources"]] == versions[wanted]
        assert body["metadata"] == {
            "collectionType": "application/vnd.ibm.kms.key.version+json",
            "collectionTotal": len(versions[wanted]),
        }
        counted = client.get(f"/keys/{reference}/versions?{query}&totalCount=true").json()
        assert counted["metadata"]["totalCount"] == 2


@pytest.mark.parametrize(
    ("query", "target"),
    [("limit=5001", "limit"), ("limit=-1", "limit"), ("offset=x", "offset"), ("offset=2147483648", "offset")],
)
def test_bad_pages(client: httpx.Client, rotated: tuple[str, list[str]], query: str, target: str) -> None:
    answer = client.get(f"/keys/{rotated[0]}/versions?{query}")
    require_refused(answer, 400, "INVALID_QUERY_PARAM_ERR", target)


@pytest.mark.parametrize("name", ["totalCount", "allKeyStates"])
def test_bad_switches(client: httpx.Client, rotated: tuple[str, list[str]], name: str) -> None:
    answer = client.get(f"/keys/{rotated[0]}/versions?{name}=perhaps")
    assert answer.status_code == 400
    assert answer.json()["resources"][0]["reasons"][0]["target"] == {"type": "query_param", "name": name}


def test_standard_key_has_none(client: httpx.Client) -> None:
    body = client.get(f"/keys/{create_key(client, extractable=True)}/versions").json()
    assert body["resources"] == []


def test_deleted_and_unknown_keys(client: httpx.Client) -> None:
    key = create_key(client)
    assert client.delete(f"/keys/{key}").status_code == 204
    require_refused(client.get(f"/keys/{key}/versions"), 409, "KEY_ACTION_INVALID_STATE_ERR")
    assert len(client.get(f"/keys/{key}/versions?allKeyStates=true").json()["resources"]) == 1
    require_refused(client.get("/keys/nobody-at-all/versions"), 404, "KEY_NOT_FOUND_ERR")


def test_expired_key_opens_and_no_longer_wraps(client: httpx.Client) -> None:
    """State 3 from the very moment of its date: unwrap, rewrap, rotate and delete are what is left."""
    expires_at = datetime.now(UTC) + timedelta(seconds=2)
    key = create_key(client, "expires", expirationDate=expires_at.isoformat())
    wrapped = client.post(f"/keys/{key}/actions/wrap").json()
    while (answer := client.post(f"/keys/{key}/actions/wrap")).status_code == 200:
        assert datetime.now(UTC) < expires_at + timedelta(seconds=1)
        time.sleep(0.05)
    require_refused(answer, 409, "KEY_ACTION_INVALID_STATE_ERR")
    assert datetime.now(UTC) >= expires_at
    body: dict[str, Any] = {"ciphertext": wrapped["ciphertext"]}
    assert client.get(f"/keys/{key}").json()["resources"][0]["state"] == 3
    assert client.post(f"/keys/{key}/actions/unwrap", json=body).json()["plaintext"] == wrapped["plaintext"]
    require_refused(client.get(f"/keys/{key}/versions"), 409, "KEY_ACTION_INVALID_STATE_ERR")
    assert client.post(f"/keys/{key}/actions/rotate").status_code == 204
    rewrapped = client.post(f"/keys/{key}/actions/rewrap", json=body).json()
    assert rewrapped["rewrappedKeyVersion"]["id"] != rewrapped["keyVersion"]["id"]
    assert client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": rewrapped["ciphertext"]}).status_code == 200
    assert client.get(f"/keys/{key}").json()["resources"][0]["state"] == 3
    assert client.delete(f"/keys/{key}").status_code == 204
    require_refused(client.post(f"/keys/{key}/actions/unwrap", json=body), 410, "KEY_DELETED_ERR")
