"""Registrations over HTTP: what services write, what users see, what stands in the way of a deletion."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from hsmkms.domain.access import Role
from tests.api.refusals import require_refused
from tests.support.adopter import DATABASES, INPUT, STORAGE, Adopter, body
from tests.support.deployment import create_key
from tests.support.iam import Iam, key_client, log_in

WHOLE: dict[str, Any] = {
    "description": "a bucket",
    "preventKeyDeletion": False,
    "registrationMetadata": "ours alone",
}


@pytest.fixture(scope="module")
def storage(iam: Iam) -> Iterator[Adopter]:
    adopter = Adopter(iam)
    yield adopter
    adopter.http.close()


@pytest.fixture(scope="module")
def postgres_service(iam: Iam) -> Iterator[Adopter]:
    adopter = Adopter(iam, DATABASES, "local")
    yield adopter
    adopter.http.close()


def version_of(client: httpx.Client, key: str) -> str:
    return str(client.get(f"/keys/{key}/metadata").json()["resources"][0]["keyVersion"]["id"])


def test_a_registration_from_its_birth_to_its_end(client: httpx.Client, storage: Adopter) -> None:
    key = create_key(client)
    first = version_of(client, key)
    made = storage.register(key, "invoices", **WHOLE)
    crn = storage.crn("invoices")
    assert made == {
        "keyId": key,
        "keyName": made["keyName"],
        "resourceCrn": crn,
        "createdBy": storage.who.iam_id,
        "creationDate": made["creationDate"],
        "updatedBy": storage.who.iam_id,
        "lastUpdated": made["creationDate"],
        "description": "a bucket",
        "preventKeyDeletion": False,
        "keyVersion": {"id": first, "creationDate": made["keyVersion"]["creationDate"]},
        "registrationMetadata": "ours alone",
    }
    read = storage.write("GET", key, crn)
    assert (read.status_code, read.json()["resources"]) == (200, [made])
    # What a user sees is the same without what is for the service alone, and without an ETag.
    (seen,) = client.get(f"/keys/{key}/registrations").json()["resources"]
    assert seen == {name: value for name, value in made.items() if name != "registrationMetadata"}
    assert "ETag" not in client.get(f"/keys/{key}/registrations").headers

    assert client.post(f"/keys/{key}/actions/rotate").status_code == 204
    second = version_of(client, key)
    replaced = storage.write("PUT", key, crn, **{**WHOLE, "keyVersionId": second, "description": "re-wrapped"})
    assert replaced.status_code == 200, replaced.text
    resource = replaced.json()["resources"][0]
    assert (resource["keyVersion"]["id"], resource["description"]) == (second, "re-wrapped")
    patched = storage.write("PATCH", key, crn, preventKeyDeletion=True)
    assert patched.json()["resources"][0] == {**resource, "preventKeyDeletion": True}

    gone = storage.write("DELETE", key, crn, headers={"Prefer": "return=representation"})
    assert (gone.status_code, gone.json()["resources"]) == (200, patched.json()["resources"])
    require_refused(storage.write("DELETE", key, crn), 404, "REGISTRATION_NOT_FOUND_ERR")
    assert client.get(f"/keys/{key}/registrations").json()["resources"] == []


def test_the_same_wish_again_is_no_conflict_and_another_one_is(client: httpx.Client, storage: Adopter) -> None:
    """Clients repeat a POST whose answer was lost (additions section 1.5)."""
    key = create_key(client)
    assert storage.register(key, "again", **WHOLE) == storage.register(key, "again", **WHOLE)
    other = storage.write("POST", key, storage.crn("again"), description="another")
    require_refused(other, 409, "REGISTRATION_ALREADY_EXISTS_ERR")
    assert storage.register(key, "bare")["preventKeyDeletion"] is False
    assert storage.write("DELETE", key, storage.crn("bare")).status_code == 204


def test_entity_tags(client: httpx.Client, storage: Adopter) -> None:
    """If-Match compares weakly and takes a list; without it the last writer wins."""
    key, crn = create_key(client), storage.crn("tagged")
    first = storage.write("POST", key, crn, description="one").headers["ETag"]
    assert storage.write("GET", key, crn).headers["ETag"] == first
    assert storage.http.get(f"/keys/{key}/registrations").headers["ETag"] == first
    second = storage.write("PATCH", key, crn, {"If-Match": first}, description="two")
    assert second.status_code == 200
    assert second.headers["ETag"] != first
    stale = storage.write("PATCH", key, crn, {"If-Match": first}, description="three")
    require_refused(stale, 412, "if_match_stale")
    listed = {"If-Match": f'"other", W/{second.headers["ETag"]}'}
    assert storage.write("PATCH", key, crn, listed, description="three").status_code == 200
    assert storage.write("PATCH", key, crn, {"If-Match": "*"}, description="four").status_code == 200
    require_refused(storage.write("PATCH", key, crn, {"If-Match": "nonsense"}, description="5!"), 412, "if_match_stale")
    # A registration that was made anew has none of the old one's tags.
    assert storage.write("DELETE", key, crn).status_code == 204
    assert storage.write("POST", key, crn, description="one").headers["ETag"] != first


def test_versions_only_go_forward(client: httpx.Client, storage: Adopter) -> None:
    key, other, crn = create_key(client), create_key(client), storage.crn("versions")
    storage.register(key, "versions")
    first = version_of(client, key)
    whole = {**WHOLE, "keyVersionId": first}
    require_refused(storage.write("PUT", key, crn, **whole), 422, "KEY_VERSION_INVALID")
    assert storage.write("PATCH", key, crn, keyVersionId=first).status_code == 200
    assert client.post(f"/keys/{key}/actions/rotate").status_code == 204
    second = version_of(client, key)
    assert storage.write("PUT", key, crn, **{**whole, "keyVersionId": second}).status_code == 200
    for wrong in (first, version_of(client, other), str(uuid.uuid4()), "nothing"):
        require_refused(storage.write("PUT", key, crn, **{**whole, "keyVersionId": wrong}), 422, "KEY_VERSION_INVALID")
        require_refused(storage.write("PATCH", key, crn, keyVersionId=wrong), 422, "KEY_VERSION_INVALID")
    for name in whole:
        partial = {other: value for other, value in whole.items() if other != name}
        require_refused(storage.write("PUT", key, crn, **partial), 400, "BAD_BODY_ERR")


def test_only_a_service_and_only_its_own(
    client: httpx.Client, iam: Iam, storage: Adopter, postgres_service: Adopter
) -> None:
    key, crn = create_key(client), storage.crn("mine")
    storage.register(key, "mine")
    path = f"/keys/{key}/registrations/{quote(crn, safe='')}"
    require_refused(client.post(path, json=body()), 403, "SERVICE_ONLY_ERR")
    require_refused(client.delete(path), 403, "SERVICE_ONLY_ERR")
    for method in ("POST", "PATCH", "DELETE", "GET"):
        members: dict[str, Any] = {} if method in ("DELETE", "GET") else {"description": "x!"}
        require_refused(postgres_service.write(method, key, crn, **members), 403, "RESOURCE_OWNER_ERR")
    # Neither another instance of its own service, nor another account, region or service of the same instance.
    parts = crn.split(":")
    for place, value in ((4, DATABASES), (5, "eu-de"), (6, "a/" + "f" * 32), (7, str(uuid.uuid4()))):
        foreign = ":".join([*parts[:place], value, *parts[place + 1 :]])
        require_refused(storage.write("POST", key, foreign), 403, "RESOURCE_OWNER_ERR")
    # A service sees its own only, a user everybody's.
    postgres_service.register(key, "theirs")
    assert {r["resourceCrn"] for r in storage.http.get(f"/keys/{key}/registrations").json()["resources"]} == {crn}
    assert len(client.get(f"/keys/{key}/registrations").json()["resources"]) == 2
    nobody = iam.client(iam.somebody(iam.source(STORAGE, str(uuid.uuid4()))))
    require_refused(nobody.post(path, json=body()), 401, None)
    nobody.close()


def test_what_a_registration_needs_of_its_key(client: httpx.Client, storage: Adopter) -> None:
    standard, key = create_key(client, extractable=True), create_key(client)
    require_refused(storage.write("POST", standard, storage.crn("x")), 422, "KEY_ROOT_REQ_REG_ERR")
    require_refused(storage.write("POST", str(uuid.uuid4()), storage.crn("x")), 404, "KEY_NOT_FOUND_ERR")
    storage.register(key, "kept")
    assert client.post(f"/keys/{key}/actions/disable").status_code == 204
    crn = storage.crn("kept")
    require_refused(storage.write("POST", key, storage.crn("new")), 422, "KEY_INVALID_STATE_ERR")
    require_refused(storage.write("PATCH", key, crn, description="new"), 422, "KEY_INVALID_STATE_ERR")
    assert storage.write("GET", key, crn).status_code == 200
    assert storage.write("DELETE", key, crn).status_code == 204


@pytest.mark.parametrize(
    "crn",
    [
        "nothing",
        "crn:v1:bluemix:public:cloud-object-storage:global:a/x:y",
        "crn:v1:bluemix:public:cloud-object-storage:global:a/x:y:bucket",
        "crn:v2:bluemix:public:cloud-object-storage:global:a/x:y:bucket:z",
        "crn:v1:bluemix:public:cloud-object-storage:global:x:y:bucket:z",
        "crn:v1:bluemix:public:cloud-object-storage:global:a/x::bucket:z",
        "crn:v1:bluemix:public:cloud-object-storage:global:a/x:y:bucket:*",
        "crn:v1:bluemix:public:cloud-object-storage:global:a/x:y:bucket:a b",
        "crn:v1:bluemix:public:cloud-object-storage:global:a/x:y:bucket:" + "z" * 513,
    ],
)
def test_a_crn_that_is_none(client: httpx.Client, storage: Adopter, crn: str) -> None:
    require_refused(storage.write("POST", create_key(client), crn), 400, "INVALID_FIELD_ERR", "resourceCrn")


def test_bad_bodies(client: httpx.Client, storage: Adopter) -> None:
    key, crn = create_key(client), storage.crn("bad")
    path = f"/keys/{key}/registrations/{quote(crn, safe='')}"
    for members, code, target in (
        ({"description": "x"}, "INVALID_FIELD_ERR", "description"),
        ({"description": "x" * 241}, "INVALID_FIELD_ERR", "description"),
        ({"registrationMetadata": "x" * 4097}, "INVALID_FIELD_ERR", "registrationMetadata"),
        ({"preventKeyDeletion": "yes"}, "BAD_BODY_ERR", None),
        ({"unknown": 1}, "BAD_BODY_ERR", None),
        ({"keyVersionId": version_of(client, key)}, "BAD_BODY_ERR", None),
    ):
        require_refused(storage.write("POST", key, crn, **members), 400, code, target)
    other_type = {**body(), "metadata": {"collectionType": "x", "collectionTotal": 1}}
    require_refused(storage.http.post(path, json=other_type), 400, "BAD_BODY_ERR")
    other_total = {**body(), "metadata": {"collectionType": INPUT, "collectionTotal": 2}}
    require_refused(storage.http.post(path, json=other_total), 400, "COLLECTION_TOTAL_MISMATCH_ERR")
    two = {"metadata": {"collectionType": INPUT, "collectionTotal": 2}, "resources": [{}, {}]}
    require_refused(storage.http.post(path, json=two), 400, "BAD_BODY_ERR")
    require_refused(storage.http.put(path), 400, "NO_BODY_ERR")
    # Python's client encodes a CRN that is encoded already; both name the same resource.
    assert storage.http.post(f"/keys/{key}/registrations/{quote(quote(crn, safe=''), safe='')}").status_code == 201
    assert storage.write("GET", key, crn).status_code == 200


def test_queries(client: httpx.Client, iam: Iam, storage: Adopter, postgres_service: Adopter) -> None:
    """Every segment, `*` for whole ones, a prefix in the last; over all keys not in the first eight."""
    key, other = create_key(client), create_key(client)
    names = ["photos", "photos/2024", "photos/2025", "Photos", "video%"]
    for number, name in enumerate(names):
        storage.register(key, name, preventKeyDeletion=number % 2 == 0)
    storage.register(other, "photos")
    postgres_service.register(key, "photos")
    mine = storage.prefix

    def found(query: str, path: str = f"/keys/{key}/registrations", **more: str) -> list[str]:
        answer = client.get(path, params={"urlEncodedResourceCRNQuery": query, **more})
        assert answer.status_code == 200, answer.text
        return [r["resourceCrn"].removeprefix(f"{mine}:bucket:") for r in answer.json()["resources"]]

    assert found(f"{mine}:bucket:photos") == ["photos"]
    assert sorted(found(f"{mine}:bucket:photos*")) == ["photos", "photos/2024", "photos/2025"]
    assert found(f"{mine}:bucket:photos/2025*") == ["photos/2025"]
    assert found(f"{mine}:bucket:video%*") == found(f"{mine}:*:video%") == ["video%"]
    assert sorted(found(f"{mine}:*:*")) == sorted(names)
    assert len(found("crn:v1:bluemix:public:*:*:*:*:*:*")) == len(names) + 1
    assert len(found(f"crn:v1:bluemix:public:{DATABASES}:*:*:*:*:*")) == 1
    assert found(quote(f"{mine}:bucket:photos", safe="")) == ["photos"]
    assert sorted(found(f"{mine}:*:*", preventKeyDeletion="true")) == sorted(names[::2])
    assert sorted(found(f"{mine}:*:*", preventKeyDeletion="false")) == sorted(names[1::2])
    everywhere = "/keys/registrations"
    assert found(f"{mine}:bucket:photos", everywhere) == ["photos", "photos"]
    paged = client.get(
        everywhere, params={"urlEncodedResourceCRNQuery": f"{mine}:*:*", "limit": 2, "offset": 5, "totalCount": "true"}
    ).json()
    assert paged["metadata"]["totalCount"] == 6 + len(client_leftovers(client, mine, key, other))
    assert paged["metadata"]["collectionTotal"] == len(paged["resources"])
    for wrong in ("x", f"{mine}:bucket", f"{mine}:buc*:x", f"{mine}:*:a*b", "crn:v1:bluemix:public:s:r:x:i:*:*"):
        answer = client.get(f"/keys/{key}/registrations", params={"urlEncodedResourceCRNQuery": wrong})
        require_refused(answer, 400, "INVALID_QUERY_PARAM_ERR", "urlEncodedResourceCRNQuery")
    starred = client.get(everywhere, params={"urlEncodedResourceCRNQuery": "crn:v1:bluemix:public:*:*:*:*:*:*"})
    require_refused(starred, 400, "INVALID_QUERY_PARAM_ERR", "urlEncodedResourceCRNQuery")


def client_leftovers(client: httpx.Client, prefix: str, *but: str) -> list[Any]:
    """Registrations that other tests of this module left behind."""
    found = client.get("/keys/registrations", params={"urlEncodedResourceCRNQuery": f"{prefix}:*:*", "limit": 5000})
    return [r for r in found.json()["resources"] if r["keyId"] not in but]


def test_the_list_of_all_keys_shows_what_the_caller_may_see(client: httpx.Client, iam: Iam, storage: Adopter) -> None:
    ring = f"ring-{uuid.uuid4()}"
    assert client.post(f"/key_rings/{ring}").status_code == 201
    made = client.post("/keys", json=_root("inside"), headers={"X-Kms-Key-Ring": ring}).json()
    inside, outside = made["resources"][0]["id"], create_key(client)
    storage.register(inside, "in")
    storage.register(outside, "out")
    reader, one = iam.somebody(), iam.somebody()
    iam.grant(reader.iam_id, Role.READER, keyRing=ring)
    iam.grant(one.iam_id, Role.READER, resource=inside)
    with iam.client(reader) as http:
        assert {r["keyId"] for r in http.get("/keys/registrations").json()["resources"]} == {inside}
        assert http.get(f"/keys/{inside}/registrations").status_code == 200
        require_refused(http.get(f"/keys/{outside}/registrations"), 401, None)
    with iam.client(one) as http:
        # As in lists of keys, a policy on a single key shows nothing there.
        require_refused(http.get("/keys/registrations"), 401, None)
        assert len(http.get(f"/keys/{inside}/registrations").json()["resources"]) == 1
    narrowed = client.get("/keys/registrations", headers={"X-Kms-Key-Ring": ring}).json()["resources"]
    assert {r["keyId"] for r in narrowed} == {inside}


def _root(name: str) -> dict[str, Any]:
    kind = "application/vnd.ibm.kms.key+json"
    return {
        "metadata": {"collectionType": kind, "collectionTotal": 1},
        "resources": [{"type": kind, "name": name, "extractable": False}],
    }


def test_what_guards_a_key_against_deletion(client: httpx.Client, storage: Adopter) -> None:
    """A registration asks for `force`; one with preventKeyDeletion forbids it, and both say which resource it is."""
    key, crn = create_key(client), storage.crn("worm")
    storage.register(key, "plain")
    refused = client.delete(f"/keys/{key}")
    assert refused.status_code == 409
    (reason,) = refused.json()["resources"][0]["reasons"]
    assert reason["code"] == "PROTECTED_RESOURCE_ERR"
    assert reason["target"] == {"type": "query_param", "name": "force"}
    assert storage.crn("plain") in reason["message"]
    storage.register(key, "worm", preventKeyDeletion=True)
    for path in (f"/keys/{key}", f"/keys/{key}?force=true"):
        refused = client.delete(path)
        require_refused(refused, 409, "PREV_KEY_DEL_ERR")
        assert crn in refused.text
    assert storage.write("PATCH", key, crn, preventKeyDeletion=False).status_code == 200
    assert client.delete(f"/keys/{key}?force=true").status_code == 204
    # Until the purge everybody still sees what was protected, and its service can end it.
    assert len(client.get(f"/keys/{key}/registrations").json()["resources"]) == 2
    require_refused(storage.write("PATCH", key, crn, description="late"), 422, "KEY_INVALID_STATE_ERR")
    assert storage.write("DELETE", key, crn).status_code == 204


def test_no_registration_slips_past_a_deletion(client: httpx.Client, iam: Iam, storage: Adopter) -> None:
    """Of a registration that prevents deletion and a deletion at the same moment exactly one is done."""
    with ThreadPoolExecutor(1) as pool, key_client(iam.service, log_in(iam.service, storage.who.api_key)) as http:
        for number in range(12):
            key, start = create_key(client), threading.Barrier(2)
            path = f"/keys/{key}/registrations/{quote(storage.crn(f'race{number}'), safe='')}"
            registering = pool.submit(_after, start, http, path)
            start.wait()
            deleted = client.delete(f"/keys/{key}?force=true").status_code
            assert (registering.result(), deleted) in {(201, 409), (422, 204)}


def _after(start: threading.Barrier, http: httpx.Client, path: str) -> int:
    start.wait()
    return http.post(path, json=body(preventKeyDeletion=True)).status_code
