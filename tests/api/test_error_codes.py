"""Every reason code of the contract (section 5, additions section 7) is provoked through HTTP, and the whole answer
checked. A code without a row here fails, and so does one that is said to be missing and is not."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy

from hsmkms import errors
from hsmkms.api.problems import kms_problem
from hsmkms.domain.ids import new_id
from hsmkms.store.engine import Database
from hsmkms.store.tables import key as key_table
from hsmkms.store.tables import key_version
from tests.api.backstage import age
from tests.api.reason_codes import CONTRACT, NEVER, NOT_HERE_YET, OURS
from tests.api.refusals import require_refused
from tests.api.test_instance_policies import on, put
from tests.support.adopter import Adopter
from tests.support.bringing import Fetched
from tests.support.deployment import Service, create_body, create_key
from tests.support.iam import Iam, key_client

KEY = "application/vnd.ibm.kms.key+json"
PAYLOAD = base64.b64encode(bytes(32)).decode()


@dataclass(frozen=True)
class Here:
    """A service, its administrator, and an instance of the test's own."""

    service: Service
    iam: Iam
    own: httpx.Client
    database: Database


Provoke = Callable[[Here], httpx.Response]
ROWS: dict[str, tuple[Provoke, str | None]] = {}


def provokes(code: str, target: str | None = None) -> Callable[[Provoke], Provoke]:
    """The row of a code: what provokes it, and the field or parameter that the answer has to name."""

    def row(provoke: Provoke) -> Provoke:
        assert code not in ROWS
        ROWS[code] = (provoke, target)
        return provoke

    return row


@provokes("BAD_BODY_ERR")
def bad_body(here: Here) -> httpx.Response:
    return here.own.post("/keys", content=b'{"metadata":')


@provokes("BODY_QUERY_PARAM_MISMATCH_ERR")
def body_query_param_mismatch(here: Here) -> httpx.Response:
    return put(here.own, ("metrics", {"enabled": True}), query="?policy=rotation")


@provokes("COLLECTION_TOTAL_MISMATCH_ERR")
def collection_total_mismatch(here: Here) -> httpx.Response:
    body = create_body()
    return here.own.post("/keys", json={**body, "metadata": {"collectionType": KEY, "collectionTotal": 2}})


@provokes("NUM_COLLECTION_RESOURCE_ERR")
def num_collection_resource(here: Here) -> httpx.Response:
    return put(here.own, ("metrics", {"enabled": True}), ("rotation", {"enabled": False}), query="?policy=metrics")


@provokes("BEARER_SUB_EXTRACTION_ERR")
def bearer_sub_extraction(here: Here) -> httpx.Response:
    return here.own.get("/keys", headers={"Authorization": "Bearer no-token"})


@provokes("INVALID_FIELD_ERR", "name")
def invalid_field(here: Here) -> httpx.Response:
    return here.own.post("/keys", json=create_body("x"))


@provokes("INVALID_QUERY_PARAM_ERR", "limit")
def invalid_query_param(here: Here) -> httpx.Response:
    return here.own.get("/keys?limit=5001")


@provokes("KEY_SEARCH_TOO_BROAD")
def key_search_too_broad(here: Here) -> httpx.Response:
    """Of 5,001 keys, 5,000 of them copies of one row."""
    found = key_table.c.id == create_key(here.own, extractable=True)
    with here.database.write() as connection:
        row = connection.execute(sqlalchemy.select(key_table).where(found)).mappings().one()
        connection.execute(sqlalchemy.insert(key_table), [{**row, "id": new_id()} for _ in range(5_000)])
    return here.own.get("/keys?search=key")


@provokes("NO_BODY_ERR")
def no_body(here: Here) -> httpx.Response:
    return here.own.post(f"/keys/{create_key(here.own)}/actions/unwrap")


@provokes("KEY_ROOT_REQ_ERR")
def key_root_req(here: Here) -> httpx.Response:
    return here.own.post(f"/keys/{create_key(here.own, extractable=True)}/actions/wrap")


@provokes("KEY_RESTORE_EXPIRED")
def key_restore_expired(here: Here) -> httpx.Response:
    key = deleted_key(here)
    age(here.database, key, deleted_at=timedelta(days=30))
    return here.own.post(f"/keys/{key}/restore")


@provokes("KEY_EXPIRED_ERR")
def key_expired(here: Here) -> httpx.Response:
    key = deleted_key(here, expirationDate="2100-01-01T00:00:00Z")
    age(here.database, key, deleted_at=timedelta(minutes=1), expires_at=timedelta(days=365 * 80))
    return here.own.post(f"/keys/{key}/restore")


@provokes("UNAUTHORIZED_ERR")
def unauthorized(here: Here) -> httpx.Response:
    with here.iam.client(here.iam.somebody(), here.own.headers["Bluemix-Instance"]) as nobody:
        return nobody.get("/keys")


@provokes("FEATURE_RESTRICTED_ERR")
def feature_restricted(here: Here) -> httpx.Response:
    fields: dict[str, Any] = dict.fromkeys(("payload", "encryptedNonce", "iv"), PAYLOAD)
    return here.own.post("/keys", json=create_body(**fields, encryptionAlgorithm="RSAES_OAEP_SHA_1"))


@provokes("KEY_PAYLOAD_REQ_ERR", "payload")
def key_payload_req(here: Here) -> httpx.Response:
    return here.own.post(f"/keys/{create_key(here.own, payload=PAYLOAD)}/actions/rotate")


@provokes("INCORRECT_NONCE_ERR")
def incorrect_nonce(here: Here) -> httpx.Response:
    fields: dict[str, Any] = {**replace(import_token(here), nonce=bytes(12)).fields(bytes(32))}
    return here.own.post("/keys", json=create_body(**fields))


@provokes("INCORRECT_NONCE_IV_ERR")
def incorrect_nonce_iv(here: Here) -> httpx.Response:
    fields: dict[str, Any] = {**import_token(here).fields(bytes(32)), "iv": PAYLOAD}
    return here.own.post("/keys", json=create_body(**fields))


@provokes("IMPORT_TOKEN_EXPIRED_ERR")
def import_token_expired(here: Here) -> httpx.Response:
    return here.own.get("/import_token")


@provokes("SERVICE_ONLY_ERR")
def service_only(here: Here) -> httpx.Response:
    return here.own.get("/events")


@provokes("RESOURCE_OWNER_ERR")
def resource_owner(here: Here) -> httpx.Response:
    with adopter(here) as one, adopter(here) as other:
        return one.write("POST", create_key(here.own), other.crn("bucket"))


@provokes("PROTECTED_RESOURCE_ERR", "force")
def protected_resource(here: Here) -> httpx.Response:
    return here.own.delete(f"/keys/{registered_key(here)}")


@provokes("PREV_KEY_DEL_ERR")
def prev_key_del(here: Here) -> httpx.Response:
    return here.own.delete(f"/keys/{registered_key(here, preventKeyDeletion=True)}?force=true")


@provokes("KEY_INVALID_STATE_ERR")
def key_invalid_state(here: Here) -> httpx.Response:
    with adopter(here) as one:
        return one.write("POST", deleted_key(here), one.crn("bucket"))


@provokes("KEY_ROOT_REQ_REG_ERR")
def key_root_req_reg(here: Here) -> httpx.Response:
    with adopter(here) as one:
        return one.write("POST", create_key(here.own, extractable=True), one.crn("bucket"))


@provokes("KEY_VERSION_INVALID")
def key_version_invalid(here: Here) -> httpx.Response:
    with adopter(here) as one:
        key = create_key(here.own)
        one.register(key, "bucket")
        return one.write("PATCH", key, one.crn("bucket"), keyVersionId=new_id())


@provokes("REGISTRATION_NOT_FOUND_ERR")
def registration_not_found(here: Here) -> httpx.Response:
    with adopter(here) as one:
        return one.write("GET", create_key(here.own), one.crn("bucket"))


@provokes("REGISTRATION_ALREADY_EXISTS_ERR")
def registration_already_exists(here: Here) -> httpx.Response:
    with adopter(here) as one:
        key = create_key(here.own)
        one.register(key, "bucket")
        return one.write("POST", key, one.crn("bucket"), description="another")


@provokes("KEY_NOT_FOUND_ERR")
def key_not_found(here: Here) -> httpx.Response:
    return here.own.get("/keys/nowhere/metadata")


@provokes("KEY_RING_NOT_FOUND_ERR")
def key_ring_not_found(here: Here) -> httpx.Response:
    return here.own.post("/keys", json=create_body(), headers={"X-Kms-Key-Ring": "nowhere"})


@provokes("AUTHORIZATIONS_NOT_MET")
def authorizations_not_met(here: Here) -> httpx.Response:
    assert put(here.own, ("dualAuthDelete", {"enabled": True})).status_code == 204
    return here.own.delete(f"/keys/{create_key(here.own)}")


@provokes("NOT_DUAL_AUTH_ERR")
def not_dual_auth(here: Here) -> httpx.Response:
    return here.own.post(f"/keys/{create_key(here.own)}/actions/setKeyForDeletion")


@provokes("KEY_ACTION_INVALID_STATE_ERR")
def key_action_invalid_state(here: Here) -> httpx.Response:
    return here.own.post(f"/keys/{create_key(here.own)}/actions/enable")


@provokes("KEY_CREATE_IMPORT_ACCESS_ERR")
def key_create_import_access(here: Here) -> httpx.Response:
    assert put(here.own, ("keyCreateImportAccess", on(create_root_key=False))).status_code == 204
    return here.own.post("/keys", json=create_body())


@provokes("KEY_ROTATION_NOT_PERMITTED")
def key_rotation_not_permitted(here: Here) -> httpx.Response:
    rotate = f"/keys/{create_key(here.own)}/actions/rotate"
    assert here.own.post(rotate).status_code == 204
    return here.own.post(rotate)


@provokes("REQ_TOO_EARLY_ERR")
def req_too_early(here: Here) -> httpx.Response:
    return here.own.post(f"/keys/{deleted_key(here)}/restore")


@provokes("KEY_RING_NOT_EMPTY_ERR")
def key_ring_not_empty(here: Here) -> httpx.Response:
    assert here.own.post("/key_rings/full").status_code == 201
    made = here.own.post("/keys", json=create_body(), headers={"X-Kms-Key-Ring": "full"})
    assert made.status_code == 201
    return here.own.delete("/key_rings/full")


@provokes("KEY_ALIAS_NOT_UNIQUE_ERR")
def key_alias_not_unique(here: Here) -> httpx.Response:
    create_key(here.own, aliases=["taken"])
    return here.own.post(f"/keys/{create_key(here.own)}/aliases/taken")


@provokes("KEY_ALIAS_QUOTA_ERR")
def key_alias_quota(here: Here) -> httpx.Response:
    key = create_key(here.own, aliases=[f"alias-{number}" for number in range(5)])
    return here.own.post(f"/keys/{key}/aliases/one-too-many")


@provokes("KEY_DELETED_ERR")
def key_deleted(here: Here) -> httpx.Response:
    return here.own.post(f"/keys/{deleted_key(here)}/actions/wrap")


@provokes("UNPROCESSABLE_CIPHERTEXT_ERR")
def unprocessable_ciphertext(here: Here) -> httpx.Response:
    sealed = here.own.post(f"/keys/{create_key(here.own)}/actions/wrap").json()["ciphertext"]
    return here.own.post(f"/keys/{create_key(here.own)}/actions/unwrap", json={"ciphertext": sealed})


@provokes("INCOMPLETE_METADATA_ERR")
def incomplete_metadata(here: Here) -> httpx.Response:
    key = create_key(here.own)
    with here.database.write() as connection:
        connection.execute(sqlalchemy.delete(key_version).where(key_version.c.key_id == key))
    return here.own.post(f"/keys/{key}/actions/wrap")


@provokes("KEY_RING_RESERVED_ERR")
def key_ring_reserved(here: Here) -> httpx.Response:
    return here.own.post("/key_rings/default")


@provokes("KEY_ALIAS_NOT_FOUND_ERR")
def key_alias_not_found(here: Here) -> httpx.Response:
    return here.own.delete(f"/keys/{create_key(here.own)}/aliases/nowhere")


@provokes("KEY_RING_ALREADY_EXISTS_ERR")
def key_ring_already_exists(here: Here) -> httpx.Response:
    assert here.own.post("/key_rings/twice").status_code == 201
    return here.own.post("/key_rings/twice")


@provokes("KEY_RING_QUOTA_ERR")
def key_ring_quota(here: Here) -> httpx.Response:
    for number in range(50):
        assert here.own.post(f"/key_rings/ring-{number}").status_code == 201
    return here.own.post("/key_rings/one-too-many")


def import_token(here: Here) -> Fetched:
    assert here.own.post("/import_token").status_code == 200
    return Fetched.of(here.own.get("/import_token").json())


@contextlib.contextmanager
def adopter(here: Here) -> Iterator[Adopter]:
    one = Adopter(here.iam, key_instance_id=here.own.headers["Bluemix-Instance"])
    yield one
    one.http.close()


def registered_key(here: Here, **members: bool) -> str:
    key = create_key(here.own)
    with adopter(here) as one:
        one.register(key, "bucket", **members)
    return key


def deleted_key(here: Here, **members: str) -> str:
    key = create_key(here.own, **members)
    assert here.own.delete(f"/keys/{key}").status_code == 204
    return key


@pytest.fixture
def here(service: Service, iam: Iam) -> Iterator[Here]:
    """Where to provoke."""
    database = Database(service.database_url)
    with key_client(service, iam.token, iam.instance()) as own:
        yield Here(service, iam, own, database)
    database.close()


def test_every_code_has_a_row_or_a_reason() -> None:
    assert sorted([*ROWS, *NOT_HERE_YET, *NEVER]) == sorted([*CONTRACT, *OURS])


def test_what_is_said_to_be_missing_is_missing() -> None:
    """And what the product can answer has a row: both lists can only shrink."""
    assert codes_of_the_product() | {"UNAUTHORIZED_ERR"} == set(ROWS)


def codes_of_the_product() -> set[str]:
    """Reason codes of the key API; those of IAM look otherwise."""
    found, kinds = set[str](), [errors.HsmkmsError]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if kind.code is not None and kind.code.isupper() and not kind.code.startswith("BXNIM"):
            found.add(kind.code)
    return found


@pytest.mark.parametrize("code", ROWS)
def test_code(here: Here, code: str) -> None:
    provoke, target = ROWS[code]
    # A refusal of access has a code in IBM's list and none in its answers (additions section 6.1).
    shown = None if code == "UNAUTHORIZED_ERR" else code
    require_refused(provoke(here), {**CONTRACT, **OURS}[code], shown, target)


@pytest.mark.parametrize("error", [errors.TokenRefused("unsafe"), errors.TokenAway(), errors.StoreUnavailable("away")])
def test_every_503_says_when_to_come_back(error: Exception) -> None:
    answer = kms_problem(error, new_id())
    assert (answer.status_code, int(answer.headers["Retry-After"]) > 0) == (503, True)
