"""Lists against a model in Python: whatever the database, every sort, filter and page gives what the keys say.

The keys of one ring are read whole, and each query's answer is computed from them here.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.api.refusals import require_refused
from tests.support.deployment import create_body

RING = "model"
ALL = "state=0,1,2,3,5"
DATES = ("creationDate", "deletionDate", "expirationDate", "lastRotateDate", "lastUpdateDate")
SORTS = ("id", "state", "extractable", "imported", *DATES)
OPERATORS: dict[str, Callable[[str, str], bool]] = {
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}
NAMES = [
    "Alpha",
    "alpha",
    "ALPHA beta",
    "50% off",
    "50_off",
    "back\\slash",
    "quote'd",
    "Straße",
    "ÅNGSTRÖM",
    "🔑 key",
    "exact:",
]
# Parts and wholes of names and aliases, in other cases and scripts, and what SQL's LIKE reads as a pattern.
TEXTS = ["a", "ALPHA", "alpha", "%", "_", "50%", "50_", "\\", "'", "strasse", "STRASSE", "ß", "ångström", "🔑", "model"]
TEXTS += ["-3", "_b", "MODEL-0", "zzz", " ", '"', "e", "Model-6", "%%", "'; DROP TABLE key; --"]
Key = dict[str, Any]


@pytest.fixture(scope="module")
def ring(client: httpx.Client) -> Iterator[httpx.Client]:
    """A client that sees one ring only; the ring is empty at first."""
    assert client.post(f"/key_rings/{RING}").status_code == 201
    headers = client.headers.copy()
    headers["X-Kms-Key-Ring"] = RING
    with httpx.Client(base_url=client.base_url, headers=headers, timeout=60) as own:
        yield own


@pytest.fixture(scope="module")
def keys(ring: httpx.Client) -> list[Key]:
    """Keys of both kinds, in states 1, 3 and 5, rotated and not, as GET /keys shows them, by id."""
    ids = []
    for number, name in enumerate(NAMES):
        members: dict[str, Any] = {"aliases": [f"Model-{number}", f"model_{number}_b"]} if number % 3 == 0 else {}
        if number % 4 == 1:
            expires_at = datetime.now(UTC) + timedelta(seconds=3, days=0 if number % 8 == 1 else number)
            members["expirationDate"] = expires_at.strftime("%Y-%m-%dT%H:%M:%SZ")
        answer = ring.post("/keys", json=create_body(name, extractable=number % 5 == 2, **members))
        assert answer.status_code == 201, answer.text
        ids.append(answer.json()["resources"][0]["id"])
    for number in (0, 3, 6):
        assert ring.post(f"/keys/{ids[number]}/actions/rotate").status_code == 204
    for number in (3, 4, 7):
        assert ring.delete(f"/keys/{ids[number]}").status_code == 204
    deadline = time.monotonic() + 30
    # Until the expiry job has stamped them too: a key is state 3 from its second on, its lastUpdateDate moves with the
    # job. Not by `listed`: the keys may expire between its GET and its HEAD.
    while len([key for key in ring.get("/keys?state=3").json()["resources"] if stamped(key)]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    whole = listed(ring, ALL)
    assert {key["id"] for key in whole} == set(ids)
    assert {key["state"] for key in whole} == {1, 3, 5}
    return whole


def listed(ring: httpx.Client, query: str) -> list[Key]:
    """What GET /keys gives; HEAD counts the same as long as nothing but a page or a search stands between."""
    answer = ring.get(f"/keys?{query}")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["metadata"]["collectionTotal"] == len(body["resources"])
    if not any(word in query for word in ("limit=", "offset=", "search=")):
        assert int(ring.head(f"/keys?{query}").headers["Key-Total"]) == len(body["resources"])
    found: list[Key] = body["resources"]
    return found


def stamped(key: Key) -> bool:
    return bool(key["lastUpdateDate"] >= key["expirationDate"])


def ids_of(keys: list[Key]) -> list[str]:
    return [key["id"] for key in keys]


@pytest.mark.parametrize("prop", SORTS)
@pytest.mark.parametrize("sign", ["", "-"])
def test_sort(ring: httpx.Client, keys: list[Key], prop: str, sign: str) -> None:
    """Keys without the property come last either way; dates are told apart by seconds here, finer in the database."""
    found = listed(ring, f"{ALL}&sort={sign}{prop}")
    assert sorted(ids_of(found)) == sorted(ids_of(keys))
    values = [key.get(prop) for key in found]
    there = [value for value in values if value is not None]
    assert there == sorted(there, reverse=sign == "-")
    assert values[len(there) :] == [None] * (len(values) - len(there))


def test_sort_by_two(ring: httpx.Client, keys: list[Key]) -> None:
    found = listed(ring, f"{ALL}&sort=-extractable,state,-id")
    wanted = sorted(keys, key=lambda key: key["id"], reverse=True)
    wanted.sort(key=lambda key: (not key["extractable"], key["state"]))
    assert ids_of(found) == ids_of(wanted)


@pytest.mark.parametrize("prop", DATES)
@pytest.mark.parametrize("op", OPERATORS)
def test_date_filters(ring: httpx.Client, keys: list[Key], prop: str, op: str) -> None:
    """Around every second there is. The database is finer than the wire: `lte` and `gt` ask for a second's end."""
    end = ".999999Z" if op in ("lte", "gt") else "Z"
    for second in {key[prop] for key in keys if prop in key}:
        wanted = {key["id"] for key in keys if prop in key and OPERATORS[op](key[prop], second)}
        term = quote(f'{prop}={op}:"{second.removesuffix("Z")}{end}"')
        assert set(ids_of(listed(ring, f"{ALL}&filter={term}"))) == wanted


def test_filters_together(ring: httpx.Client, keys: list[Key]) -> None:
    """All have to hold, also twice the same property."""
    first, last = min(key["creationDate"] for key in keys), max(key["creationDate"] for key in keys)
    terms = f'creationDate=gte:"{first}" creationDate=lt:"{last}" extractable=false state=1,3'
    found = listed(ring, f"filter={quote(terms)}")
    wanted = {key["id"] for key in keys if first <= key["creationDate"] < last and not key["extractable"]}
    assert set(ids_of(found)) == wanted & {key["id"] for key in keys if key["state"] in (1, 3)}


@pytest.mark.parametrize("prop", DATES)
def test_none_filters(ring: httpx.Client, keys: list[Key], prop: str) -> None:
    """A key that shows a date has one."""
    wanted = {key["id"] for key in keys if prop not in key}
    assert set(ids_of(listed(ring, f"{ALL}&filter={prop}=none"))) == wanted


@pytest.mark.parametrize("states", ["0", "1", "2", "3", "5", "1,3", "3,5", "0,1,2,3,5", "5,5,1"])
@pytest.mark.parametrize("extractable", ["", "true", "FALSE"])
def test_state_and_extractable(ring: httpx.Client, keys: list[Key], states: str, extractable: str) -> None:
    """As parameters and as filters."""
    numbers = {int(state) for state in states.split(",")}
    kinds = {"": {False, True}, "true": {True}, "FALSE": {False}}[extractable]
    wanted = {key["id"] for key in keys if key["state"] in numbers and key["extractable"] in kinds}
    assert set(ids_of(listed(ring, f"state={states}&extractable={extractable}"))) == wanted
    terms = f"state={states}" + (f" extractable={extractable}" if extractable else "")
    assert set(ids_of(listed(ring, f"filter={quote(terms)}"))) == wanted


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("scopes", [(), ("name",), ("alias",)])
def test_search(ring: httpx.Client, keys: list[Key], text: str, exact: bool, scopes: tuple[str, ...]) -> None:
    """A whole alias hits whatever the scopes, and comes first; the negation is the rest."""

    def matches(value: str) -> bool:
        return value.casefold() == text.casefold() if exact else text.casefold() in value.casefold()

    def hit(key: Key) -> bool:
        return text in key.get("aliases", [])

    def wanted(key: Key) -> bool:
        names = [key["name"]] if "alias" not in scopes else []
        aliases = key.get("aliases", []) if "name" not in scopes else []
        return any(matches(value) for value in (*names, *aliases)) or hit(key)

    prefix = "".join(f"{scope}:" for scope in scopes) + ("exact:" if exact else "")
    found = listed(ring, f"{ALL}&search={quote(prefix + text, safe='')}")
    assert set(ids_of(found)) == {key["id"] for key in keys if wanted(key)}
    assert [hit(key) for key in found] == sorted((hit(key) for key in found), reverse=True)
    rest = listed(ring, f"{ALL}&search={quote(f'not:{prefix}{text}', safe='')}")
    assert set(ids_of(rest)) == {key["id"] for key in keys if not wanted(key)}


def test_search_for_what_looks_like_an_option(ring: httpx.Client, keys: list[Key]) -> None:
    found = listed(ring, f"{ALL}&search=escape:exact:")
    assert [key["name"] for key in found] == ["exact:"]
    require_refused(ring.get("/keys?search=exact:"), 400, "INVALID_QUERY_PARAM_ERR", "search")


def test_search_by_id(ring: httpx.Client, keys: list[Key]) -> None:
    """The whole id in any case, in any scope; a part of an id finds nothing."""
    for key in keys:
        for text in (key["id"], key["id"].upper(), f"alias:{key['id']}"):
            assert ids_of(listed(ring, f"{ALL}&search={text}")) == [key["id"]]
        assert listed(ring, f"{ALL}&search={key['id'][:-1]}") == []


@pytest.mark.parametrize(
    "sort",
    [
        "id",
        "-id",
        "state",
        "-extractable",
        "imported",
        "lastRotateDate",
        "-creationDate",
        "-lastRotateDate,-expirationDate,-id",
        "-extractable,state,-lastUpdateDate",
        "state,deletionDate,imported,expirationDate",
    ],
)
@pytest.mark.parametrize("limit", [1, 3, 7])
def test_pages_neither_overlap_nor_skip(ring: httpx.Client, keys: list[Key], sort: str, limit: int) -> None:
    """Also when every key is equal in what is sorted on."""
    whole = ids_of(listed(ring, f"{ALL}&sort={sort}"))
    paged = []
    for offset in range(0, len(keys) + limit, limit):
        paged += ids_of(listed(ring, f"{ALL}&sort={sort}&limit={limit}&offset={offset}"))
    assert paged == whole


def test_pages_follow_the_terms(ring: httpx.Client, keys: list[Key]) -> None:
    """Across the parts that keys are read in."""

    def place(key: Key) -> tuple[bool, int, bool, str]:
        rotated = key.get("lastRotateDate")
        return (not key["extractable"], -key["state"], rotated is None, rotated or "")

    found = listed(ring, f"{ALL}&sort=-extractable,-state,lastRotateDate")
    assert [place(key) for key in found] == sorted(place(key) for key in keys)


def test_total_ignores_the_page(ring: httpx.Client, keys: list[Key]) -> None:
    metadata = ring.get(f"/keys?{ALL}&limit=2&offset=1&totalCount=true").json()["metadata"]
    assert (metadata["collectionTotal"], metadata["totalCount"]) == (2, len(keys))


def test_no_payload_in_any_list(ring: httpx.Client, keys: list[Key]) -> None:
    """Not even of standard keys (contract section 1.1)."""
    assert any(key["extractable"] for key in keys)
    assert not any("payload" in key for key in keys)


@pytest.mark.parametrize(
    "text",
    [
        "creationDate",
        "creationDate=",
        "creationDate=2022-01-01T00:00:00Z",
        'creationDate=lt:"2022-02-30T00:00:00Z"',
        'creationDate=ne:"2022-01-01T00:00:00Z"',
        "creationDate=lt:none",
        'name="x"',
        "state=4",
        "state=1 state=2 state=3 state=5",
        "extractable=1",
        "id=x",
    ],
)
def test_bad_filters(ring: httpx.Client, text: str) -> None:
    require_refused(ring.get(f"/keys?filter={quote(text)}"), 400, "INVALID_QUERY_PARAM_ERR", "filter")
    assert ring.head(f"/keys?filter={quote(text)}").status_code == 400
