"""A refusal leaves the database and the token as they were: no row, no pending object, no orphan on the token."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.api.backstage import row_counts
from tests.api.refusals import require_refused
from tests.support.deployment import Service, create_body, create_key
from tests.support.iam import Iam, key_client

DEK = base64.b64encode(bytes(range(32))).decode()
SHORT = base64.b64encode(bytes(31)).decode()
NOBODY = "4d4ff6f0-0000-4000-8000-000000000000"


@dataclass(frozen=True)
class Case:
    """A request that is refused. `{root}`, `{standard}`, `{deleted}`, `{rotated}` in the path name prepared keys."""

    method: str
    path: str
    status: int
    code: str | None
    target: str | None = None
    body: Any = None
    headers: tuple[tuple[str, str], ...] = ()


CASES: dict[str, Case] = {
    "create in no ring": Case(
        "POST", "/keys", 404, "KEY_RING_NOT_FOUND_ERR", body=create_body(), headers=(("X-Kms-Key-Ring", "nowhere"),)
    ),
    "create with alias in use": Case(
        "POST", "/keys", 409, "KEY_ALIAS_NOT_UNIQUE_ERR", body=create_body(aliases=["free-alias", "half-made-taken"])
    ),
    "create standard with alias in use": Case(
        "POST",
        "/keys",
        409,
        "KEY_ALIAS_NOT_UNIQUE_ERR",
        body=create_body(extractable=True, aliases=["half-made-taken"]),
    ),
    "create with alias of a deleted key": Case(
        "POST", "/keys", 409, "KEY_ALIAS_NOT_UNIQUE_ERR", body=create_body(aliases=["half-made-gone"])
    ),
    "create with short name": Case("POST", "/keys", 400, "INVALID_FIELD_ERR", "name", body=create_body("x")),
    "create with long name": Case("POST", "/keys", 400, "INVALID_FIELD_ERR", "name", body=create_body("x" * 91)),
    "create expired": Case(
        "POST",
        "/keys",
        400,
        "INVALID_FIELD_ERR",
        "expirationDate",
        body=create_body(expirationDate="2001-01-01T00:00:00Z"),
    ),
    "create with nul in tag": Case("POST", "/keys", 400, "INVALID_FIELD_ERR", "tags", body=create_body(tags=["a\0"])),
    "create two": Case(
        "POST",
        "/keys",
        400,
        "BAD_BODY_ERR",
        body={**create_body(), "resources": 2 * create_body()["resources"]},  # type: ignore[operator]
    ),
    "create without body": Case("POST", "/keys", 400, "NO_BODY_ERR"),
    "import of 31 bytes": Case("POST", "/keys", 400, "INVALID_FIELD_ERR", "payload", body=create_body(payload=SHORT)),
    "import by nonce": Case("POST", "/keys", 400, "INVALID_FIELD_ERR", "payload", body=create_body(encryptedNonce=DEK)),
    "import without a token": Case(
        "POST", "/keys", 409, "IMPORT_TOKEN_EXPIRED_ERR", body=create_body(payload=DEK, encryptedNonce=DEK, iv=DEK)
    ),
    "import with an alias in use": Case(
        "POST", "/keys", 409, "KEY_ALIAS_NOT_UNIQUE_ERR", body=create_body(payload=DEK, aliases=["half-made-taken"])
    ),
    "create unknown instance": Case("POST", "/keys", 401, None, body=create_body(), headers=(("X", NOBODY),)),
    "rotate standard": Case("POST", "/keys/{standard}/actions/rotate", 400, "KEY_ROOT_REQ_ERR"),
    "rotate deleted": Case("POST", "/keys/{deleted}/actions/rotate", 410, "KEY_DELETED_ERR"),
    "rotate again": Case("POST", "/keys/{rotated}/actions/rotate", 409, "KEY_ROTATION_NOT_PERMITTED"),
    "rotate again, older spelling": Case("POST", "/keys/{rotated}?action=rotate", 409, "KEY_ROTATION_NOT_PERMITTED"),
    "rotate nobody": Case("POST", f"/keys/{NOBODY}/actions/rotate", 404, "KEY_NOT_FOUND_ERR"),
    "rotate with payload": Case(
        "POST", "/keys/{root}/actions/rotate", 400, "INVALID_QUERY_PARAM_ERR", "payload", body={"payload": DEK}
    ),
    "rotate unknown member": Case("POST", "/keys/{root}/actions/rotate", 400, "BAD_BODY_ERR", body={"force": True}),
    "rotate in other ring": Case(
        "POST", "/keys/{root}/actions/rotate", 404, "KEY_NOT_FOUND_ERR", headers=(("X-Kms-Key-Ring", "elsewhere"),)
    ),
    "delete twice": Case("DELETE", "/keys/{deleted}", 410, "KEY_DELETED_ERR"),
    "delete in other ring": Case(
        "DELETE", "/keys/{root}", 404, "KEY_NOT_FOUND_ERR", headers=(("X-Kms-Key-Ring", "elsewhere"),)
    ),
    "move nowhere": Case("PATCH", "/keys/{root}", 404, "KEY_RING_NOT_FOUND_ERR", body={"keyRingID": "nowhere"}),
    "move without body": Case("PATCH", "/keys/{root}", 400, "NO_BODY_ERR"),
    "move unknown member": Case("PATCH", "/keys/{root}", 400, "BAD_BODY_ERR", body={"name": "new name"}),
    "ring default": Case("POST", "/key_rings/default", 400, "KEY_RING_RESERVED_ERR"),
    "ring of one letter": Case("POST", "/key_rings/x", 400, "INVALID_FIELD_ERR", "keyRingID"),
    "ring with underscore": Case("POST", "/key_rings/a_b", 400, "INVALID_FIELD_ERR", "keyRingID"),
    "ring of 101": Case("POST", "/key_rings/" + "x" * 101, 400, "INVALID_FIELD_ERR", "keyRingID"),
    "wrap standard": Case("POST", "/keys/{standard}/actions/wrap", 400, "KEY_ROOT_REQ_ERR", body={"plaintext": DEK}),
    "wrap deleted": Case("POST", "/keys/{deleted}/actions/wrap", 410, "KEY_DELETED_ERR", body={"plaintext": DEK}),
    "unwrap with foreign text": Case(
        "POST", "/keys/{root}/actions/unwrap", 422, "UNPROCESSABLE_CIPHERTEXT_ERR", body={"ciphertext": DEK}
    ),
}


@pytest.fixture(scope="module")
def client(iam: Iam) -> Iterator[httpx.Client]:
    """An administrator's client of a fresh instance, which has no import token."""
    with key_client(iam.service, iam.token, iam.instance()) as http:
        yield http


@pytest.fixture(scope="module")
def keys(client: httpx.Client) -> dict[str, str]:
    """Keys in every state that matters here."""
    made = {
        "root": create_key(client, aliases=["half-made-taken"]),
        "standard": create_key(client, extractable=True),
        "deleted": create_key(client, aliases=["half-made-gone"]),
        "rotated": create_key(client),
    }
    assert client.delete(f"/keys/{made['deleted']}").status_code == 204
    assert client.post(f"/keys/{made['rotated']}/actions/rotate").status_code == 204
    return made


@pytest.fixture(scope="module", autouse=True)
def no_orphan_on_the_token(service: Service, keys: dict[str, str]) -> Iterator[None]:
    """What `doctor` finds wrong with token and rows is the same before and after this module."""
    before = _wrongs(service)
    yield
    assert _wrongs(service) == before


def _wrongs(service: Service) -> list[str]:
    done = service.state.run("doctor", stdin=b"", **service.extra)
    report = done.stdout.decode().splitlines()
    assert any(line.startswith("ok") for line in report), done.stderr.decode()
    return sorted(line for line in report if line.startswith("WRONG") and " rows have their object" not in line)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_refusal_changes_nothing(service: Service, client: httpx.Client, keys: dict[str, str], case: Case) -> None:
    headers = {"Bluemix-Instance" if name == "X" else name: value for name, value in case.headers}
    before = row_counts(service)
    answer = client.request(case.method, case.path.format(**keys), json=case.body, headers=headers)
    require_refused(answer, case.status, case.code, case.target)
    assert row_counts(service) == before


def test_resources_keep_their_state(client: httpx.Client, keys: dict[str, str]) -> None:
    """After all of the above."""
    states = {name: client.get(f"/keys/{key}").json()["resources"][0]["state"] for name, key in keys.items()}
    assert states == {"root": 1, "standard": 1, "deleted": 5, "rotated": 1}
    assert len(client.get(f"/keys/{keys['rotated']}/versions").json()["resources"]) == 2
    assert len(client.get(f"/keys/{keys['root']}/versions").json()["resources"]) == 1


def test_alias_of_a_refused_request_stays_free(client: httpx.Client, keys: dict[str, str]) -> None:
    """`free-alias` stood beside a taken one in a request that was refused."""
    require_refused(client.get("/keys/free-alias"), 404, "KEY_NOT_FOUND_ERR")


def test_eight_at_once_for_one_alias(service: Service, client: httpx.Client, keys: dict[str, str]) -> None:
    """One wins; the seven token objects of the others are destroyed."""
    before = row_counts(service)
    body = create_body(aliases=["fought-over"])
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: client.post("/keys", json=body), range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7, [answer.text for answer in answers]
    for answer in answers:
        if answer.status_code == 409:
            require_refused(answer, 409, "KEY_ALIAS_NOT_UNIQUE_ERR")
    grown = {name: count - before[name] for name, count in row_counts(service).items() if count != before[name]}
    assert grown == {"key": 1, "key_version": 1, "key_alias": 1, "change": 1}


def test_eight_rotations_at_once(service: Service, client: httpx.Client, keys: dict[str, str]) -> None:
    """One wins; the version objects of the others are destroyed."""
    key, before = create_key(client), row_counts(service)
    with ThreadPoolExecutor(8) as threads:
        codes = sorted(threads.map(lambda _: client.post(f"/keys/{key}/actions/rotate").status_code, range(8)))
    assert codes == [204] + [409] * 7
    grown = {name: count - before[name] for name, count in row_counts(service).items() if count != before[name]}
    assert grown == {"key_version": 1, "change": 1}
