"""Habits of official clients on the wire that a server has to survive (contract section 0, additions section 1.4)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.client import HTTPConnection

import httpx
import pytest

from tests.support.deployment import Service, create_body, create_key

ERROR = "application/vnd.ibm.kms.error+json"
DEK = base64.b64encode(b"0123456789abcdef").decode()


@pytest.fixture
def client(shared_service: Service) -> Iterator[httpx.Client]:
    with shared_service.client() as client:
        yield client


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b" \n", b'{"plaintext": null, "aad": null}'])
def test_no_body_in_every_spelling_generates(client: httpx.Client, body: bytes) -> None:
    answer = client.post(f"/keys/{create_key(client)}/actions/wrap", content=body)
    assert answer.status_code == 200
    assert len(base64.b64decode(answer.json()["plaintext"])) == 32


@pytest.mark.parametrize("body", [b"", b"null", b"{}"])
def test_rotate_without_body(client: httpx.Client, body: bytes) -> None:
    answer = client.post(f"/keys/{create_key(client)}/actions/rotate", content=body)
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize("body", [b"", b"null"])
@pytest.mark.parametrize("action", ["unwrap", "rewrap"])
def test_unwrap_needs_a_body(client: httpx.Client, action: str, body: bytes) -> None:
    answer = client.post(f"/keys/{create_key(client)}/actions/{action}", content=body)
    assert answer.status_code == 400
    assert answer.json()["resources"][0]["reasons"][0]["code"] == "NO_BODY_ERR"


def test_go_sends_no_content_type(shared_service: Service, client: httpx.Client) -> None:
    connection = HTTPConnection("127.0.0.1", shared_service.port)
    headers = {name: client.headers[name] for name in ("Authorization", "Bluemix-Instance")}
    connection.request("POST", "/api/v2/keys", json.dumps(create_body("from go")), headers)
    answer = connection.getresponse()
    assert answer.status == 201
    answer.read()
    connection.close()


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "application/vnd.ibm.kms.key_action+json", "?"])
def test_any_content_type(client: httpx.Client, kind: str) -> None:
    path = f"/keys/{create_key(client)}/actions/wrap"
    answer = client.post(path, content=json.dumps({"plaintext": DEK}), headers={"Content-Type": kind})
    assert answer.status_code == 200


def test_member_names_without_case(client: httpx.Client) -> None:
    answer = client.post("/keys", json=create_body("capital", Tags=["one"]))
    assert answer.json()["resources"][0]["tags"] == ["one"]
    key = answer.json()["resources"][0]["id"]
    assert client.patch(f"/keys/{key}", json={"KeyRingID": "default"}).status_code == 200
    wrapped = client.post(f"/keys/{key}/actions/wrap", json={"Plaintext": DEK, "AAD": ["x"]}).json()
    opened = client.post(f"/keys/{key}/actions/unwrap", json={"Ciphertext": wrapped["ciphertext"], "Aad": ["x"]})
    assert opened.json()["plaintext"] == DEK


def test_two_spellings_of_one_member(client: httpx.Client) -> None:
    answer = client.post(f"/keys/{create_key(client)}/actions/wrap", json={"plaintext": DEK, "Plaintext": DEK})
    assert answer.status_code == 400
    assert answer.json()["resources"][0]["reasons"][0]["code"] == "BAD_BODY_ERR"


def test_python_and_go_query_habits(client: httpx.Client) -> None:
    key = create_key(client, "habit-needle")
    for query in ("state=", "limit=0&offset=0", "search=habit-needle,", "search=habit-needle%2C&state="):
        answer = client.get(f"/keys?{query}")
        assert answer.status_code == 200
        assert key in {found["id"] for found in answer.json()["resources"]}
    since = "%20creationDate=gte:%222020-01-01T00:00:00.123456789%2B02:00%22"
    assert key in {found["id"] for found in client.get(f"/keys?filter={since}&limit=5000").json()["resources"]}


def test_empty_list_is_an_empty_array(client: httpx.Client) -> None:
    answer = client.get("/keys?search=exact:nobody-has-this-name").json()
    assert answer["resources"] == []
    assert answer["metadata"]["collectionTotal"] == 0


def test_older_spelling_of_actions(client: httpx.Client) -> None:
    key = create_key(client)
    wrapped = client.post(f"/keys/{key}?action=wrap", json={"plaintext": DEK}).json()
    assert client.post(f"/keys/{key}?action=rotate").status_code == 204
    opened = client.post(f"/keys/{key}?action=unwrap", json={"ciphertext": wrapped["ciphertext"]}).json()
    assert opened["plaintext"] == DEK
    rewrapped = client.post(f"/keys/{key}?action=rewrap", json={"ciphertext": wrapped["ciphertext"]})
    assert rewrapped.status_code == 200
    unknown = client.post(f"/keys/{key}?action=dance")
    assert unknown.json()["resources"][0]["reasons"][0]["target"] == {"type": "query_param", "name": "action"}


def test_go_and_keyprotect_2_token_endpoint(shared_service: Service) -> None:
    """`/oidc/token` with HTTP Basic bx:bx, and without."""
    form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": shared_service.state.api_key}
    for credentials in (httpx.BasicAuth("bx", "bx"), None):
        answer = httpx.post(f"{shared_service.url}/oidc/token", data=form, auth=credentials)
        assert answer.status_code == 200
        assert answer.json()["token_type"] == "Bearer"
        assert answer.json()["expires_in"] == 3600


def test_correlation_id_is_echoed(client: httpx.Client) -> None:
    first, second = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
    assert client.get("/keys", headers={"X-Correlation-ID": second}).headers["Correlation-Id"] == second
    both = {"Correlation-Id": first, "X-Correlation-ID": second}
    for answer in (client.get("/keys", headers=both), client.post("/keys/x/actions/wrap", headers=both)):
        assert answer.headers["Correlation-Id"] == first
    assert client.get("/keys", headers={"Correlation-Id": "not a UUID"}).headers["Correlation-Id"] != "not a UUID"


def test_vendor_types_on_success_and_error(client: httpx.Client) -> None:
    created = client.post("/keys", json=create_body())
    key = created.json()["resources"][0]["id"]
    wrapped = client.post(f"/keys/{key}/actions/wrap")
    assert created.headers["Content-Type"] == "application/vnd.ibm.kms.key+json"
    assert wrapped.headers["Content-Type"] == "application/vnd.ibm.kms.key_action+json"
    assert client.get(f"/keys/{key}/versions").headers["Content-Type"] == "application/vnd.ibm.kms.key.version+json"
    for answer in (client.get("/keys/nobody"), client.post("/keys/nobody/actions/wrap"), client.get("/nothing")):
        assert (answer.status_code, answer.headers["Content-Type"]) == (404, ERROR)


def test_alias_in_place_of_id(client: httpx.Client) -> None:
    key = create_key(client, aliases=["quirk-alias"])
    wrapped = client.post("/keys/quirk-alias/actions/wrap", json={"plaintext": DEK}).json()
    opened = client.post(f"/keys/{key.upper()}/actions/unwrap", json={"ciphertext": wrapped["ciphertext"]})
    assert opened.json()["plaintext"] == DEK
    assert client.get("/keys/quirk-alias").json()["resources"][0]["id"] == key
    assert client.post("/keys/quirk-alias/actions/rotate").status_code == 204
    assert client.delete("/keys/quirk-alias").status_code == 204


def test_fresh_key_has_no_update_dates(client: httpx.Client) -> None:
    resource = client.post("/keys", json=create_body()).json()["resources"][0]
    assert not {"lastUpdateDate", "lastRotateDate"} & set(resource)
    assert resource["deleted"] is False
    assert resource["dualAuthDelete"] == {"enabled": False}


def test_new_key_ring_answer_is_empty(client: httpx.Client) -> None:
    answer = client.post("/key_rings/quirk-ring")
    assert (answer.status_code, answer.content) == (201, b"")


def test_prefer_decides_the_answer_of_delete(client: httpx.Client) -> None:
    for prefer, status in (("return=minimal", 204), ("return=representation", 200), (None, 204)):
        headers = {} if prefer is None else {"Prefer": prefer}
        assert client.delete(f"/keys/{create_key(client)}", headers=headers).status_code == status
