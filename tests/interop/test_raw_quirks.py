"""Habits of official clients on the wire that a server has to survive (contract section 0, additions section 1.4).

What it has to answer is in test_raw_answers.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import httpx
import pytest

from tests.support.deployment import Service, create_body, create_key

DEK = base64.b64encode(b"0123456789abcdef").decode()


@pytest.fixture(scope="module")
def client(shared_service: Service) -> Iterator[httpx.Client]:
    with shared_service.client() as client:
        yield client


@pytest.fixture(scope="module")
def alone(client: httpx.Client) -> str:
    """The one key of the key ring `habits`."""
    assert client.post("/key_rings/habits").status_code == 201
    key = create_key(client, "habit-needle")
    assert client.patch(f"/keys/{key}", json={"keyRingID": "habits"}).status_code == 200
    return key


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b" \n", b" null ", b'{"plaintext": null, "aad": null}'])
def test_no_body_in_every_spelling_generates(client: httpx.Client, body: bytes) -> None:
    """Python sends nothing, Go `null`, others `{}`: each is asking for a new DEK."""
    key = create_key(client)
    answer = client.post(f"/keys/{key}/actions/wrap", content=body)
    assert answer.status_code == 200
    wrapped = answer.json()
    assert len(base64.b64decode(wrapped["plaintext"])) == 32
    opened = client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": wrapped["ciphertext"]})
    assert opened.json()["plaintext"] == wrapped["plaintext"]


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b'{"payload": null}'])
def test_rotate_without_body(client: httpx.Client, body: bytes) -> None:
    answer = client.post(f"/keys/{create_key(client)}/actions/rotate", content=body)
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize("body", [b"", b"null", b" "])
@pytest.mark.parametrize("action", ["unwrap", "rewrap"])
@pytest.mark.parametrize("path", ["/keys/{}/actions/{}", "/keys/{}?action={}"])
def test_unwrap_needs_a_body(client: httpx.Client, path: str, action: str, body: bytes) -> None:
    answer = client.post(path.format(create_key(client), action), content=body)
    assert answer.status_code == 400
    assert _reason(answer)["code"] == "NO_BODY_ERR"


def test_no_content_type_at_all(shared_service: Service, client: httpx.Client) -> None:
    """Go sends none on any call, and Python none where there is no body (contract section 0, trap 2)."""
    created = _untyped(shared_service, client, "POST", "/keys", create_body("from go"))
    assert created["status"] == 201
    key = f"/keys/{created['resources'][0]['id']}"
    assert _untyped(shared_service, client, "PATCH", key, {"KeyRingID": "default"})["status"] == 200
    wrapped = _untyped(shared_service, client, "POST", f"{key}/actions/wrap", {"plaintext": DEK})
    opened = _untyped(shared_service, client, "POST", f"{key}/actions/unwrap", {"ciphertext": wrapped["ciphertext"]})
    assert opened["plaintext"] == DEK
    assert _untyped(shared_service, client, "POST", f"{key}/actions/rotate", None)["status"] == 204
    assert "plaintext" in _untyped(shared_service, client, "POST", f"{key}/actions/wrap")
    assert _untyped(shared_service, client, "DELETE", key)["status"] == 204


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/json", "application/vnd.ibm.kms.key_action+json", "multipart/form-data", "?"]
)
def test_any_content_type(client: httpx.Client, kind: str) -> None:
    """Never 415 (additions section 1.1)."""
    headers = {"Content-Type": kind}
    created = client.post("/keys", content=json.dumps(create_body()), headers=headers)
    assert created.status_code == 201
    key = created.json()["resources"][0]["id"]
    answer = client.post(f"/keys/{key}/actions/wrap", content=json.dumps({"plaintext": DEK}), headers=headers)
    assert answer.status_code == 200


def test_member_names_without_case(client: httpx.Client) -> None:
    """Go writes `Tags` and `KeyRingID` (contract section 0, trap 4)."""
    answer = client.post("/keys", json=create_body("capital", Tags=["one"]))
    assert answer.json()["resources"][0]["tags"] == ["one"]
    key = answer.json()["resources"][0]["id"]
    assert client.patch(f"/keys/{key}", json={"KeyRingID": "default"}).status_code == 200
    for plaintext, aad, ciphertext in (("Plaintext", "AAD", "Ciphertext"), ("PLAINTEXT", "Aad", "cipherText")):
        wrapped = client.post(f"/keys/{key}/actions/wrap", json={plaintext: DEK, aad: ["x"]}).json()
        opened = client.post(f"/keys/{key}/actions/unwrap", json={ciphertext: wrapped["ciphertext"], aad: ["x"]})
        assert opened.json()["plaintext"] == DEK
        # The AAD counted, it was not skipped as a name nobody knows.
        without = client.post(f"/keys/{key}/actions/unwrap", json={ciphertext: wrapped["ciphertext"]})
        assert without.status_code == 422


def test_envelope_names_without_case(client: httpx.Client) -> None:
    body = create_body("upper", tags=["two"])
    upper = {
        name.upper(): [{key.upper(): value for key, value in part.items()} for part in parts]
        if isinstance(parts, list)
        else {key.upper(): value for key, value in dict(parts).items()}  # type: ignore[call-overload]
        for name, parts in body.items()
    }
    answer = client.post("/keys", json=upper)
    assert answer.status_code == 201
    assert answer.json()["resources"][0]["tags"] == ["two"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/actions/wrap", {"plaintext": DEK, "Plaintext": DEK}),
        ("POST", "/actions/wrap", {"aad": ["a"], "AAD": ["a"]}),
        ("POST", "/actions/unwrap", {"ciphertext": DEK, "cipherText": DEK}),
        ("POST", "/actions/rewrap", {"ciphertext": DEK, "CIPHERTEXT": DEK}),
        ("PATCH", "", {"keyRingID": "default", "KeyRingID": "default"}),
    ],
)
def test_two_spellings_of_one_member(client: httpx.Client, method: str, path: str, body: object) -> None:
    """Neither is more right, so both are refused rather than one taken in silence."""
    answer = client.request(method, f"/keys/{create_key(client)}{path}", json=body)
    assert answer.status_code == 400
    assert _reason(answer)["code"] == "BAD_BODY_ERR"


def test_two_spellings_in_a_new_key(client: httpx.Client) -> None:
    answer = client.post("/keys", json=create_body("twice", tags=["one"], Tags=["one"]))
    assert answer.status_code == 400
    assert _reason(answer)["code"] == "BAD_BODY_ERR"
    assert client.get("/keys?search=exact:twice").json()["resources"] == []


@pytest.mark.parametrize(
    "query",
    [
        "state=",
        "state=&extractable=&search=&sort=&filter=",
        "limit=0&offset=0",
        "limit=&offset=",
        "search=habit-needle,",
        "search=habit-needle%2C&state=",
        "search=,",
        "search=name:habit-needle,",
        "sort=-creationDate%2Cid",
        "state=1%2C5",
        "filter=+extractable=false+state=1%2C5",
        "filter=%20creationDate=gte:%222020-01-01T00:00:00.123456789%2B02:00%22",
    ],
)
def test_query_habits(client: httpx.Client, alone: str, query: str) -> None:
    """Empty means absent, a comma at the end of a search is Go's own, `+` is a blank (contract section 0, trap 15)."""
    answer = client.get(f"/keys?{query}", headers={"X-Kms-Key-Ring": "habits"})
    assert answer.status_code == 200
    assert [found["id"] for found in answer.json()["resources"]] == [alone]


@pytest.mark.parametrize("query", ["state=", "state=&extractable=false", "extractable=&filter=", "state=1%2C5"])
def test_query_habits_of_counting(client: httpx.Client, alone: str, query: str) -> None:
    answer = client.head(f"/keys?{query}", headers={"X-Kms-Key-Ring": "habits"})
    assert (answer.status_code, answer.headers["Key-Total"]) == (200, "1")


@pytest.mark.parametrize("query", ["limit=0&offset=0&totalCount=true", "limit=&totalCount=", "allKeyStates="])
def test_query_habits_of_versions_and_rings(client: httpx.Client, alone: str, query: str) -> None:
    versions = client.get(f"/keys/{alone}/versions?{query}")
    assert versions.status_code == 200
    assert len(versions.json()["resources"]) == 1
    rings = client.get(f"/key_rings?{query}")
    assert rings.status_code == 200
    assert {"default", "habits"} <= {ring["id"] for ring in rings.json()["resources"]}


def test_older_spelling_of_actions(client: httpx.Client) -> None:
    """`POST /keys/{id}?action=` is deprecated and in every SDK; the answers are those of the newer paths."""
    key = create_key(client)
    new = client.post(f"/keys/{key}/actions/wrap", json={"plaintext": DEK}).json()
    wrapped = client.post(f"/keys/{key}?action=wrap", json={"plaintext": DEK, "aad": ["x"]}).json()
    assert set(wrapped) == set(new)
    assert set(client.post(f"/keys/{key}?action=wrap").json()) == {"plaintext", "ciphertext", "keyVersion"}
    assert client.post(f"/keys/{key}?action=rotate").status_code == 204
    body = {"ciphertext": wrapped["ciphertext"], "aad": ["x"]}
    opened = client.post(f"/keys/{key}?action=unwrap", json=body).json()
    assert opened["plaintext"] == DEK
    assert set(opened) == {"plaintext", "keyVersion", "ciphertext", "rewrappedKeyVersion"}
    rewrapped = client.post(f"/keys/{key}?action=rewrap", json=body).json()
    assert rewrapped["rewrappedKeyVersion"] == opened["rewrappedKeyVersion"]
    body["ciphertext"] = rewrapped["ciphertext"]
    assert client.post(f"/keys/{key}/actions/unwrap", json=body).json()["plaintext"] == DEK
    assert client.post(f"/keys/{key}?action=unwrap", json={**body, "aad": ["y"]}).status_code == 422
    unknown = client.post(f"/keys/{key}?action=dance")
    assert unknown.status_code == 400
    assert _reason(unknown)["target"] == {"type": "query_param", "name": "action"}


def test_alias_in_place_of_id_everywhere(client: httpx.Client) -> None:
    """Go's client gives aliases to every call (contract section 0, trap 12). An alias keeps its case."""
    key, alias = create_key(client, aliases=["Quirk-Alias_1"]), "/keys/Quirk-Alias_1"
    for path in (alias, f"{alias}/metadata"):
        assert client.get(path).json()["resources"][0]["id"] == key
    version = client.get(f"{alias}/versions").json()["resources"][0]["id"]
    assert client.patch(alias, json={"keyRingID": "default"}).json()["resources"][0]["id"] == key
    for spelling in ("/actions/{}", "?action={}"):
        path = alias + spelling
        wrapped = client.post(path.format("wrap"), json={"plaintext": DEK}).json()
        assert wrapped["keyVersion"]["id"] == version
        body = {"ciphertext": wrapped["ciphertext"]}
        assert client.post(path.format("rewrap"), json=body).json()["keyVersion"]["id"] == version
        assert client.post(path.format("unwrap"), json=body).json()["plaintext"] == DEK
    assert client.post(f"{alias}/actions/rotate").status_code == 204
    again = client.post(f"{alias}?action=rotate")
    assert _reason(again)["code"] == "KEY_ROTATION_NOT_PERMITTED"
    assert client.get(alias.lower()).status_code == 404
    assert client.post(f"{alias.lower()}/actions/wrap").status_code == 404
    assert client.delete(alias).status_code == 204


def test_id_in_capitals(client: httpx.Client) -> None:
    key = create_key(client)
    wrapped = client.post(f"/keys/{key.upper()}/actions/wrap", json={"plaintext": DEK}).json()
    opened = client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": wrapped["ciphertext"]})
    assert opened.json()["plaintext"] == DEK
    assert client.get(f"/keys/{key.upper()}").json()["resources"][0]["id"] == key


def test_token_endpoints_with_basic_credentials(shared_service: Service) -> None:
    """keyprotect 2.x and Terraform send HTTP Basic bx:bx to them, Go nothing (additions section 0, row 12)."""
    form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": shared_service.state.api_key}
    for path in ("/oidc/token", "/identity/token"):
        for credentials in (httpx.BasicAuth("bx", "bx"), None):
            answer = httpx.post(shared_service.url + path, data=form, auth=credentials)
            assert answer.status_code == 200
            assert answer.json()["token_type"] == "Bearer"


def _reason(answer: httpx.Response) -> dict[str, Any]:
    return dict(answer.json()["resources"][0]["reasons"][0])


_NOTHING = object()


def _untyped(service: Service, client: httpx.Client, method: str, path: str, body: object = _NOTHING) -> dict[str, Any]:
    """A call over a new connection and without a Content-Type: the answer's members and its status."""
    connection = HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.putrequest(method, f"/api/v2{path}", skip_accept_encoding=True)
    for name in ("Authorization", "Bluemix-Instance"):
        connection.putheader(name, client.headers[name])
    content = b"" if body is _NOTHING else json.dumps(body).encode()
    connection.putheader("Content-Length", str(len(content)))
    connection.endheaders(content)
    answer: HTTPResponse = connection.getresponse()
    text = answer.read()
    connection.close()
    return {**(json.loads(text) if text else {}), "status": answer.status}
