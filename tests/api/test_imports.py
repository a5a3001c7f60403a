"""Keys from outside over HTTP: in clear, under import tokens, rotated; and everything that can be wrong with them."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

from hsmkms.domain.access import Role
from hsmkms.domain.importing import Oaep
from hsmkms.store.engine import Database
from hsmkms.store.tables import import_token as import_token_table
from tests.api.backstage import age
from tests.api.refusals import require_refused
from tests.support.bringing import Fetched, encrypt_nonce
from tests.support.deployment import Service, create_body, create_key
from tests.support.iam import Iam, key_client, log_in

HOUR = timedelta(hours=1)


@pytest.fixture
def instance(iam: Iam) -> Iterator[httpx.Client]:
    """An administrator's client of a fresh instance, which has no import token."""
    with key_client(iam.service, iam.token, iam.instance()) as http:
        yield http


@pytest.fixture(scope="module")
def fetched(client: httpx.Client) -> Fetched:
    """An import token of the first instance, for all tests that need no token of their own: RSA pairs take seconds."""
    return fetch(client, expiration=86_400)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def fetch(http: httpx.Client, **members: int) -> Fetched:
    assert http.post("/import_token", json=members).status_code == 200
    answer = http.get("/import_token")
    assert answer.status_code == 200, answer.text
    return Fetched.of(answer.json())


def bring(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post("/keys", json=create_body("brought", extractable=fields.pop("extractable", False), **fields))


def brought(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = bring(http, **fields)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()["resources"][0]
    return found


def opened_outside(key: bytes, ciphertext: str) -> bytes:
    """What somebody with the key reads out of a ciphertext, without this service."""
    return aes_key_unwrap(key, base64.b64decode(json.loads(base64.b64decode(ciphertext))["ciphertext"]))


@pytest.mark.parametrize("length", [16, 24, 32])
def test_a_key_in_clear(client: httpx.Client, length: int) -> None:
    key = os.urandom(length)
    made = brought(client, payload=text(key))
    assert (made["imported"], made["importedBy"], made["extractable"]) == (True, "process", False)
    assert "payload" not in made
    wrapped = client.post(f"/keys/{made['id']}/actions/wrap").json()
    assert base64.b64decode(wrapped["plaintext"]) in opened_outside(key, wrapped["ciphertext"])
    assert "payload" not in client.get(f"/keys/{made['id']}").json()["resources"][0]


@pytest.mark.parametrize("length", [1, 16, 7_500])
def test_a_standard_key_in_clear(client: httpx.Client, length: int) -> None:
    secret = os.urandom(length)
    made = brought(client, extractable=True, payload=text(secret))
    assert (made["imported"], made["payload"]) == (True, text(secret))
    assert "importedBy" not in made
    assert client.get(f"/keys/{made['id']}").json()["resources"][0]["payload"] == text(secret)


def test_an_import_token_and_its_retrievals(instance: httpx.Client) -> None:
    require_refused(instance.get("/import_token"), 409, "IMPORT_TOKEN_EXPIRED_ERR")
    made = instance.post("/import_token")
    assert made.status_code == 200
    assert set(made.json()) == {
        "id",
        "creationDate",
        "expirationDate",
        "maxAllowedRetrievals",
        "remainingRetrievals",
    }
    assert (made.json()["maxAllowedRetrievals"], made.json()["remainingRetrievals"]) == (1, 1)
    first = instance.get("/import_token").json()
    assert first["remainingRetrievals"] == 0
    assert base64.b64decode(first["payload"]).startswith(b"-----BEGIN PUBLIC KEY-----\n")
    assert len(base64.b64decode(first["nonce"])) == 12
    require_refused(instance.get("/import_token"), 409, "IMPORT_TOKEN_EXPIRED_ERR")
    # Read as often as it may, it goes on taking keys until its time is over.
    for _ in range(2):
        assert brought(instance, **Fetched.of(first).fields(os.urandom(32)))["imported"]
    # A new one replaces it at once: what is wrapped to the old one comes to nothing.
    fetch(instance)
    require_refused(bring(instance, **Fetched.of(first).fields(os.urandom(32))), 400, "INCORRECT_NONCE_IV_ERR")


@pytest.mark.parametrize(
    ("members", "target"),
    [
        ({"expiration": 299}, "expiration"),
        ({"expiration": 86_401}, "expiration"),
        ({"expiration": -1}, "expiration"),
        ({"maxAllowedRetrievals": 0}, "maxAllowedRetrievals"),
        ({"maxAllowedRetrievals": 501}, "maxAllowedRetrievals"),
    ],
)
def test_bounds_of_an_import_token(instance: httpx.Client, members: dict[str, int], target: str) -> None:
    require_refused(instance.post("/import_token", json=members), 400, "INVALID_FIELD_ERR", target)


def test_bodies_of_an_import_token(instance: httpx.Client) -> None:
    for body in ({"expiration": "600"}, {"expiration": 600.5}, {"expiration": True}, {"unknown": 1}):
        require_refused(instance.post("/import_token", json=body), 400, "BAD_BODY_ERR")
    whole = {"expiration": 86_400, "maxAllowedRetrievals": 500}
    assert instance.post("/import_token", json=whole).json()["maxAllowedRetrievals"] == 500
    assert instance.post("/import_token", content=b"null").status_code == 200


def test_retrievals_are_counted_exactly(instance: httpx.Client) -> None:
    """Twelve readers at once of a token that may be read seven times; the eighth is refused, whoever it is."""
    assert instance.post("/import_token", json={"maxAllowedRetrievals": 7}).status_code == 200
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: instance.get("/import_token"), range(12)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [409] * 5
    left = [answer.json()["remainingRetrievals"] for answer in answers if answer.status_code == 200]
    assert sorted(left) == list(range(7))


def patiently(instance: httpx.Client) -> httpx.Response:
    """A new import token. RSA pairs are made one at a time, in seconds: who waited too long is told to come again."""
    for _ in range(10):
        answer = instance.post("/import_token")
        if answer.status_code != 503:
            break
        time.sleep(float(answer.headers["Retry-After"]))
    assert answer.status_code == 200, answer.text
    return answer


def test_two_import_tokens_at_once_leave_one(instance: httpx.Client) -> None:
    with ThreadPoolExecutor(3) as threads:
        made = list(threads.map(lambda _: patiently(instance), range(3)))
    fetched = instance.get("/import_token").json()
    assert fetched["id"] in {answer.json()["id"] for answer in made}
    assert brought(instance, **Fetched.of(fetched).fields(os.urandom(32)))["imported"]


def test_a_key_under_an_import_token(client: httpx.Client, fetched: Fetched) -> None:
    key = os.urandom(32)
    made = brought(client, **fetched.fields(key))
    # SoftHSM 2.6.1 cannot do OAEP SHA-256 inside, and the metadata says so.
    assert (made["imported"], made["importedBy"]) == (True, "process")
    wrapped = client.post(f"/keys/{made['id']}/actions/wrap").json()
    assert base64.b64decode(wrapped["plaintext"]) in opened_outside(key, wrapped["ciphertext"])
    # Without the algorithm it is SHA-256.
    fields = fetched.fields(os.urandom(16))
    del fields["encryptionAlgorithm"]
    assert brought(client, **fields)["imported"]


def test_an_import_token_ends(instance: httpx.Client, database_of: Database, service: Service) -> None:
    fetched = fetch(instance)
    here = import_token_table.c.instance_id == instance.headers["Bluemix-Instance"]
    with database_of.write() as connection:
        ends = connection.execute(sqlalchemy.select(import_token_table.c.expires_at).where(here)).scalar_one()
        connection.execute(sqlalchemy.update(import_token_table).where(here).values(expires_at=ends - HOUR))
    # Its seal is broken by that as well; either way there is none.
    require_refused(bring(instance, **fetched.fields(os.urandom(32))), 409, "IMPORT_TOKEN_EXPIRED_ERR")


def test_a_public_key_that_somebody_put_into_the_database(instance: httpx.Client, database_of: Database) -> None:
    """Who can write the database must not be sent keys under a public key of his own."""
    assert instance.post("/import_token", json={"maxAllowedRetrievals": 9}).status_code == 200
    here = import_token_table.c.instance_id == instance.headers["Bluemix-Instance"]
    with database_of.write() as connection:
        connection.execute(
            sqlalchemy.update(import_token_table).where(here).values(public_pem=b"-----BEGIN PUBLIC KEY-----\nmine")
        )
    require_refused(instance.get("/import_token"), 409, "IMPORT_TOKEN_EXPIRED_ERR")


def test_wrong_proofs(client: httpx.Client, fetched: Fetched, instance: httpx.Client) -> None:
    key, before = os.urandom(32), count(client)
    good = fetched.fields(key)
    other, other_iv = encrypt_nonce(key, os.urandom(12), Oaep.SHA_256)
    wrong_nonce = {**good, "encryptedNonce": text(other), "iv": text(other_iv)}
    require_refused(bring(client, **wrong_nonce), 400, "INCORRECT_NONCE_ERR")
    bad = {
        "another IV": {**good, "iv": text(os.urandom(12))},
        # What Go does with an IV of the caller's own: plain characters, not base64 of the IV.
        "an IV as text": {**good, "iv": "abcdefghijkl"},
        "an IV of 16 bytes": {**good, "iv": text(bytes(16))},
        "a cut nonce": {**good, "encryptedNonce": text(base64.b64decode(good["encryptedNonce"])[:-1])},
        "a key for another token": {**good, "payload": fetch(instance).fields(key)["payload"]},
        "a changed key": {**good, "payload": text(bytes(512))},
        "a short text": {**good, "payload": text(bytes(12))},
        "12 bytes": fetched.fields(bytes(12)),
        "33 bytes": fetched.fields(bytes(33)),
        "another padding": {**fetched.fields(key, Oaep.SHA_1), "encryptionAlgorithm": Oaep.SHA_256.value},
    }
    answers = {case: bring(client, **fields) for case, fields in bad.items()}
    for case, answer in answers.items():
        require_refused(answer, 400, "INCORRECT_NONCE_IV_ERR")
        assert answer.json() == answers["another IV"].json(), case
    assert count(client) == before
    assert brought(client, **good)["imported"]


def count(http: httpx.Client) -> int:
    return int(http.head("/keys").headers["Key-Total"])


def test_bad_fields(client: httpx.Client, fetched: Fetched) -> None:
    good, before = fetched.fields(os.urandom(32)), count(client)
    pem = base64.b64decode(text(b"-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n")).decode()
    key = text(os.urandom(32))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"payload": text(bytes(12))}, "payload"),
        ({"payload": text(bytes(33))}, "payload"),
        ({"payload": ""}, "payload"),
        ({"payload": pem}, "payload"),
        ({"payload": "not base64"}, "payload"),
        ({"payload": key, "iv": good["iv"]}, "encryptedNonce"),
        ({"payload": key, "encryptedNonce": good["encryptedNonce"]}, "iv"),
        ({"payload": key, "encryptionAlgorithm": Oaep.SHA_256.value}, "encryptedNonce"),
        ({"iv": good["iv"], "encryptedNonce": good["encryptedNonce"]}, "payload"),
        ({"encryptionAlgorithm": Oaep.SHA_256.value}, "payload"),
        ({**good, "encryptionAlgorithm": "RSAES_PKCS1_V1_5"}, "encryptionAlgorithm"),
        ({**good, "iv": "=="}, "iv"),
        ({**good, "encryptedNonce": "#"}, "encryptedNonce"),
        ({**good, "extractable": True}, "encryptedNonce"),
        ({"extractable": True, "payload": text(bytes(7_501))}, "payload"),
        ({"extractable": True, "payload": ""}, "payload"),
    ]
    for fields, target in cases:
        answer = bring(client, **fields)
        require_refused(answer, 400, "INVALID_FIELD_ERR", target)
        assert key not in answer.text
        assert "PRIVATE" not in answer.text
    require_refused(bring(client, payload=7), 400, "BAD_BODY_ERR")
    assert count(client) == before


def test_sha1_is_an_option_that_is_off(client: httpx.Client, fetched: Fetched) -> None:
    fields = fetched.fields(os.urandom(32), Oaep.SHA_1)
    require_refused(bring(client, **fields), 403, "FEATURE_RESTRICTED_ERR")


def test_rotation(client: httpx.Client, fetched: Fetched, database_of: Database) -> None:
    """A brought key rotates to what is brought; one that was generated here does not."""
    first, second, third = (os.urandom(32) for _ in range(3))
    made = brought(client, payload=text(first))["id"]
    path = f"/keys/{made}/actions/rotate"
    old = client.post(f"/keys/{made}/actions/wrap").json()
    require_refused(client.post(path), 400, "KEY_PAYLOAD_REQ_ERR", "payload")
    require_refused(client.post(path, json={"payload": text(bytes(17))}), 400, "INVALID_FIELD_ERR", "payload")
    assert client.post(path, json=fetched.fields(second)).status_code == 204
    opened = client.post(f"/keys/{made}/actions/unwrap", json={"ciphertext": old["ciphertext"]}).json()
    assert opened["plaintext"] == old["plaintext"]
    assert base64.b64decode(opened["plaintext"]) in opened_outside(second, opened["ciphertext"])
    require_refused(client.post(path, json={"payload": text(third)}), 409, "KEY_ROTATION_NOT_PERMITTED")
    age(database_of, made, rotated_at=HOUR)
    assert client.post(path, json={"payload": text(third)}).status_code == 204
    assert len(client.get(f"/keys/{made}/versions").json()["resources"]) == 3
    generated = create_key(client)
    refused = client.post(f"/keys/{generated}/actions/rotate", json={"payload": text(third)})
    require_refused(refused, 400, "INVALID_QUERY_PARAM_ERR", "payload")
    policy = {
        "metadata": {"collectionType": "application/vnd.ibm.kms.policy+json", "collectionTotal": 1},
        "resources": [{"rotation": {"enabled": True, "interval_month": 1}}],
    }
    require_refused(client.put(f"/keys/{made}/policies", json=policy), 400, "INVALID_FIELD_ERR", "rotation")


def test_what_the_instance_policy_demands(instance: httpx.Client) -> None:
    def allow(**attributes: bool) -> None:
        data = {"enabled": True, "attributes": attributes}
        policy = {"policy_type": "keyCreateImportAccess", "policy_data": data}
        metadata = {"collectionType": "application/vnd.ibm.kms.policy+json", "collectionTotal": 1}
        answer = instance.put("/instance/policies", json={"metadata": metadata, "resources": [policy]})
        assert answer.status_code == 204, answer.text

    key = text(os.urandom(32))
    made = brought(instance, payload=key)["id"]
    fetched = fetch(instance)
    allow(enforce_token=True)
    for extractable in (False, True):
        refused = bring(instance, extractable=extractable, payload=key)
        require_refused(refused, 409, "KEY_CREATE_IMPORT_ACCESS_ERR")
    refused = instance.post(f"/keys/{made}/actions/rotate", json={"payload": key})
    require_refused(refused, 409, "KEY_CREATE_IMPORT_ACCESS_ERR")
    assert brought(instance, **fetched.fields(os.urandom(32)))["imported"]
    assert instance.post(f"/keys/{made}/actions/rotate", json=fetched.fields(os.urandom(32))).status_code == 204
    allow(import_root_key=False)
    require_refused(bring(instance, payload=key), 409, "KEY_CREATE_IMPORT_ACCESS_ERR")
    assert brought(instance, extractable=True, payload=key)["imported"]
    allow(import_standard_key=False)
    require_refused(bring(instance, extractable=True, payload=key), 409, "KEY_CREATE_IMPORT_ACCESS_ERR")
    allow(create_root_key=False)
    assert brought(instance, payload=key)["imported"]


def test_the_same_material_opens_what_it_sealed_elsewhere(instance: httpx.Client, client: httpx.Client) -> None:
    """In another instance, under another key: material is what counts (additions section 4)."""
    key = text(os.urandom(32))
    there, here = brought(instance, payload=key)["id"], brought(client, payload=key)["id"]
    sealed = instance.post(f"/keys/{there}/actions/wrap", json={"plaintext": text(b"a secret"), "aad": ["x"]}).json()
    body = {"ciphertext": sealed["ciphertext"], "aad": ["x"]}
    assert client.post(f"/keys/{here}/actions/unwrap", json=body).json()["plaintext"] == text(b"a secret")


def test_with_policies_of_its_own(client: httpx.Client) -> None:
    body = create_body("brought", payload=text(os.urandom(32)), dualAuthDelete={"enabled": True})
    made = client.post("/keys_with_policy_overrides", json=body)
    assert made.status_code == 201, made.text
    assert made.json()["resources"][0]["dualAuthDelete"]["enabled"]
    rotating = create_body("brought", payload=text(os.urandom(32)), rotation={"enabled": True, "interval_month": 1})
    require_refused(client.post("/keys_with_policy_overrides", json=rotating), 400, "INVALID_FIELD_ERR", "rotation")


def test_who_may_read_an_import_token(instance: httpx.Client, iam: Iam) -> None:
    guid = instance.headers["Bluemix-Instance"]
    assert instance.post("/import_token").status_code == 200
    reader = iam.somebody()
    iam.grant(reader.iam_id, Role.READER, serviceInstance=guid)
    with key_client(iam.service, log_in(iam.service, reader.api_key), guid) as http:
        require_refused(http.get("/import_token"), 401, None)
        require_refused(http.post("/import_token"), 401, None)
    assert instance.get("/import_token").json()["remainingRetrievals"] == 0
