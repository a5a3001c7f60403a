"""Every kind of bad input gets the contract's status, code and target, and leaves nothing half-made."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.api.refusals import require_refused
from tests.support.deployment import Service, create_body, create_key

DEK = base64.b64encode(bytes(range(32))).decode()


@pytest.fixture(scope="module")
def key(client: httpx.Client) -> str:
    """A root key."""
    return create_key(client)


@pytest.fixture(autouse=True)
def nothing_half_made(client: httpx.Client) -> Iterator[Callable[[int], None]]:
    """The number of keys is afterwards what it was, plus what the test says it made."""
    before = int(client.head("/keys?state=0,1,2,3,5").headers["Key-Total"])
    made = 0

    def expect_made(count: int) -> None:
        nonlocal made
        made += count

    yield expect_made
    assert int(client.head("/keys?state=0,1,2,3,5").headers["Key-Total"]) == before + made


@pytest.mark.parametrize("body", [b"{", b"[1]", b'"x"', b"\xff\xfe", b"nul", b"[" * 60_000, b'{"a":' * 20_000])
@pytest.mark.parametrize("path", ["/keys", "/keys/{key}/actions/wrap", "/keys/{key}/actions/unwrap"])
def test_not_json(client: httpx.Client, key: str, path: str, body: bytes) -> None:
    require_refused(client.post(path.format(key=key), content=body), 400, "BAD_BODY_ERR")


@pytest.mark.parametrize("text", ["%", "AAA", "AA==AA", "é", "AAEC\n", "-_-_", "AAEC AAEC"])
def test_wrong_base64(client: httpx.Client, key: str, text: str) -> None:
    wrap, unwrap = f"/keys/{key}/actions/wrap", f"/keys/{key}/actions/unwrap"
    require_refused(client.post(wrap, json={"plaintext": text}), 400, "INVALID_FIELD_ERR", "plaintext")
    require_refused(client.post(unwrap, json={"ciphertext": text}), 400, "INVALID_FIELD_ERR", "ciphertext")


@pytest.mark.parametrize("length", [0, 4_097, 7_501])
def test_plaintext_length(client: httpx.Client, key: str, length: int) -> None:
    body = {"plaintext": base64.b64encode(bytes(length)).decode()}
    require_refused(client.post(f"/keys/{key}/actions/wrap", json=body), 400, "INVALID_FIELD_ERR", "plaintext")


def test_longest_plaintext(client: httpx.Client, key: str) -> None:
    plaintext = base64.b64encode(bytes(4_096)).decode()
    wrapped = client.post(f"/keys/{key}/actions/wrap", json={"plaintext": plaintext}).json()
    opened = client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": wrapped["ciphertext"]}).json()
    assert opened["plaintext"] == plaintext


def _hundred_megabytes() -> Iterator[bytes]:
    for _ in range(100):
        yield bytes(1_000_000)


@pytest.mark.parametrize("path", ["/keys", "/keys/{key}/actions/wrap"])
@pytest.mark.parametrize("chunked", [False, True])
def test_hundred_megabytes(service: Service, client: httpx.Client, key: str, path: str, chunked: bool) -> None:
    """Refused without being kept: the service answers as soon as it knows, and may hang up on the rest."""
    content: Any = _hundred_megabytes() if chunked else bytes(100_000_000)
    with httpx.Client(base_url=client.base_url, headers=client.headers, timeout=60) as own:
        try:
            answer = own.post(path.format(key=key), content=content)
        except httpx.WriteError:
            return
        require_refused(answer, 400, "BAD_BODY_ERR")


def test_service_is_small_after_large_bodies(service: Service) -> None:
    """A hundred megabytes were sent four times; none of it stayed."""
    with open(f"/proc/{service.process.pid}/statm") as file:
        resident = int(file.read().split()[1]) * 4096
    assert resident < 400_000_000


@pytest.mark.parametrize(
    "body",
    [
        {"plaintext": DEK, "color": "red"},
        {"plaintext": 7},
        {"plaintext": [DEK]},
        {"aad": "volume"},
        {"aad": [7]},
        {"aad": {"a": 1}},
        {"ciphertext": DEK},
    ],
)
def test_unknown_member_or_wrong_type(client: httpx.Client, key: str, body: object) -> None:
    require_refused(client.post(f"/keys/{key}/actions/wrap", json=body), 400, "BAD_BODY_ERR")


def test_unknown_member_is_named_as_go_names_it(client: httpx.Client, key: str) -> None:
    answer = client.post(f"/keys/{key}/actions/wrap", json={"color": "red"})
    assert answer.json()["resources"][0]["reasons"][0]["message"].endswith('json: unknown field "color"')


@pytest.mark.parametrize("instance", ["", "x", "4d4ff6f0", "{}" * 16, "4d4ff6f0-0000-4000-8000-00000000000g"])
def test_bad_instance(client: httpx.Client, key: str, instance: str) -> None:
    for path in (f"/keys/{key}/actions/wrap", "/keys"):
        require_refused(client.post(path, headers={"Bluemix-Instance": instance}), 400, None)


def test_missing_instance(client: httpx.Client) -> None:
    headers = {"Authorization": client.headers["Authorization"]}
    require_refused(httpx.get(f"{client.base_url}keys", headers=headers), 400, None)


def test_unknown_instance_reads_like_a_forbidden_one(client: httpx.Client, key: str) -> None:
    headers = {"Bluemix-Instance": "4d4ff6f0-0000-4000-8000-000000000000"}
    for method, path in (("POST", f"/keys/{key}/actions/wrap"), ("GET", "/keys"), ("GET", f"/keys/{key}")):
        answer = client.request(method, path, headers=headers)
        require_refused(answer, 401, None)
        assert "does not have access" in answer.json()["resources"][0]["errorMsg"]


def test_unknown_key(client: httpx.Client) -> None:
    for name in ("4d4ff6f0-0000-4000-8000-000000000000", "no-such-alias", "%00", "x", "é" * 50):
        require_refused(client.post(f"/keys/{name}/actions/wrap"), 404, "KEY_NOT_FOUND_ERR")
    for method in ("GET", "DELETE"):
        require_refused(client.request(method, "/keys/no-such-alias"), 404, "KEY_NOT_FOUND_ERR")


def test_deleted_key(client: httpx.Client, nothing_half_made: Callable[[int], None]) -> None:
    key = create_key(client)
    nothing_half_made(1)
    wrapped = client.post(f"/keys/{key}/actions/wrap").json()
    assert client.delete(f"/keys/{key}").status_code == 204
    body = {"ciphertext": wrapped["ciphertext"]}
    for action in ("wrap", "unwrap", "rewrap", "rotate"):
        sent = body if action in ("unwrap", "rewrap") else None
        require_refused(client.post(f"/keys/{key}/actions/{action}", json=sent), 410, "KEY_DELETED_ERR")
    require_refused(client.delete(f"/keys/{key}"), 410, "KEY_DELETED_ERR")
    assert client.get(f"/keys/{key}").json()["resources"][0]["state"] == 5


def test_standard_key_cannot_wrap(client: httpx.Client, nothing_half_made: Callable[[int], None]) -> None:
    key = create_key(client, extractable=True)
    nothing_half_made(1)
    require_refused(client.post(f"/keys/{key}/actions/wrap"), 400, "KEY_ROOT_REQ_ERR")
    require_refused(client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": DEK}), 400, "KEY_ROOT_REQ_ERR")
    require_refused(client.post(f"/keys/{key}/actions/rotate"), 400, "KEY_ROOT_REQ_ERR")


@pytest.mark.parametrize(
    ("aad", "right"),
    [(["a" * 255] * 255, True), (["a" * 256], False), (["a" * 300], False), (["a"] * 256, False), (["é" * 255], True)],
)
def test_aad_limits(client: httpx.Client, key: str, aad: list[str], right: bool) -> None:
    answer = client.post(f"/keys/{key}/actions/wrap", json={"plaintext": DEK, "aad": aad})
    if right:
        body = {"ciphertext": answer.json()["ciphertext"], "aad": aad}
        assert client.post(f"/keys/{key}/actions/unwrap", json=body).json()["plaintext"] == DEK
    else:
        require_refused(answer, 400, "INVALID_FIELD_ERR", "aad")


def test_lone_surrogate(client: httpx.Client, key: str) -> None:
    answer = client.post(f"/keys/{key}/actions/wrap", content=b'{"aad": ["\\ud800"]}')
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("members", "target"),
    [
        ({"name": "x"}, "name"),
        ({"name": "x" * 91}, "name"),
        ({"name": "nul \0"}, "name"),
        ({"name": "ok", "description": "x"}, "description"),
        ({"name": "ok", "description": "x" * 241}, "description"),
        ({"name": "ok", "tags": ["x"] * 31}, "tags"),
        ({"name": "ok", "tags": ["x" * 31]}, "tags"),
        ({"name": "ok", "tags": ["a:b"]}, "tags"),
        ({"name": "ok", "aliases": ["x"]}, "aliases"),
        ({"name": "ok", "aliases": ["metadata"]}, "aliases"),
        ({"name": "ok", "aliases": ["a b"]}, "aliases"),
        ({"name": "ok", "aliases": ["same", "same"]}, "aliases"),
        ({"name": "ok", "aliases": [f"alias-{number}" for number in range(6)]}, "aliases"),
        ({"name": "ok", "aliases": ["4d4ff6f0-0000-4000-8000-000000000000"]}, "aliases"),
        ({"name": "ok", "expirationDate": "2020-01-01T00:00:00Z"}, "expirationDate"),
        ({"name": "ok", "expirationDate": "tomorrow"}, "expirationDate"),
        ({"name": "ok", "expirationDate": "2099-01-01T00:00:00"}, "expirationDate"),
    ],
)
def test_bad_member_of_a_new_key(client: httpx.Client, members: dict[str, Any], target: str) -> None:
    for extractable in (False, True):
        answer = client.post("/keys", json=create_body(extractable=extractable, **members))
        require_refused(answer, 400, "INVALID_FIELD_ERR", target)


@pytest.mark.parametrize("length", [2, 90])
def test_shortest_and_longest_name(client: httpx.Client, length: int, nothing_half_made: Callable[[int], None]) -> None:
    create_key(client, "é" * length)
    nothing_half_made(1)


def _changed(**changes: object) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(json.dumps(create_body()))
    for path, value in changes.items():
        place, member = path.split("__")
        target = body["metadata"] if place == "metadata" else body["resources"][0]
        if value is None:
            del target[member]
        else:
            target[member] = value
    return body


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"metadata": {}, "resources": []},
        {**create_body(), "resources": []},
        {**create_body(), "resources": create_body()["resources"] * 2},  # type: ignore[operator]
        _changed(metadata__collectionType="application/json"),
        _changed(resource__type="application/json"),
        _changed(resource__type=None),
        _changed(resource__name=None),
        _changed(resource__extractable="false"),
        _changed(resource__color="red"),
    ],
)
def test_bad_envelope(client: httpx.Client, body: object) -> None:
    require_refused(client.post("/keys", json=body), 400, "BAD_BODY_ERR")


@pytest.mark.parametrize("total", [0, 2, -1])
def test_wrong_collection_total(client: httpx.Client, total: int) -> None:
    require_refused(
        client.post("/keys", json=_changed(metadata__collectionTotal=total)), 400, "COLLECTION_TOTAL_MISMATCH_ERR"
    )


def test_decisive_headers_given_twice(service: Service, client: httpx.Client, key: str) -> None:
    """Neither value is believed, on the hot path and off it."""
    token, instance = client.headers["Authorization"], client.headers["Bluemix-Instance"]
    for method, path in (("GET", "/keys"), ("POST", f"/keys/{key}/actions/wrap")):
        both = [("Authorization", token), ("Bluemix-Instance", instance)]
        url = f"{service.url}/api/v2{path}"
        assert httpx.request(method, url, headers=both).status_code == 200
        assert httpx.request(method, url, headers=[*both, both[0]]).status_code == 401
        assert httpx.request(method, url, headers=[*both, both[1]]).status_code == 400


def test_rotate_twice_and_with_payload(client: httpx.Client, nothing_half_made: Callable[[int], None]) -> None:
    key = create_key(client)
    nothing_half_made(1)
    rotate = f"/keys/{key}/actions/rotate"
    require_refused(client.post(rotate, json={"payload": DEK}), 400, "INVALID_QUERY_PARAM_ERR", "payload")
    assert client.post(rotate).status_code == 204
    require_refused(client.post(rotate), 409, "KEY_ROTATION_NOT_PERMITTED")
    assert client.get(f"/keys/{key}/versions?totalCount=true").json()["metadata"]["totalCount"] == 2


def test_alias_in_use(client: httpx.Client, nothing_half_made: Callable[[int], None]) -> None:
    create_key(client, aliases=["taken-alias"])
    nothing_half_made(1)
    for extractable in (False, True):
        body = create_body(extractable=extractable, aliases=["taken-alias"])
        require_refused(client.post("/keys", json=body), 409, "KEY_ALIAS_NOT_UNIQUE_ERR")


def test_no_such_call(client: httpx.Client) -> None:
    require_refused(client.get("/nothing"), 404, None)
    require_refused(client.post("/keys/a%2Fb/actions/wrap"), 404, None)
    require_refused(client.put("/keys"), 405, None)
