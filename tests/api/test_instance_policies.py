"""Policies of an instance over HTTP: what each changes, and what is not possible."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api.refusals import require_refused
from tests.support.deployment import Service, create_body, create_key
from tests.support.iam import Iam, key_client

ALLOWED_IP = "application/vnd.ibm.kms.allowed_ip_metadata+json"
POLICY = "application/vnd.ibm.kms.policy+json"


@pytest.fixture
def own(service: Service, iam: Iam) -> Iterator[httpx.Client]:
    """The administrator in an instance of this test's own."""
    with key_client(service, iam.token, iam.instance()) as http:
        yield http


def put(client: httpx.Client, *policies: tuple[str, dict[str, Any]], query: str = "") -> httpx.Response:
    resources = [{"policy_type": kind, "policy_data": data} for kind, data in policies]
    body = {"metadata": {"collectionType": POLICY, "collectionTotal": len(resources)}, "resources": resources}
    return client.put(f"/instance/policies{query}", json=body)


def policies(client: httpx.Client, query: str = "") -> dict[str, Any]:
    """What is set, by type."""
    answer = client.get(f"/instance/policies{query}")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["metadata"] == {"collectionType": POLICY, "collectionTotal": len(body["resources"])}
    return {one["policy_type"]: one["policy_data"] for one in body["resources"]}


def test_set_and_read(own: httpx.Client) -> None:
    assert policies(own) == {}
    answer = put(own, ("dualAuthDelete", {"enabled": True}), ("rotation", on(interval_month=4)))
    assert (answer.status_code, answer.content) == (204, b"")
    assert put(own, ("metrics", {"enabled": True}), query="?policy=metrics").status_code == 204
    assert policies(own) == {
        "dualAuthDelete": {"enabled": True},
        "metrics": {"enabled": True},
        "rotation": {"enabled": True, "attributes": {"interval_month": 4}},
    }
    assert set(policies(own, "?policy=rotation")) == {"rotation"}
    # Disabling drops the attributes; Go sends them all the same.
    assert put(own, ("rotation", {"enabled": False, "attributes": {"interval_month": 4}})).status_code == 204
    assert policies(own)["rotation"] == {"enabled": False}


def on(**attributes: object) -> dict[str, Any]:
    return {"enabled": True, "attributes": attributes}


def test_new_keys_take_over_dual_authorization_and_rotation(own: httpx.Client) -> None:
    """Not the ones there are, not standard keys for rotation, and not keys with policies of their own."""
    before = create_key(own)
    assert put(own, ("dualAuthDelete", {"enabled": True}), ("rotation", on(interval_month=2))).status_code == 204
    root, standard = create_key(own), create_key(own, extractable=True)
    made = own.post("/keys_with_policy_overrides", json=create_body("own policies"))
    override = made.json()["resources"][0]["id"]

    def shown(key: str) -> tuple[bool, int | None]:
        resource = own.get(f"/keys/{key}/metadata").json()["resources"][0]
        return resource["dualAuthDelete"]["enabled"], resource.get("rotation", {}).get("interval_month")

    assert [shown(key) for key in (before, root, standard, override)] == [
        (False, None),
        (True, 2),
        (True, None),
        (False, None),
    ]


def test_which_keys_may_be_made(own: httpx.Client) -> None:
    """What a write leaves out is allowed again."""
    root, standard = create_body("root"), create_body("standard", extractable=True)
    assert put(own, ("keyCreateImportAccess", on(create_root_key=False))).status_code == 204
    require_refused(own.post("/keys", json=root), 409, "KEY_CREATE_IMPORT_ACCESS_ERR")
    require_refused(own.post("/keys_with_policy_overrides", json=root), 409, "KEY_CREATE_IMPORT_ACCESS_ERR")
    assert own.post("/keys", json=standard).status_code == 201
    assert put(own, ("keyCreateImportAccess", on(create_standard_key=False))).status_code == 204
    assert own.post("/keys", json=root).status_code == 201
    require_refused(own.post("/keys", json=standard), 409, "KEY_CREATE_IMPORT_ACCESS_ERR")
    assert policies(own)["keyCreateImportAccess"]["attributes"] == {
        "create_root_key": True,
        "create_standard_key": False,
        "import_root_key": True,
        "import_standard_key": True,
        "enforce_token": False,
    }
    assert put(own, ("keyCreateImportAccess", {"enabled": False})).status_code == 204
    assert own.post("/keys", json=standard).status_code == 201


def test_from_where_the_instance_may_be_called(service: Service, iam: Iam, own: httpx.Client) -> None:
    """401 on cold and hot calls from elsewhere; not for source services; the operator opens it again."""
    key = create_key(own)
    guid = own.headers["Bluemix-Instance"]
    storage = iam.somebody(iam.source("cloud-object-storage", "network"))
    assert iam.authorize("cloud-object-storage", guid).status_code == 201
    for allowed in (["127.0.0.0/8"], ["10.0.0.0/8", "127.0.0.1"], ["::/0", "0.0.0.0/0"]):
        assert put(own, ("allowedIP", on(allowed_ip=allowed))).status_code == 204
        assert own.post(f"/keys/{key}/actions/wrap").status_code == 200
    assert put(own, ("allowedIP", on(allowed_ip=["10.0.0.0/8", "2001:db8::/32"]))).status_code == 204
    for method, path in (("GET", "/keys"), ("POST", f"/keys/{key}/actions/wrap"), ("GET", "/instance/policies")):
        require_refused(own.request(method, path), 401, None)
    with iam.client(storage, guid) as exempt:
        assert exempt.post(f"/keys/{key}/actions/wrap").status_code == 200
    # Another instance is none the worse for it.
    with service.client() as client:
        assert client.get("/keys").status_code == 200
    done = service.state.run("instances", "open-network", guid, stdin=b"", **service.extra)
    assert done.returncode == 0, done.stderr
    iam.http.get("/v1/policies", params={"account_id": iam.account})
    assert own.post(f"/keys/{key}/actions/wrap").status_code == 200
    # Loopback is private.
    assert put(own, ("allowedNetwork", on(allowed_network="private-only"))).status_code == 204
    assert own.post(f"/keys/{key}/actions/wrap").status_code == 200


def test_port_of_the_private_endpoint(service: Service, own: httpx.Client) -> None:
    """Only with an enabled allowedIP policy, and from addresses too that it keeps away from all else."""

    def ports() -> list[dict[str, int]]:
        answer = own.get("/instance/allowed_ip_port")
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"] == ALLOWED_IP
        body = answer.json()
        assert body["metadata"] == {"collectionType": ALLOWED_IP, "collectionTotal": len(body["resources"])}
        return list(body["resources"])

    assert ports() == []
    assert put(own, ("allowedIP", on(allowed_ip=["127.0.0.1"]))).status_code == 204
    assert ports() == [{"private_endpoint_port": service.port}]
    assert put(own, ("allowedIP", {"enabled": False})).status_code == 204
    assert ports() == []
    assert put(own, ("allowedIP", on(allowed_ip=["10.0.0.0/8"]))).status_code == 204
    require_refused(own.get("/instance/policies"), 401, None)
    assert ports() == [{"private_endpoint_port": service.port}]


def test_what_is_not_possible(own: httpx.Client) -> None:
    for policy, code, target in (
        (("rotation", on(interval_month=0)), "INVALID_FIELD_ERR", "interval_month"),
        (("rotation", on(interval_month=13)), "INVALID_FIELD_ERR", "interval_month"),
        (("rotation", {"enabled": True}), "INVALID_FIELD_ERR", "interval_month"),
        (("allowedIP", {"enabled": True}), "INVALID_FIELD_ERR", "allowed_ip"),
        (("allowedIP", on(allowed_ip=[])), "INVALID_FIELD_ERR", "allowed_ip"),
        (("allowedIP", on(allowed_ip=["300.0.0.1"])), "INVALID_FIELD_ERR", "allowed_ip"),
        (("allowedNetwork", on(allowed_network="none")), "INVALID_FIELD_ERR", "allowed_network"),
        (("dualAuthDelete", on(interval_month=1)), "BAD_BODY_ERR", None),
        (("metrics", on(allowed_ip=["::1"])), "BAD_BODY_ERR", None),
        (("unknown", {"enabled": True}), "BAD_BODY_ERR", None),
        (("rotation", on(secret="x")), "BAD_BODY_ERR", None),
    ):
        require_refused(put(own, policy), 400, code, target)
    metrics, rotation = ("metrics", {"enabled": True}), ("rotation", on(interval_month=1))
    require_refused(put(own, metrics, rotation, query="?policy=metrics"), 400, "NUM_COLLECTION_RESOURCE_ERR")
    require_refused(put(own, metrics, query="?policy=rotation"), 400, "BODY_QUERY_PARAM_MISMATCH_ERR")
    require_refused(put(own, metrics, query="?policy=x"), 400, "INVALID_QUERY_PARAM_ERR", "policy")
    require_refused(put(own, metrics, metrics), 400, "BAD_BODY_ERR")
    require_refused(put(own), 400, "BAD_BODY_ERR")
    assert policies(own) == {}
