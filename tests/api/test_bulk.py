"""Bulk wrap and unwrap: each item has an outcome of its own, and the whole one event."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from typing import Any

import httpx
import pytest

from tests.api.test_audit_events import call, records
from tests.support.deployment import Service, create_key


@pytest.fixture(scope="module")
def key(client: httpx.Client) -> str:
    return create_key(client)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def bulk(client: httpx.Client, key: str, action: str, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    answer = client.post(f"/keys/{key}/actions/{action}", json={"items": items})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/vnd.ibm.kms.key_action+json"
    found: list[dict[str, Any]] = answer.json()["items"]
    assert len(found) == len(items)
    return found


def code(item: dict[str, Any]) -> str:
    (reason,) = item["reasons"]
    assert item["errorMsg"].endswith(f"({reason['code']})")
    return f"{reason['status']} {reason['code']}"


def test_a_thousand_there_and_back(client: httpx.Client, key: str) -> None:
    """All lengths that a DEK may have are among them; single and bulk understand each other."""
    deks = [os.urandom(1 + 4095 * number // 999) for number in range(1000)]
    aads = [[f"volume-{number}"] * (number % 3) for number in range(1000)]
    wrapped = bulk(
        client, key, "bulk_wrap", [{"plaintext": text(d), "aad": a} for d, a in zip(deks, aads, strict=True)]
    )
    offers = [{"ciphertext": w["ciphertext"], "aad": a} for w, a in zip(wrapped, aads, strict=True)]
    opened = bulk(client, key, "bulk_unwrap", offers)
    assert [base64.b64decode(item["plaintext"]) for item in opened] == deks
    assert {item["keyVersion"]["id"] for item in opened} == {wrapped[0]["keyVersion"]["id"]}
    assert client.post(f"/keys/{key}/actions/unwrap", json=offers[7]).json()["plaintext"] == text(deks[7])


def test_generated_ones_are_given_once_and_differ(client: httpx.Client, key: str) -> None:
    made = bulk(client, key, "bulk_wrap", [{}, {"aad": ["a"]}, {"plaintext": None}])
    assert len({item["plaintext"] for item in made}) == 3
    opened = bulk(client, key, "bulk_unwrap", [{"ciphertext": made[1]["ciphertext"], "aad": ["a"]}])
    assert opened[0] == {"plaintext": made[1]["plaintext"], "keyVersion": made[1]["keyVersion"]}


def test_bad_items_fail_alone(client: httpx.Client, key: str) -> None:
    """The same refusals as of single calls, in their places."""
    good = text(bytes(32))
    wrapped = bulk(
        client,
        key,
        "bulk_wrap",
        [
            {"plaintext": good},
            {"plaintext": "!"},
            {"plaintext": ""},
            {"plaintext": text(bytes(4097))},
            {"aad": ["a" * 256]},
        ],
    )
    assert [code(item) for item in wrapped[1:]] == ["400 INVALID_FIELD_ERR"] * 4
    sealed = wrapped[0]["ciphertext"]
    opened = bulk(
        client,
        key,
        "bulk_unwrap",
        [{"ciphertext": "AAAA"}, {"ciphertext": sealed, "aad": ["b"]}, {"ciphertext": "!"}, {"ciphertext": sealed}],
    )
    assert [code(item) for item in opened[:3]] == [
        "422 UNPROCESSABLE_CIPHERTEXT_ERR",
        "422 UNPROCESSABLE_CIPHERTEXT_ERR",
        "400 INVALID_FIELD_ERR",
    ]
    assert opened[3]["plaintext"] == good


def test_what_an_older_version_made_comes_sealed_anew(client: httpx.Client) -> None:
    key = create_key(client)
    (old,) = bulk(client, key, "bulk_wrap", [{"plaintext": text(bytes(16))}])
    assert client.post(f"/keys/{key}/actions/rotate").status_code == 204
    (opened,) = bulk(client, key, "bulk_unwrap", [{"ciphertext": old["ciphertext"]}])
    assert opened["keyVersion"] == old["keyVersion"] != opened["rewrappedKeyVersion"]
    (again,) = bulk(client, key, "bulk_unwrap", [{"ciphertext": opened["ciphertext"]}])
    assert again == {"plaintext": text(bytes(16)), "keyVersion": opened["rewrappedKeyVersion"]}


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ('{"items":[]}', "INVALID_FIELD_ERR"),
        (json.dumps({"items": [{}] * 1001}), "INVALID_FIELD_ERR"),
        ("", "NO_BODY_ERR"),
        ("{}", "BAD_BODY_ERR"),
        ('{"items":[{"plaintext":1}]}', "BAD_BODY_ERR"),
        ('{"items":[{"other":1}]}', "BAD_BODY_ERR"),
        ('{"items":{}}', "BAD_BODY_ERR"),
    ],
)
def test_a_body_that_is_no_bulk_is_refused_whole(client: httpx.Client, key: str, body: str, wanted: str) -> None:
    answer = client.post(f"/keys/{key}/actions/bulk_wrap", content=body)
    assert (answer.status_code, answer.json()["resources"][0]["reasons"][0]["code"]) == (400, wanted)


def test_members_match_without_case(client: httpx.Client, key: str) -> None:
    answer = client.post(f"/keys/{key}/actions/bulk_wrap", json={"Items": [{"Plaintext": text(bytes(8))}]})
    assert answer.status_code == 200


def test_a_key_that_may_not_is_refused_whole(client: httpx.Client) -> None:
    key = create_key(client)
    made = bulk(client, key, "bulk_wrap", [{}])
    assert client.post(f"/keys/{key}/actions/disable").status_code == 204
    for action, item in (("bulk_wrap", {}), ("bulk_unwrap", {"ciphertext": made[0]["ciphertext"]})):
        answer = client.post(f"/keys/{key}/actions/{action}", json={"items": [item]})
        assert answer.status_code == 409


def test_one_event_with_count_and_digest(service: Service, client: httpx.Client, key: str) -> None:
    """The digest is over the ciphertexts, so that who holds them can tell that an event is theirs."""
    answer, correlation_id = call(
        client, "POST", f"/keys/{key}/actions/bulk_wrap", json={"items": [{}, {"plaintext": "!"}, {}]}
    )
    (event,) = records(service, correlation_id)
    made = "".join(item.get("ciphertext", "") + "\n" for item in answer.json()["items"])
    said = event["responseData"]
    assert (event["action"], said["totalResources"], said["failedResources"]) == ("kms.secrets.wrap", 3, 1)
    assert said["resourcesDigest"] == hashlib.sha256(made.encode()).hexdigest()
    assert "plaintext" not in json.dumps(event)
