"""One event per request, refusals too, with the contract's members (contract section 7, additions section 9)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from hsmkms.service.trail import changes
from tests.api.test_route_matrix import guarded_calls
from tests.support.deployment import Service, create_body


@pytest.fixture(scope="module")
def audited(services: Callable[[str], Service]) -> Service:
    """A service whose logs are read; the database makes no difference to them."""
    return services("sqlite")


@pytest.fixture(scope="module")
def administrator(audited: Service) -> Iterator[httpx.Client]:
    """Its administrator."""
    with audited.client() as client:
        yield client


def records(service: Service, correlation_id: str) -> list[dict[str, Any]]:
    """The events of a call, in their order."""
    lines = [
        line
        for path in sorted((service.state.path / "audit").glob("*.jsonl"))
        for line in path.read_bytes().splitlines()
        if correlation_id.encode() in line
    ]
    return [json.loads(line)["event"] for line in lines]


def call(client: httpx.Client, method: str, path: str, **parts: Any) -> tuple[httpx.Response, str]:
    """A call under a correlation id of its own."""
    correlation_id = str(uuid.uuid4())
    return client.request(method, path, headers={"Correlation-Id": correlation_id}, **parts), correlation_id


def test_every_call_without_a_token_is_recorded_once(audited: Service) -> None:
    """Each route there is, both spellings of actions: one event, which says 401."""
    with httpx.Client(base_url=audited.url, timeout=60) as nobody:
        for method, path, action in guarded_calls():
            answer, correlation_id = call(nobody, method, path.replace("{", "").replace("}", "").replace(":path", ""))
            assert answer.status_code == 401, (method, path)
            (event,) = records(audited, correlation_id)
            assert (event["action"], event["outcome"], event["severity"]) == (action.value, "failure", "critical")
            assert (event["reason"]["reasonCode"], event["initiator"]["id"]) == (401, "unknown")
            assert event["initiator"]["host"]["address"] == "127.0.0.1"


def test_what_changes_something_says_so_first(audited: Service, administrator: httpx.Client) -> None:
    """The life of a key: an intent before each change, then its outcome, with the members that the contract names."""
    created, correlation_id = call(administrator, "POST", "/keys", json=create_body("audited"))
    key = created.json()["resources"][0]
    intent, outcome = records(audited, correlation_id)
    assert (intent["outcome"], outcome["outcome"], outcome["intent"]) == ("pending", "success", intent["id"])
    assert outcome["target"] == {"id": key["crn"], "name": key["id"], "typeURI": "kms/secrets"}
    assert outcome["initiator"]["id"] == key["createdBy"]
    assert outcome["requestData"] == {
        "requestURI": "/api/v2/keys",
        "instanceID": audited.state.instance_id,
        "keyType": "root",
    }
    said = outcome["responseData"]
    assert (said["keyId"], said["keyState"], said["keyRingId"]) == (key["id"], 1, "default")
    assert said["keyVersionId"] == key["keyVersion"]["id"]

    wrapped, correlation_id = call(administrator, "POST", f"/keys/{key['id']}/actions/wrap")
    (event,) = records(audited, correlation_id)
    assert (event["action"], event["responseData"]["keyVersionId"]) == ("kms.secrets.wrap", key["keyVersion"]["id"])

    _, correlation_id = call(administrator, "POST", f"/keys/{key['id']}/actions/rotate")
    intent, outcome = records(audited, correlation_id)
    assert (outcome["action"], outcome["severity"]) == ("kms.secrets.rotate", "warning")

    body = {"ciphertext": wrapped.json()["ciphertext"]}
    rewrapped, correlation_id = call(administrator, "POST", f"/keys/{key['id']}/actions/rewrap", json=body)
    (event,) = records(audited, correlation_id)
    assert event["responseData"]["keyVersionId"] == key["keyVersion"]["id"]
    assert event["responseData"]["rewrappedKeyVersionId"] == rewrapped.json()["rewrappedKeyVersion"]["id"]

    _, correlation_id = call(administrator, "POST", f"/keys/{key['id']}/actions/unwrap", json={"ciphertext": "AAAA"})
    (event,) = records(audited, correlation_id)
    assert (event["outcome"], event["responseData"]) == ("failure", {})

    _, correlation_id = call(administrator, "DELETE", f"/keys/{key['id']}")
    intent, outcome = records(audited, correlation_id)
    assert (outcome["severity"], outcome["responseData"]["keyState"]) == ("critical", 5)

    refused, correlation_id = call(administrator, "POST", f"/keys/{key['id']}/actions/disable")
    assert refused.status_code >= 400
    intent, outcome = records(audited, correlation_id)
    assert (outcome["outcome"], outcome["reason"]["reasonCode"]) == ("failure", refused.status_code)


def test_lists_say_how_many_and_never_what(audited: Service, administrator: httpx.Client) -> None:
    listed, correlation_id = call(administrator, "GET", "/keys?limit=1&search=audited")
    (event,) = records(audited, correlation_id)
    assert event["responseData"]["totalResources"] == listed.json()["metadata"]["collectionTotal"]
    assert event["requestData"]["requestURI"] == "/api/v2/keys"


def test_import_tokens_say_how_often(audited: Service, administrator: httpx.Client) -> None:
    made, correlation_id = call(administrator, "POST", "/import_token", json={"maxAllowedRetrievals": 2})
    assert made.status_code == 200
    assert records(audited, correlation_id)[-1]["responseData"]["remainingRetrievals"] == 2
    got, correlation_id = call(administrator, "GET", "/import_token")
    (event,) = records(audited, correlation_id)
    assert (event["responseData"]["maxAllowedRetrievals"], event["responseData"]["remainingRetrievals"]) == (2, 1)
    assert got.json()["nonce"] not in json.dumps(event)


def test_log_ins_say_who(audited: Service) -> None:
    """Good and bad; neither the API key nor the token is there."""
    form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey"}
    with httpx.Client(base_url=audited.url, timeout=60) as client:
        good, good_id = call(client, "POST", "/identity/token", data={**form, "apikey": audited.state.api_key})
        bad, bad_id = call(client, "POST", "/identity/token", data={**form, "apikey": "x" + audited.state.api_key})
    assert (good.status_code, bad.status_code) == (200, 400)
    ((said,), (refused,)) = records(audited, good_id), records(audited, bad_id)
    assert said["initiator"]["id"].startswith("iam-ServiceId-")
    assert (said["outcome"], refused["outcome"], refused["initiator"]["id"]) == ("success", "failure", "unknown")


def test_health_is_not_recorded(audited: Service) -> None:
    with httpx.Client(base_url=audited.url) as client:
        for path in ("/healthz", "/readyz", "/version", "/identity/keys"):
            _, correlation_id = call(client, "GET", path)
            assert records(audited, correlation_id) == []


@pytest.mark.parametrize(
    ("action", "changing"),
    [("kms.secrets.wrap", False), ("kms.secrets.list", False), ("kms.secrets.purge", True), ("iam.policy.write", True)],
)
def test_intents(action: str, changing: bool) -> None:
    assert changes(action) is changing
