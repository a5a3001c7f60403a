"""Lists with every parameter of the contract, against a known set of keys in an instance of their own."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from tests.api.refusals import require_refused
from tests.support.deployment import create_key


@pytest.fixture(scope="module")
def ids(client: httpx.Client) -> Iterator[dict[str, str]]:
    """Keys by a short name: a ring of their own keeps other tests' keys out."""
    assert client.post("/key_rings/listing").status_code == 201
    ring = {"X-Kms-Key-Ring": "listing"}
    with httpx.Client(base_url=client.base_url, headers={**client.headers, **ring}, timeout=60) as inside:
        tomorrow = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        made = {
            "plain": create_key(inside, "Plain Root"),
            "alias": create_key(inside, "with aliases", aliases=["list-alias-one", "list-alias-two"]),
            "standard": create_key(inside, "standard 100%_sure", extractable=True),
            "expiring": create_key(inside, "Ärger expiring", expirationDate=tomorrow),
            "rotated": create_key(inside, "rotated root"),
            "deleted": create_key(inside, "deleted root"),
        }
        assert inside.post(f"/keys/{made['rotated']}/actions/rotate").status_code == 204
        assert inside.delete(f"/keys/{made['deleted']}").status_code == 204
        yield made


def names(client: httpx.Client, ids: dict[str, str], query: str) -> list[str]:
    """Short names of the listed keys, in their order; HEAD must count the same."""
    headers = {"X-Kms-Key-Ring": "listing"}
    answer = client.get(f"/keys?{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    short = {key_id: name for name, key_id in ids.items()}
    found = [short[key["id"]] for key in answer.json()["resources"]]
    assert answer.json()["metadata"]["collectionTotal"] == len(found)
    return found


ALIVE = {"plain", "alias", "standard", "expiring", "rotated"}


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", ALIVE),
        ("state=", ALIVE),
        ("state=5", {"deleted"}),
        ("state=1,5", {*ALIVE, "deleted"}),
        ("state=2,3", set()),
        ("extractable=true", {"standard"}),
        ("extractable=false", ALIVE - {"standard"}),
        ("search=root", {"plain", "rotated"}),
        ("search=ROOT", {"plain", "rotated"}),
        ("search=not:root", ALIVE - {"plain", "rotated"}),
        ("search=exact:plain%20root", {"plain"}),
        ("search=exact:plain", set()),
        ("search=alias-one", {"alias"}),
        ("search=name:alias-one", set()),
        ("search=alias:LIST-alias", {"alias"}),
        ("search=100%25_", {"standard"}),
        ("search=%25", {"standard"}),
        ("search=escape:not:root", set()),
        ("search=%C3%A4rger", {"expiring"}),
        ("search=root,", {"plain", "rotated"}),
        ("filter=extractable=true", {"standard"}),
        ("filter=extractable=FALSE%20state=5", {"deleted"}),
        ("filter=expirationDate=none", ALIVE - {"expiring"}),
        ("filter=lastRotateDate=gt:%222020-01-01T00:00:00Z%22", {"rotated"}),
        ("filter=creationDate=lt:%222020-01-01T00:00:00Z%22", set()),
        ("filter=creationDate=gte:%222020-01-01T00:00:00Z%22%20lastRotateDate=none", ALIVE - {"rotated"}),
    ],
)
def test_selection(client: httpx.Client, ids: dict[str, str], query: str, wanted: set[str]) -> None:
    assert set(names(client, ids, query)) == wanted
    headers = {"X-Kms-Key-Ring": "listing"}
    if "search" not in query:
        assert int(client.head(f"/keys?{query}", headers=headers).headers["Key-Total"]) == len(wanted)


def test_search_by_whole_id_comes_first(client: httpx.Client, ids: dict[str, str]) -> None:
    assert names(client, ids, f"search={ids['standard']}") == ["standard"]


def test_search_is_echoed(client: httpx.Client) -> None:
    metadata = client.get("/keys?search=not:exact:name:foo").json()["metadata"]
    assert metadata["searchQuery"] == {"query": "foo", "scopes": ["name"], "not": True, "exact": True}


def test_sort_and_pages(client: httpx.Client, ids: dict[str, str]) -> None:
    by_id = sorted(ALIVE, key=lambda name: ids[name])
    assert names(client, ids, "") == by_id
    assert names(client, ids, "sort=-id") == by_id[::-1]
    by_date = ["plain", "alias", "standard", "expiring", "rotated"]
    assert names(client, ids, "sort=creationDate") == by_date
    assert names(client, ids, "sort=-extractable,creationDate") == ["standard", "plain", "alias", "expiring", "rotated"]
    assert names(client, ids, "sort=creationDate&limit=2&offset=1") == by_date[1:3]
    assert names(client, ids, "sort=creationDate&offset=5") == []


@pytest.mark.parametrize(
    ("query", "target"),
    [
        ("limit=5001", "limit"),
        ("limit=x", "limit"),
        ("offset=-1", "offset"),
        ("state=4", "state"),
        ("state=1,", "state"),
        ("extractable=maybe", "extractable"),
        ("sort=color", "sort"),
        ("filter=color=red", "filter"),
        ("filter=state=1&state=1", "filter"),
    ],
)
def test_bad_parameter(client: httpx.Client, query: str, target: str) -> None:
    require_refused(client.get(f"/keys?{query}"), 400, "INVALID_QUERY_PARAM_ERR", target)


def test_ring_narrows_a_look_up(client: httpx.Client, ids: dict[str, str]) -> None:
    for method, path in (("GET", "/keys/{}"), ("POST", "/keys/{}/actions/wrap"), ("DELETE", "/keys/{}")):
        answer = client.request(method, path.format(ids["plain"]), headers={"X-Kms-Key-Ring": "default"})
        require_refused(answer, 404, "KEY_NOT_FOUND_ERR")
    inside = client.post(f"/keys/{ids['plain']}/actions/wrap", headers={"X-Kms-Key-Ring": "listing"})
    assert inside.status_code == 200
    require_refused(client.get("/keys", headers={"X-Kms-Key-Ring": "nowhere"}), 404, "KEY_RING_NOT_FOUND_ERR")


def test_versions(client: httpx.Client, ids: dict[str, str]) -> None:
    path = f"/keys/{ids['rotated']}/versions"
    both = client.get(path).json()["resources"]
    assert len(both) == 2
    assert client.get(f"/keys/{ids['rotated']}").json()["resources"][0]["keyVersion"] == both[0]
    assert client.get(f"{path}?limit=1&offset=1").json()["resources"] == both[1:]
    require_refused(client.get(f"/keys/{ids['deleted']}/versions"), 409, "KEY_ACTION_INVALID_STATE_ERR")
    assert len(client.get(f"/keys/{ids['deleted']}/versions?allKeyStates=true").json()["resources"]) == 1


def test_key_ring_rules(client: httpx.Client, ids: dict[str, str]) -> None:
    rings = client.get("/key_rings?totalCount=true").json()
    assert rings["resources"][0] == {"id": "default"}
    assert rings["metadata"]["totalCount"] >= 2
    for method in ("POST", "DELETE"):
        require_refused(client.request(method, "/key_rings/default"), 400, "KEY_RING_RESERVED_ERR")
    require_refused(client.post("/key_rings/listing"), 409, "KEY_RING_ALREADY_EXISTS_ERR")
    require_refused(client.delete("/key_rings/listing"), 409, "KEY_RING_NOT_EMPTY_ERR")
    require_refused(client.delete("/key_rings/nowhere"), 404, "KEY_RING_NOT_FOUND_ERR")
    require_refused(client.post("/key_rings/a"), 400, "INVALID_FIELD_ERR", "keyRingID")
    require_refused(client.patch(f"/keys/{ids['plain']}", json={"keyRingID": "nowhere"}), 404, "KEY_RING_NOT_FOUND_ERR")
