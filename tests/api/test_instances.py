"""Instances are walls: what is in one cannot be seen, used or guessed at from another."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api.backstage import OtherInstance, found_instance
from tests.api.refusals import require_refused
from tests.support.deployment import Service, create_body, create_key

HEARD_OF_WITHIN_S = 1.0

KEY_CALLS: list[tuple[str, str, Any]] = [
    ("GET", "/keys/{}", None),
    ("GET", "/keys/{}/metadata", None),
    ("GET", "/keys/{}/versions", None),
    ("PATCH", "/keys/{}", {"keyRingID": "default"}),
    ("POST", "/keys/{}/actions/wrap", {}),
    ("POST", "/keys/{}/actions/unwrap", {"ciphertext": "AAAA"}),
    ("POST", "/keys/{}/actions/rewrap", {"ciphertext": "AAAA"}),
    ("POST", "/keys/{}/actions/rotate", {}),
    ("POST", "/keys/{}?action=wrap", {}),
    ("POST", "/keys/{}?action=rotate", {}),
    ("DELETE", "/keys/{}", None),
]


def account_of(client: httpx.Client) -> str:
    """The account in the CRN of a key."""
    created = client.post("/keys", json=create_body()).json()["resources"][0]
    return str(created["crn"].split(":a/")[1].split(":")[0])


def when_known(client: httpx.Client) -> httpx.Client:
    """Wait until the service has heard of the client's instance, which its change feed promises within a second."""
    started = time.monotonic()
    while client.get("/keys").status_code != 200:
        assert time.monotonic() - started < HEARD_OF_WITHIN_S
    return client


@pytest.fixture(scope="module")
def neighbour(service: Service, client: httpx.Client) -> Iterator[httpx.Client]:
    """The same administrator in a second instance of the same account."""
    other = found_instance(service, "second", account_of(client))
    headers = client.headers.copy()
    headers["Bluemix-Instance"] = other.instance_id
    with httpx.Client(base_url=client.base_url, headers=headers, timeout=60) as own:
        yield when_known(own)


@pytest.fixture(scope="module")
def stranger(service: Service) -> OtherInstance:
    """An instance and an administrator of another account."""
    return found_instance(service, "third", "f" * 32)


@pytest.fixture(scope="module")
def foreign(service: Service, stranger: OtherInstance) -> Iterator[httpx.Client]:
    """The administrator of another account in the instance of that account."""
    form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": stranger.api_key}
    token = httpx.post(f"{service.url}/identity/token", data=form).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}", "Bluemix-Instance": stranger.instance_id}
    with httpx.Client(base_url=f"{service.url}/api/v2", headers=headers, timeout=60) as own:
        yield when_known(own)


@pytest.mark.parametrize("warm", [False, True])
def test_key_of_another_instance_does_not_exist(
    client: httpx.Client, neighbour: httpx.Client, database: str, warm: bool
) -> None:
    """Every call, by id and by alias; also when the service has the key in memory for its own instance."""
    alias = f"wall-{database}-{warm}"
    key = create_key(client, aliases=[alias])
    if warm:
        for reference in (key, alias):
            assert client.post(f"/keys/{reference}/actions/wrap").status_code == 200
    for reference in (key, alias):
        for method, path, body in KEY_CALLS:
            require_refused(neighbour.request(method, path.format(reference), json=body), 404, "KEY_NOT_FOUND_ERR")
    resource = client.get(f"/keys/{key}").json()["resources"][0]
    assert resource["state"] == 1
    assert "lastRotateDate" not in resource


def test_lists_and_counts_stop_at_the_wall(client: httpx.Client, neighbour: httpx.Client) -> None:
    key, own = create_key(client, "wall list"), create_key(neighbour, "wall list")
    for query in ("", "search=wall", f"search={key}", "state=0,1,2,3,5", "filter=extractable=false"):
        listed = neighbour.get(f"/keys?{query}&limit=5000")
        assert key not in {found["id"] for found in listed.json()["resources"]}
    assert [found["id"] for found in neighbour.get("/keys?search=wall").json()["resources"]] == [own]
    total = int(neighbour.head("/keys").headers["Key-Total"])
    assert total == len(neighbour.get("/keys").json()["resources"])


def test_aliases_and_rings_are_per_instance(client: httpx.Client, neighbour: httpx.Client) -> None:
    here, there = (create_key(one, aliases=["same-word"]) for one in (client, neighbour))
    assert client.get("/keys/same-word").json()["resources"][0]["id"] == here
    assert neighbour.get("/keys/same-word").json()["resources"][0]["id"] == there
    for one in (client, neighbour):
        wrapped = one.post("/keys/same-word/actions/wrap").json()
        opened = one.post("/keys/same-word/actions/unwrap", json={"ciphertext": wrapped["ciphertext"]})
        assert opened.json()["plaintext"] == wrapped["plaintext"]
    assert client.post("/key_rings/walled").status_code == 201
    require_refused(neighbour.get("/keys", headers={"X-Kms-Key-Ring": "walled"}), 404, "KEY_RING_NOT_FOUND_ERR")
    require_refused(neighbour.patch(f"/keys/{there}", json={"keyRingID": "walled"}), 404, "KEY_RING_NOT_FOUND_ERR")
    require_refused(neighbour.delete("/key_rings/walled"), 404, "KEY_RING_NOT_FOUND_ERR")
    assert client.delete("/key_rings/walled").status_code == 204


def test_ciphertext_does_not_open_in_another_instance(client: httpx.Client, neighbour: httpx.Client) -> None:
    ciphertext = client.post(f"/keys/{create_key(client)}/actions/wrap").json()["ciphertext"]
    key = create_key(neighbour)
    for action in ("unwrap", "rewrap"):
        answer = neighbour.post(f"/keys/{key}/actions/{action}", json={"ciphertext": ciphertext})
        require_refused(answer, 422, "UNPROCESSABLE_CIPHERTEXT_ERR")


def test_standard_keys_of_each_instance_are_readable(client: httpx.Client, neighbour: httpx.Client) -> None:
    """Each instance has a sealing key of its own."""
    for one in (client, neighbour):
        created = one.post("/keys", json=create_body(extractable=True)).json()["resources"][0]
        assert one.get(f"/keys/{created['id']}").json()["resources"][0]["payload"] == created["payload"]


def test_another_accounts_instance_reads_like_one_that_does_not_exist(
    client: httpx.Client, foreign: httpx.Client, stranger: OtherInstance
) -> None:
    key = create_key(foreign, aliases=["foreign-alias"])
    nowhere = "4d4ff6f0-0000-4000-8000-000000000000"
    lists: list[tuple[str, str, Any]] = [
        ("GET", "/keys", None),
        ("POST", "/keys", create_body()),
        ("GET", "/key_rings", None),
        ("POST", "/key_rings/foreign", None),
        ("DELETE", "/key_rings/default", None),
    ]
    for method, path, body in (*lists, *KEY_CALLS):
        for reference in (key, "foreign-alias", nowhere):
            answers = [
                client.request(method, path.format(reference), json=body, headers={"Bluemix-Instance": instance})
                for instance in (stranger.instance_id, nowhere)
            ]
            for answer in answers:
                require_refused(answer, 401, None)
            assert answers[0].content == answers[1].content
    assert client.head("/keys", headers={"Bluemix-Instance": stranger.instance_id}).status_code == 401
    assert foreign.get(f"/keys/{key}").json()["resources"][0]["state"] == 1


def test_a_right_elsewhere_is_no_right_here(client: httpx.Client, foreign: httpx.Client) -> None:
    headers = {"Bluemix-Instance": client.headers["Bluemix-Instance"]}
    key = create_key(client)
    assert client.post(f"/keys/{key}/actions/wrap").status_code == 200
    for method, path, body in KEY_CALLS:
        require_refused(foreign.request(method, path.format(key), json=body, headers=headers), 401, None)
    require_refused(foreign.get("/keys", headers=headers), 401, None)
