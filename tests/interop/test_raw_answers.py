"""What official clients need to find in an answer (contract section 0 traps 1 and 5 to 8, additions section 1)."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.support.deployment import Service, create_body, create_key
from tests.support.iam import Iam, key_client

DEK = base64.b64encode(b"0123456789abcdef").decode()
KEY = "application/vnd.ibm.kms.key+json"
ACTION = "application/vnd.ibm.kms.key_action+json"
VERSION = "application/vnd.ibm.kms.key.version+json"
RING = "application/vnd.ibm.kms.key_ring+json"
ERROR = "application/vnd.ibm.kms.error+json"
FIRST, SECOND = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"

Call = Callable[[httpx.Client], httpx.Response]


@pytest.fixture(scope="module")
def client(shared_service: Service) -> Iterator[httpx.Client]:
    """In an instance of its own, with a root key that has the alias `standing`, for calls that leave it as it is."""
    with Iam(shared_service) as iam:
        instance_id = iam.instance()
    with key_client(shared_service, shared_service.token(), instance_id) as client:
        create_key(client, aliases=["standing"])
        yield client


def _plain(method: str, path: str, **request: Any) -> Call:
    return lambda client: client.request(method, path, **request)


def _on_new_key(method: str, path: str = "", **request: Any) -> Call:
    return lambda client: client.request(method, f"/keys/{create_key(client)}{path}", **request)


def _on_deleted_key(method: str, path: str = "", **request: Any) -> Call:
    def call(client: httpx.Client) -> httpx.Response:
        key = create_key(client)
        assert client.delete(f"/keys/{key}").status_code == 204
        return client.request(method, f"/keys/{key}{path}", **request)

    return call


def _on_ciphertext(path: str, aad: list[str] | None = None) -> Call:
    """An action on what was wrapped without AAD."""

    def call(client: httpx.Client) -> httpx.Response:
        wrapped = client.post("/keys/standing/actions/wrap").json()
        return client.post(f"/keys/standing{path}", json={"ciphertext": wrapped["ciphertext"], "aad": aad})

    return call


def _rotated_twice(client: httpx.Client) -> httpx.Response:
    key = create_key(client)
    assert client.post(f"/keys/{key}/actions/rotate").status_code == 204
    return client.post(f"/keys/{key}/actions/rotate")


def _ring_made(client: httpx.Client) -> httpx.Response:
    ring = f"/key_rings/{uuid.uuid4()}"
    made = client.post(ring)
    assert client.delete(ring).status_code == 204
    return made


def _ring_deleted(client: httpx.Client) -> httpx.Response:
    ring = f"/key_rings/{uuid.uuid4()}"
    assert client.post(ring).status_code == 201
    return client.delete(ring)


STANDING = "/keys/standing"
WITH_CONTENT: dict[str, tuple[Call, int, str]] = {
    "create": (_plain("POST", "/keys", json=create_body()), 201, KEY),
    "list": (_plain("GET", "/keys?limit=3"), 200, KEY),
    "get": (_plain("GET", STANDING), 200, KEY),
    "metadata": (_plain("GET", f"{STANDING}/metadata"), 200, KEY),
    "patch": (_plain("PATCH", STANDING, json={"keyRingID": "default"}), 200, KEY),
    "delete": (_on_new_key("DELETE", headers={"Prefer": "return=representation"}), 200, KEY),
    "versions": (_plain("GET", f"{STANDING}/versions"), 200, VERSION),
    "rings": (_plain("GET", "/key_rings"), 200, RING),
    "wrap": (_plain("POST", f"{STANDING}/actions/wrap"), 200, ACTION),
    "unwrap": (_on_ciphertext("/actions/unwrap"), 200, ACTION),
    "rewrap": (_on_ciphertext("/actions/rewrap"), 200, ACTION),
    "older wrap": (_plain("POST", f"{STANDING}?action=wrap"), 200, ACTION),
    "older unwrap": (_on_ciphertext("?action=unwrap"), 200, ACTION),
    "older rewrap": (_on_ciphertext("?action=rewrap"), 200, ACTION),
}
WITHOUT_CONTENT: dict[str, tuple[Call, int]] = {
    "count": (_plain("HEAD", "/keys"), 200),
    "new ring": (_ring_made, 201),
    "end of ring": (_ring_deleted, 204),
    "rotate": (_on_new_key("POST", "/actions/rotate", headers={"Prefer": "return=representation"}), 204),
    "older rotate": (_on_new_key("POST", "?action=rotate"), 204),
    "delete": (_on_new_key("DELETE"), 204),
    "delete minimal": (_on_new_key("DELETE", headers={"Prefer": "return=minimal"}), 204),
}
REFUSED: dict[str, tuple[Call, int]] = {
    "no JSON": (_plain("POST", "/keys", content=b"{"), 400),
    "no JSON to wrap": (_plain("POST", f"{STANDING}/actions/wrap", content=b"{"), 400),
    "bad query": (_plain("GET", "/keys?limit=x"), 400),
    "no such action": (_plain("POST", f"{STANDING}?action=dance"), 400),
    "import": (_plain("POST", "/keys", json=create_body(payload=DEK, encryptedNonce=DEK, iv=DEK)), 409),
    "no key": (_plain("GET", "/keys/nobody"), 404),
    "no key to wrap": (_plain("POST", "/keys/nobody/actions/wrap"), 404),
    "no ring": (_plain("PATCH", STANDING, json={"keyRingID": "no-such-ring"}), 404),
    "reserved ring": (_plain("DELETE", "/key_rings/default"), 400),
    "rotated twice": (_rotated_twice, 409),
    "deleted": (_on_deleted_key("DELETE"), 410),
    "deleted to wrap": (_on_deleted_key("POST", "/actions/wrap"), 410),
    "other AAD": (_on_ciphertext("/actions/unwrap", ["x"]), 422),
    "other AAD, older": (_on_ciphertext("?action=unwrap", ["x"]), 422),
}
REFUSED_WITHOUT_REASONS: dict[str, tuple[Call, int]] = {
    "no instance": (_plain("GET", "/keys", headers={"Bluemix-Instance": "x"}), 400),
    "no instance to wrap": (_plain("POST", f"{STANDING}/actions/wrap", headers={"Bluemix-Instance": "x"}), 400),
    "no token": (_plain("GET", "/keys", headers={"Authorization": ""}), 401),
    "no token to wrap": (_plain("POST", f"{STANDING}/actions/wrap", headers={"Authorization": ""}), 401),
    "no call": (_plain("GET", "/nothing"), 404),
    "no method": (_plain("PUT", "/keys"), 405),
}
CALLS: dict[str, Call] = {
    **{name: entry[0] for name, entry in WITH_CONTENT.items()},
    **{f"empty {name}": entry[0] for name, entry in WITHOUT_CONTENT.items()},
    **{name: entry[0] for name, entry in {**REFUSED, **REFUSED_WITHOUT_REASONS}.items()},
}


@pytest.mark.parametrize("name", WITH_CONTENT)
def test_vendor_type_of_success(client: httpx.Client, name: str) -> None:
    """Python's core parses `application/json` itself, and IBM's tests want it not to (additions section 1.3)."""
    call, status, kind = WITH_CONTENT[name]
    answer = call(client)
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, kind)
    assert isinstance(answer.json(), dict)
    if kind != ACTION:
        assert answer.json()["metadata"]["collectionType"] == kind
        assert answer.json()["metadata"]["collectionTotal"] == len(answer.json()["resources"])


@pytest.mark.parametrize("name", WITHOUT_CONTENT)
def test_empty_success(client: httpx.Client, name: str) -> None:
    """Go breaks on content where it wants none, and on 202 (contract section 0, trap 5)."""
    call, status = WITHOUT_CONTENT[name]
    answer = call(client)
    assert (answer.status_code, answer.content) == (status, b"")


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(client: httpx.Client, name: str) -> None:
    """Go recognises it by the text `errorMsg` and shows the reasons."""
    call, status = REFUSED[name]
    resource = _refused(call(client), status)
    (reason,) = resource["reasons"]
    assert reason["status"] == status
    assert reason["code"] in resource["errorMsg"]
    assert reason["message"]


@pytest.mark.parametrize("name", REFUSED_WITHOUT_REASONS)
def test_refusal_without_reasons(client: httpx.Client, name: str) -> None:
    """401 and what has no code in the contract carry errorMsg alone (contract section 0, trap 8)."""
    call, status = REFUSED_WITHOUT_REASONS[name]
    assert set(_refused(call(client), status)) == {"errorMsg"}


@pytest.mark.parametrize("name", CALLS)
def test_correlation_id_is_echoed(client: httpx.Client, name: str) -> None:
    """By success and refusal alike; Correlation-Id before X-Correlation-ID (additions section 0, row 7)."""
    with httpx.Client(base_url=client.base_url, headers=client.headers, timeout=60) as caller:
        caller.headers["X-Correlation-ID"] = SECOND
        assert CALLS[name](caller).headers["Correlation-Id"] == SECOND
        caller.headers["Correlation-Id"] = FIRST
        assert CALLS[name](caller).headers["Correlation-Id"] == FIRST


def test_correlation_id_that_is_none(client: httpx.Client) -> None:
    """What is not a UUID is not repeated, so that a log line cannot be forged with it."""
    for path in ("/keys", "/keys/nobody"):
        made = client.get(path, headers={"Correlation-Id": "not a UUID"}).headers["Correlation-Id"]
        assert made != "not a UUID"
        assert made != client.get(path).headers["Correlation-Id"]
    headers = {"Correlation-Id": "not a UUID", "X-Correlation-ID": SECOND}
    assert client.get("/keys", headers=headers).headers["Correlation-Id"] == SECOND


def test_empty_list_is_an_empty_array(client: httpx.Client) -> None:
    """A live test of Go's client wants an array, not null (contract section 0, trap 6)."""
    answer = client.get("/keys?search=exact:nobody-has-this-name").json()
    assert answer["resources"] == []
    assert answer["metadata"]["collectionTotal"] == 0


@pytest.mark.parametrize("extractable", [False, True])
@pytest.mark.parametrize("prefer", ["return=representation", "return=minimal", ""])
def test_fresh_key_has_no_update_dates(client: httpx.Client, extractable: bool, prefer: str) -> None:
    """Live tests of Go's client assert it (contract section 0, trap 7), and read `deleted` without a look."""
    answer = client.post("/keys", json=create_body(extractable=extractable), headers={"Prefer": prefer})
    resource = answer.json()["resources"][0]
    assert not {"lastUpdateDate", "lastRotateDate"} & set(resource)
    assert resource["deleted"] is False
    assert resource["dualAuthDelete"] == {"enabled": False}
    assert resource["creationDate"].endswith("Z")
    assert ("keyVersion" in resource) is not extractable
    assert ("payload" in resource) is (extractable and prefer != "return=minimal")


def test_rotated_key_has_both_dates(client: httpx.Client) -> None:
    key = create_key(client)
    assert "lastRotateDate" not in client.get(f"/keys/{key}").json()["resources"][0]
    assert client.post(f"/keys/{key}/actions/rotate").status_code == 204
    resource = client.get(f"/keys/{key}").json()["resources"][0]
    assert resource["lastUpdateDate"] == resource["lastRotateDate"]
    assert resource["lastRotateDate"] >= resource["creationDate"]


def _refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The one resource of Key Protect's error body."""
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, ERROR)
    body = answer.json()
    assert body["metadata"] == {"collectionType": ERROR, "collectionTotal": 1}
    (resource,) = body["resources"]
    assert resource["errorMsg"].startswith(answer.reason_phrase)
    return dict(resource)
