"""Key rings: moving keys, what X-Kms-Key-Ring narrows, names, pages (contract section 1.5, additions section 3.8)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api.refusals import require_refused
from tests.support.deployment import create_body, create_key

INSIDE, OUTSIDE = {"X-Kms-Key-Ring": "ring-a"}, {"X-Kms-Key-Ring": "ring-b"}


@pytest.fixture(scope="module", autouse=True)
def rings(client: httpx.Client) -> Iterator[None]:
    """Two rings; every key is out of them at the end, so they can be deleted."""
    for ring in ("ring-a", "ring-b"):
        assert client.post(f"/key_rings/{ring}").status_code == 201
    yield
    for ring in ("ring-a", "ring-b"):
        listed = client.get("/keys?state=0,1,2,3,5&limit=5000", headers={"X-Kms-Key-Ring": ring}).json()
        for key in listed["resources"]:
            assert client.patch(f"/keys/{key['id']}", json={"keyRingID": "default"}).status_code == 200
        assert client.delete(f"/key_rings/{ring}").status_code == 204


def make(client: httpx.Client, headers: dict[str, str], **members: Any) -> str:
    """A key in the ring that the headers name."""
    answer = client.post("/keys", json=create_body(**members), headers=headers)
    assert answer.status_code == 201, answer.text
    resource = answer.json()["resources"][0]
    assert resource["keyRingID"] == headers["X-Kms-Key-Ring"]
    return str(resource["id"])


def test_header_narrows_every_call(client: httpx.Client) -> None:
    """A key in another ring than the one named does not exist; in the right one, or without the header, it does."""
    key = make(client, INSIDE, aliases=["ringed-alias"])
    ciphertext = client.post(f"/keys/{key}/actions/wrap").json()["ciphertext"]
    calls: list[tuple[str, str, Any]] = [
        ("GET", "/keys/{}", None),
        ("GET", "/keys/{}/metadata", None),
        ("GET", "/keys/{}/versions", None),
        ("PATCH", "/keys/{}", {"keyRingID": "ring-a"}),
        ("POST", "/keys/{}/actions/wrap", {}),
        ("POST", "/keys/{}/actions/unwrap", {"ciphertext": ciphertext}),
        ("POST", "/keys/{}/actions/rewrap", {"ciphertext": ciphertext}),
        ("POST", "/keys/{}?action=unwrap", {"ciphertext": ciphertext}),
        ("POST", "/keys/{}/actions/rotate", None),
        ("DELETE", "/keys/{}", None),
    ]
    for method, path, body in calls:
        for wrong in (OUTSIDE, {"X-Kms-Key-Ring": "default"}, {"X-Kms-Key-Ring": "nowhere"}):
            for reference in (key, "ringed-alias"):
                answer = client.request(method, path.format(reference), json=body, headers=wrong)
                require_refused(answer, 404, "KEY_NOT_FOUND_ERR")
        assert client.request(method, path.format(key), json=body, headers=INSIDE).status_code in (200, 204)


def test_lists_and_counts_are_narrowed(client: httpx.Client) -> None:
    ours, theirs = make(client, INSIDE, name="ring list"), make(client, OUTSIDE, name="ring list")
    for headers, wanted in ((INSIDE, {ours}), (OUTSIDE, {theirs}), ({}, {ours, theirs})):
        found = client.get("/keys?search=exact:ring%20list", headers=headers).json()
        assert {key["id"] for key in found["resources"]} == wanted
    total = int(client.head("/keys", headers=INSIDE).headers["Key-Total"])
    assert total == len(client.get("/keys", headers=INSIDE).json()["resources"])
    unknown = {"X-Kms-Key-Ring": "nowhere"}
    require_refused(client.get("/keys", headers=unknown), 404, "KEY_RING_NOT_FOUND_ERR")
    assert client.head("/keys", headers=unknown).status_code == 404
    require_refused(client.post("/keys", json=create_body(), headers=unknown), 404, "KEY_RING_NOT_FOUND_ERR")


@pytest.mark.parametrize("extractable", [False, True])
def test_moving(client: httpx.Client, extractable: bool) -> None:
    """Also a warm key is found in its new ring at once, and no longer in the old one."""
    key = make(client, INSIDE, extractable=extractable)
    read = f"/keys/{key}/metadata"
    if not extractable:
        assert client.post(f"/keys/{key}/actions/wrap", headers=INSIDE).status_code == 200
    moved = client.patch(f"/keys/{key}", json={"keyRingID": "ring-b"})
    assert moved.json()["resources"][0]["keyRingID"] == "ring-b"
    assert client.get(read, headers=OUTSIDE).json()["resources"][0]["keyRingID"] == "ring-b"
    require_refused(client.get(read, headers=INSIDE), 404, "KEY_NOT_FOUND_ERR")
    if not extractable:
        assert client.post(f"/keys/{key}/actions/wrap", headers=OUTSIDE).status_code == 200
        require_refused(client.post(f"/keys/{key}/actions/wrap", headers=INSIDE), 404, "KEY_NOT_FOUND_ERR")


@pytest.mark.parametrize(
    "body", [{"keyRingID": 7}, {"keyRingID": ["ring-a"]}, {"keyRingID": "ring-a", "x": 1}, [], "r"]
)
def test_bad_move(client: httpx.Client, body: object) -> None:
    require_refused(client.patch(f"/keys/{create_key(client)}", json=body), 400, "BAD_BODY_ERR")


@pytest.mark.parametrize("ring", ["ok", "x" * 100, "A-b-9", "--"])
def test_good_names(client: httpx.Client, ring: str) -> None:
    assert client.post(f"/key_rings/{ring}").status_code == 201
    require_refused(client.post(f"/key_rings/{ring}"), 409, "KEY_RING_ALREADY_EXISTS_ERR")
    assert client.delete(f"/key_rings/{ring}").status_code == 204
    require_refused(client.delete(f"/key_rings/{ring}"), 404, "KEY_RING_NOT_FOUND_ERR")


@pytest.mark.parametrize("ring", ["x", "x" * 101, "a_b", "a.b", "a%20b", "%C3%A9%C3%A9", "a%00b", "%F0%9F%94%91k"])
def test_bad_names(client: httpx.Client, ring: str) -> None:
    require_refused(client.post(f"/key_rings/{ring}"), 400, "INVALID_FIELD_ERR", "keyRingID")


def test_default_is_reserved(client: httpx.Client) -> None:
    for method in ("POST", "DELETE"):
        require_refused(client.request(method, "/key_rings/default"), 400, "KEY_RING_RESERVED_ERR")
    assert client.get("/key_rings").json()["resources"][0] == {"id": "default"}


def test_ring_with_a_key_stays(client: httpx.Client) -> None:
    key = make(client, OUTSIDE)
    require_refused(client.delete("/key_rings/ring-b"), 409, "KEY_RING_NOT_EMPTY_ERR")
    assert client.get(f"/keys/{key}", headers=OUTSIDE).status_code == 200


def test_pages(client: httpx.Client) -> None:
    """`default` first, then by name; totalCount ignores the page."""
    whole = client.get("/key_rings?totalCount=true").json()
    names = [ring["id"] for ring in whole["resources"]]
    assert names[0] == "default"
    assert names[1:] == sorted(names[1:])
    assert {"ring-a", "ring-b"} <= set(names)
    for ring in whole["resources"][1:]:
        assert set(ring) == {"id", "creationDate", "createdBy"}
    seen = []
    for offset in range(len(names) + 1):
        page = client.get(f"/key_rings?limit=1&offset={offset}&totalCount=true").json()
        assert page["metadata"]["totalCount"] == len(names)
        assert page["metadata"]["collectionTotal"] == len(page["resources"])
        seen += [ring["id"] for ring in page["resources"]]
    assert seen == names
    require_refused(client.get("/key_rings?limit=x"), 400, "INVALID_QUERY_PARAM_ERR", "limit")
    assert "totalCount" not in client.get("/key_rings").json()["metadata"]


def test_fiftieth_and_fifty_first(client: httpx.Client) -> None:
    there = len(client.get("/key_rings").json()["resources"]) - 1
    made = [f"quota-{number}" for number in range(50 - there)]
    for ring in made:
        assert client.post(f"/key_rings/{ring}").status_code == 201
    require_refused(client.post("/key_rings/one-too-many"), 409, "KEY_RING_QUOTA_ERR")
    assert len(client.get("/key_rings").json()["resources"]) == 51
    assert client.delete(f"/key_rings/{made[0]}").status_code == 204
    assert client.post("/key_rings/one-too-many").status_code == 201
    for ring in (*made[1:], "one-too-many"):
        assert client.delete(f"/key_rings/{ring}").status_code == 204
