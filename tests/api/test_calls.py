"""Calls that do not exist are refused in the shape of every other error (contract section 5)."""

from __future__ import annotations

import httpx
import pytest

from tests.api.refusals import ERROR, require_refused
from tests.support.deployment import Service, create_key

NO_SUCH_CALL = [
    ("GET", "/api/v2"),
    ("GET", "/api/v2/"),
    ("GET", "/api/v2/nothing"),
    ("GET", "/api/v1/keys"),
    ("GET", "/api/v2/keys/"),
    ("GET", "/api/v2/keys/x/nothing"),
    ("POST", "/api/v2/keys/x/actions"),
    ("POST", "/api/v2/keys/x/actions/dance"),
    ("POST", "/api/v2/keys/x/actions/WRAP"),
    ("POST", "/api/v2/keys/x/actions/wrap/"),
    ("POST", "/api/v2/keys/x/action/wrap"),
    ("POST", "/api/v2/keys//actions/wrap"),
    ("POST", "/api/v2/keys/x/y/actions/wrap"),
    ("GET", "/api/v2/key_rings/"),
    ("GET", "/identity"),
    ("GET", "/"),
    ("GET", "/%00"),
    ("GET", "/..%2f..%2fetc/passwd"),
]
WRONG_METHOD = [
    ("PUT", "/api/v2/keys"),
    ("DELETE", "/api/v2/keys"),
    ("PATCH", "/api/v2/keys"),
    ("PUT", "/api/v2/keys/x"),
    ("GET", "/api/v2/keys/x/actions/wrap"),
    ("PUT", "/api/v2/keys/x/actions/unwrap"),
    ("DELETE", "/api/v2/keys/x/actions/rewrap"),
    ("GET", "/api/v2/keys/x/actions/rotate"),
    ("POST", "/api/v2/keys/x/versions"),
    ("POST", "/api/v2/keys/x/metadata"),
    ("POST", "/api/v2/key_rings"),
    ("GET", "/api/v2/key_rings/x"),
    ("GET", "/identity/token"),
    ("POST", "/identity/keys"),
    ("POST", "/healthz"),
    ("OPTIONS", "/api/v2/keys"),
]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("method", "path"), NO_SUCH_CALL)
def test_no_such_call(service: Service, client: httpx.Client, method: str, path: str, known: bool) -> None:
    """With a token and without one."""
    headers = client.headers if known else None
    require_refused(httpx.request(method, f"{service.url}{path}", headers=headers), 404, None)


@pytest.mark.parametrize(("method", "path"), WRONG_METHOD)
def test_wrong_method(service: Service, client: httpx.Client, method: str, path: str) -> None:
    answer = httpx.request(method, f"{service.url}{path}", headers=client.headers)
    require_refused(answer, 405, None)
    assert method not in answer.headers["Allow"].split(", ")


def test_head_of_nothing(client: httpx.Client) -> None:
    answer = client.head("/nothing")
    assert (answer.status_code, answer.content) == (404, b"")
    assert answer.headers["Content-Type"] == ERROR


@pytest.mark.parametrize(
    "query", ["", "action=", "action=dance", "action=wrap&action=unwrap", "action=WRAP", "act=wrap"]
)
def test_older_spelling_without_a_known_action(client: httpx.Client, query: str) -> None:
    """`POST /keys/{id}?action=` with none, an unknown one or two."""
    answer = client.post(f"/keys/{create_key(client)}?{query}")
    require_refused(answer, 400, "INVALID_QUERY_PARAM_ERR", "action")


def test_older_spelling_needs_a_token(service: Service) -> None:
    for query in ("action=wrap", "action=rotate", "action=dance"):
        require_refused(httpx.post(f"{service.url}/api/v2/keys/x?{query}"), 401, None)


@pytest.mark.parametrize(
    "header", ["", "x", "4d4ff6f0", "4d4ff6f0-0000-4000-8000-00000000000", "4d4ff6f000004000800000000000abcd"]
)
def test_instance_must_be_a_uuid(client: httpx.Client, header: str) -> None:
    """Every kind of call; the sentence is the one that clients match (additions section 1.1)."""
    wanted = "Request requires valid Bluemix-Instance Header containing a valid UUID"
    for method, path in (("GET", "/keys"), ("POST", "/keys"), ("GET", "/key_rings"), ("POST", "/keys/x/actions/wrap")):
        answer = client.request(method, path, headers={"Bluemix-Instance": header})
        require_refused(answer, 400, None)
        assert answer.json()["resources"][0]["errorMsg"] == f"Bad Request: {wanted}"


def test_instance_in_capitals(client: httpx.Client) -> None:
    headers = {"Bluemix-Instance": client.headers["Bluemix-Instance"].upper()}
    assert client.get("/keys?limit=1", headers=headers).status_code == 200
    assert client.post(f"/keys/{create_key(client)}/actions/wrap", headers=headers).status_code == 200
