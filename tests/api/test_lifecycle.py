"""Disable, enable, delete by two, restore, purge, aliases and key policies over HTTP. Time passes by the back door: the
moments in a key's row are moved into the past."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from hsmkms.domain.access import Role
from hsmkms.store.engine import Database
from tests.api.backstage import age
from tests.api.refusals import require_refused
from tests.support.deployment import Service, create_body, create_key
from tests.support.iam import Iam

POLICY = "application/vnd.ibm.kms.policy+json"
PURGED = (404, "KEY_NOT_FOUND_ERR")


@pytest.fixture(scope="module")
def purger(iam: Iam) -> Iterator[httpx.Client]:
    """Somebody who may purge and nothing else."""
    somebody = iam.somebody()
    iam.grant(somebody.iam_id, Role.KEY_PURGE)
    with iam.client(somebody) as http:
        yield http


def state(client: httpx.Client, key_id: str) -> int:
    return int(client.get(f"/keys/{key_id}/metadata").json()["resources"][0]["state"])


@pytest.mark.parametrize("spelling", ["/actions/{}", "?action={}"])
def test_disable_and_enable(client: httpx.Client, database_of: Database, spelling: str) -> None:
    key = create_key(client)
    wrapped = client.post(f"/keys/{key}/actions/wrap").json()
    assert client.post(f"/keys/{key}{spelling.format('disable')}", content=b"null").status_code == 204
    assert state(client, key) == 2
    for action, body in (("wrap", {}), ("unwrap", {"ciphertext": wrapped["ciphertext"]}), ("rotate", {})):
        answer = client.post(f"/keys/{key}/actions/{action}", json=body)
        require_refused(answer, 409, "KEY_ACTION_INVALID_STATE_ERR")
        assert "not in active state" in answer.json()["resources"][0]["reasons"][0]["message"]
    require_refused(client.post(f"/keys/{key}/actions/disable"), 409, "KEY_ACTION_INVALID_STATE_ERR")
    require_refused(client.post(f"/keys/{key}/actions/enable"), 409, "REQ_TOO_EARLY_ERR")
    age(database_of, key, disabled_at=timedelta(seconds=31))
    assert client.post(f"/keys/{key}{spelling.format('enable')}").status_code == 204
    assert state(client, key) == 1
    opened = client.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": wrapped["ciphertext"]})
    assert opened.json()["plaintext"] == wrapped["plaintext"]
    answer = client.post(f"/keys/{key}/actions/enable")
    require_refused(answer, 409, "KEY_ACTION_INVALID_STATE_ERR")
    assert "suspended" in answer.json()["resources"][0]["reasons"][0]["message"]


def test_standard_keys_are_not_disabled(client: httpx.Client) -> None:
    key = create_key(client, extractable=True)
    for action in ("disable", "enable"):
        require_refused(client.post(f"/keys/{key}/actions/{action}"), 400, "KEY_ROOT_REQ_ERR")


@pytest.mark.parametrize("extractable", [False, True])
def test_restore_within_thirty_days(client: httpx.Client, database_of: Database, extractable: bool) -> None:
    key = create_key(client, extractable=extractable)
    before = client.get(f"/keys/{key}").json()["resources"][0]
    require_refused(client.post(f"/keys/{key}/restore"), 409, "KEY_ACTION_INVALID_STATE_ERR")
    assert client.delete(f"/keys/{key}").status_code == 204
    require_refused(client.post(f"/keys/{key}/restore"), 409, "REQ_TOO_EARLY_ERR")
    age(database_of, key, deleted_at=timedelta(days=30))
    require_refused(client.post(f"/keys/{key}/restore"), 400, "KEY_RESTORE_EXPIRED")
    age(database_of, key, deleted_at=-timedelta(seconds=60))
    restored = client.post(f"/keys/{key}/restore")
    assert restored.status_code == 201, restored.text
    shown = restored.json()["resources"][0]
    assert (shown["state"], shown["deleted"], shown["id"]) == (1, False, key)
    assert "deletionDate" not in shown
    after = client.get(f"/keys/{key}").json()["resources"][0]
    assert after.get("payload") == before.get("payload")


def test_an_expired_key_is_not_restored(client: httpx.Client, database_of: Database) -> None:
    key = create_key(client, expirationDate="2100-01-01T00:00:00Z")
    assert client.delete(f"/keys/{key}").status_code == 204
    age(database_of, key, deleted_at=timedelta(minutes=1), expires_at=timedelta(days=365 * 80))
    require_refused(client.post(f"/keys/{key}/restore"), 400, "KEY_EXPIRED_ERR")


def test_purge_destroys_everything(
    service: Service, client: httpx.Client, purger: httpx.Client, database_of: Database
) -> None:
    """Not before four hours, not by a Manager; then the key is gone, by id and alias, and so are its objects."""
    key = create_key(client, aliases=["to-be-purged"])
    assert client.post(f"/keys/{key}/actions/rotate").status_code == 204
    require_refused(purger.delete(f"/keys/{key}/purge"), 409, "KEY_ACTION_INVALID_STATE_ERR")
    assert client.delete(f"/keys/{key}").status_code == 204
    require_refused(client.delete(f"/keys/{key}/purge"), 401, None)
    require_refused(purger.delete(f"/keys/{key}/purge"), 409, "REQ_TOO_EARLY_ERR")
    age(database_of, key, deleted_at=timedelta(hours=4))
    assert client.get(f"/keys/{key}").json()["resources"][0]["purgeAllowed"] is True
    purged = purger.delete(f"/keys/{key}/purge", headers={"Prefer": "return=representation"})
    assert purged.status_code == 200, purged.text
    assert purged.json()["resources"][0]["id"] == key
    for reference in (key, "to-be-purged"):
        require_refused(client.get(f"/keys/{reference}"), *PURGED)
        require_refused(client.post(f"/keys/{reference}/actions/wrap"), *PURGED)
    assert key not in client.get("/keys?state=0,1,2,3,5&limit=5000").text
    doctor = service.state.run("doctor", stdin=b"", **service.extra)
    assert key.encode() not in doctor.stdout, doctor.stdout
    # The name is free again.
    assert create_key(client, aliases=["to-be-purged"]) != key


def test_deletion_takes_two(client: httpx.Client, iam: Iam, database_of: Database) -> None:
    second = iam.somebody()
    iam.grant(second.iam_id, Role.MANAGER)
    plain = create_key(client)
    require_refused(client.post(f"/keys/{plain}/actions/setKeyForDeletion"), 409, "NOT_DUAL_AUTH_ERR")
    key = create_key(client)
    put(client, key, {"dualAuthDelete": {"enabled": True}})
    with iam.client(second) as other:
        for one in (client, other):
            require_refused(one.delete(f"/keys/{key}"), 409, "AUTHORIZATIONS_NOT_MET")
        assert client.post(f"/keys/{key}/actions/setKeyForDeletion").status_code == 204
        shown = client.get(f"/keys/{key}/metadata").json()["resources"][0]["dualAuthDelete"]
        assert (shown["enabled"], shown["keySetForDeletion"]) == (True, True)
        assert shown["authExpiration"].endswith("Z")
        require_refused(client.delete(f"/keys/{key}"), 409, "AUTHORIZATIONS_NOT_MET")
        assert client.post(f"/keys/{key}/actions/unsetKeyForDeletion").status_code == 204
        require_refused(other.delete(f"/keys/{key}"), 409, "AUTHORIZATIONS_NOT_MET")
        assert client.post(f"/keys/{key}/actions/setKeyForDeletion").status_code == 204
        age(database_of, key, deletion_set_at=timedelta(days=7))
        require_refused(other.delete(f"/keys/{key}"), 409, "AUTHORIZATIONS_NOT_MET")
        assert client.post(f"/keys/{key}/actions/setKeyForDeletion").status_code == 204
        assert other.delete(f"/keys/{key}").status_code == 204


def put(client: httpx.Client, key: str, *resources: dict[str, Any], query: str = "") -> httpx.Response:
    """PUT policies; fails unless that is 200."""
    answer = put_raw(client, key, resources, query)
    assert answer.status_code == 200, answer.text
    return answer


def put_raw(client: httpx.Client, key: str, resources: Any, query: str = "") -> httpx.Response:
    body = {"metadata": {"collectionType": POLICY, "collectionTotal": len(resources)}, "resources": list(resources)}
    return client.put(f"/keys/{key}/policies{query}", json=body)


def test_key_policies(client: httpx.Client) -> None:
    key = create_key(client)
    empty = client.get(f"/keys/{key}/policies").json()
    assert empty == {"metadata": {"collectionType": POLICY, "collectionTotal": 0}}
    put(client, key, {"type": POLICY, "rotation": {"enabled": True, "interval_month": 3}}, query="?policy=rotation")
    # As Go does: one resource for each policy.
    both = put(client, key, {"rotation": {"enabled": False}}, {"dualAuthDelete": {"enabled": False}}).json()
    assert both["metadata"]["collectionTotal"] == 2
    found = {name: one[name] for one in both["resources"] for name in ("rotation", "dualAuthDelete") if name in one}
    assert found == {"rotation": {"enabled": False, "interval_month": 3}, "dualAuthDelete": {"enabled": False}}
    shown = client.get(f"/keys/{key}/policies?policy=rotation").json()["resources"]
    assert [one["rotation"] for one in shown] == [{"enabled": False, "interval_month": 3}]
    assert client.get(f"/keys/{key}/metadata").json()["resources"][0]["rotation"]["interval_month"] == 3


def test_key_policies_that_are_not_possible(client: httpx.Client) -> None:
    key, standard = create_key(client), create_key(client, extractable=True)
    rotation, dual = {"rotation": {"enabled": True, "interval_month": 1}}, {"dualAuthDelete": {"enabled": True}}
    for interval in (0, 13, -1):
        answer = put_raw(client, key, [{"rotation": {"enabled": True, "interval_month": interval}}])
        require_refused(answer, 400, "INVALID_FIELD_ERR", "interval_month")
    require_refused(put_raw(client, key, [{"rotation": {"enabled": True}}]), 400, "INVALID_FIELD_ERR", "interval_month")
    require_refused(put_raw(client, standard, [rotation]), 400, "KEY_ROOT_REQ_ERR")
    require_refused(put_raw(client, key, [rotation], "?policy=dualAuthDelete"), 400, "BODY_QUERY_PARAM_MISMATCH_ERR")
    require_refused(put_raw(client, key, [rotation, dual], "?policy=rotation"), 400, "NUM_COLLECTION_RESOURCE_ERR")
    require_refused(put_raw(client, key, [], "?policy=rotation"), 400, "NUM_COLLECTION_RESOURCE_ERR")
    require_refused(put_raw(client, key, [rotation, rotation]), 400, "BAD_BODY_ERR")
    require_refused(put_raw(client, key, [rotation], "?policy=x"), 400, "INVALID_QUERY_PARAM_ERR", "policy")
    body = {"metadata": {"collectionType": POLICY, "collectionTotal": 7}, "resources": [rotation]}
    require_refused(client.put(f"/keys/{key}/policies", json=body), 400, "COLLECTION_TOTAL_MISMATCH_ERR")
    put(client, key, dual)
    require_refused(put_raw(client, key, [{"dualAuthDelete": {"enabled": False}}]), 400, "INVALID_FIELD_ERR", "enabled")
    deleted = create_key(client)
    assert client.delete(f"/keys/{deleted}").status_code == 204
    require_refused(put_raw(client, deleted, [rotation]), 410, "KEY_DELETED_ERR")


def test_create_with_policies(client: httpx.Client, iam: Iam) -> None:
    """A Writer creates keys, but not keys with policies."""
    policies = {"rotation": {"enabled": True, "interval_month": 2}, "dualAuthDelete": {"enabled": True}}
    made = client.post("/keys_with_policy_overrides", json=create_body("with policies", **policies))  # type: ignore[arg-type]
    assert made.status_code == 201, made.text
    resource = made.json()["resources"][0]
    assert resource["rotation"] == policies["rotation"]
    assert resource["dualAuthDelete"] == {"enabled": True, "keySetForDeletion": False}
    require_refused(client.delete(f"/keys/{resource['id']}"), 409, "AUTHORIZATIONS_NOT_MET")
    standard = create_body("standard", extractable=True, rotation=policies["rotation"])
    require_refused(client.post("/keys_with_policy_overrides", json=standard), 400, "KEY_ROOT_REQ_ERR")
    writer = iam.somebody()
    iam.grant(writer.iam_id, Role.WRITER)
    with iam.client(writer) as http:
        require_refused(http.post("/keys_with_policy_overrides", json=create_body()), 401, None)
        assert http.post("/keys", json=create_body()).status_code == 201


def test_aliases(client: httpx.Client, database: str) -> None:
    key, other = create_key(client), create_key(client)
    names = [f"{database}-alias-{number}" for number in range(6)]
    for name in names[:5]:
        made = client.post(f"/keys/{key}/aliases/{name}")
        assert made.status_code == 201, made.text
        assert (made.json()["resources"][0]["keyId"], made.json()["resources"][0]["alias"]) == (key, name)
    require_refused(client.post(f"/keys/{key}/aliases/{names[5]}"), 409, "KEY_ALIAS_QUOTA_ERR")
    require_refused(client.post(f"/keys/{other}/aliases/{names[0]}"), 409, "KEY_ALIAS_NOT_UNIQUE_ERR")
    assert client.post(f"/keys/{names[0]}/actions/wrap").status_code == 200
    assert client.delete(f"/keys/{names[1]}/aliases/{names[0]}").status_code == 204
    require_refused(client.post(f"/keys/{names[0]}/actions/wrap"), *PURGED)
    require_refused(client.delete(f"/keys/{key}/aliases/{names[0]}"), 404, "KEY_ALIAS_NOT_FOUND_ERR")
    require_refused(client.delete(f"/keys/{other}/aliases/{names[1]}"), 404, "KEY_ALIAS_NOT_FOUND_ERR")
    assert client.post(f"/keys/{other}/aliases/{names[0]}").status_code == 201
    for bad in ("x", "rotate", "a b", "x" * 91, key):
        require_refused(client.post(f"/keys/{other}/aliases/{bad}"), 400, "INVALID_FIELD_ERR", "alias")
    assert client.delete(f"/keys/{other}").status_code == 204
    require_refused(client.post(f"/keys/{other}/aliases/{names[5]}"), 410, "KEY_DELETED_ERR")
