"""One event per request, refusals too, with the contract's members (contract section 7, additions section 9)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from hsmkms.api.cold import OpenRoute, TokenRoute
from hsmkms.domain.access import Role
from hsmkms.service.cadf import ACKNOWLEDGED, EXPIRE, LOGIN, REVOKE
from hsmkms.service.trail import changes
from tests.api.test_route_matrix import BODIES, OPEN, all_routes, guarded_calls
from tests.support.adopter import Adopter
from tests.support.deployment import Service, State, create_body, create_key
from tests.support.iam import Iam, Somebody

SECTION_7 = {
    f"{family}.{verb}"
    for family, verbs in {
        "kms.secrets": "create default delete disable enable expire head list wrap patch purge read restore rewrap "
        "rotate setkeyfordeletion unsetkeyfordeletion unwrap ack-delete ack-restore ack-rotate ack-enable ack-disable",
        "kms.secrets-alias": "create delete request",
        "kms.secrets-metadata": "read",
        "kms.secrets-key-versions": "list",
        "kms.secrets-event": "ack",
        "kms.secrets-with-policy-overrides": "create",
        "kms.key-rings": "create delete list request",
        "kms.policies": "read write default",
        "kms.instance-policies": "read write request",
        "kms.import-token": "create read request",
        "kms.registrations": "list create write merge delete default",
        "kms.instance-allowed-ip-port": "read",
        "kms.kmip-management": "default",
    }.items()
    for verb in verbs.split()
}
"""The contract's actions of the calls that are served. KMIP and the governance configuration are not."""
OURS = {"kms.secrets.sync", "kms.secrets-event.list"}
"""Actions of the key API that section 7 has no name for."""
INVALID = {
    "/api/v2/nothing": "kms.secrets.default",
    "/api/v2/keys/x/aliases": "kms.secrets-alias.request",
    "/api/v2/key_rings/x/y": "kms.key-rings.request",
    "/api/v2/keys/x/policies/y": "kms.policies.default",
    "/api/v2/instance/policies/y": "kms.instance-policies.request",
    "/api/v2/import_token/x": "kms.import-token.request",
    "/api/v2/keys/x/y/registrations": "kms.registrations.default",
    "/api/v2/kmip_adapters": "kms.kmip-management.default",
    "/v1/nothing": "iam.request.default",
    "/identity/nothing": "iam.request.default",
}


@pytest.fixture(scope="module")
def audited(services: Callable[[str], Service]) -> Service:
    """A service whose logs are read; the database makes no difference to them."""
    return services("sqlite")


@pytest.fixture(scope="module")
def administrator(audited: Service) -> Iterator[httpx.Client]:
    """Its administrator."""
    with audited.client() as client:
        yield client


def records(service: Service, correlation_id: str) -> list[dict[str, Any]]:
    """The events of a call, in their order."""
    lines = [
        line
        for path in sorted((service.state.path / "audit").glob("*.jsonl"))
        for line in path.read_bytes().splitlines()
        if correlation_id.encode() in line
    ]
    return [json.loads(line)["event"] for line in lines]


def call(client: httpx.Client, method: str, path: str, **parts: Any) -> tuple[httpx.Response, str]:
    """A call under a correlation id of its own."""
    correlation_id = str(uuid.uuid4())
    headers = {"Correlation-Id": correlation_id, **parts.pop("headers", {})}
    return client.request(method, path, headers=headers, **parts), correlation_id


def outcome(service: Service, correlation_id: str) -> dict[str, Any]:
    """The one event of how a call ended; with an intent before it exactly when it changes something."""
    *before, last = records(service, correlation_id)
    assert [one["outcome"] for one in before] == ["pending"] * changes(before[0]["action"] if before else "x.list")
    assert last["outcome"] in ("success", "failure")
    assert last.get("intent") == (before[0]["id"] if before else None)
    return last


def test_the_list_of_section_7_is_the_list_of_actions() -> None:
    """A route with an action that is not on the list fails here, and so does a name on the list that nothing sends."""
    served = {action.value for _, _, action in guarded_calls()}
    kms = {action for action in served if action.startswith("kms.")}
    acks = {f"{ACKNOWLEDGED}{kind}" for kind in ("delete", "restore", "rotate", "enable", "disable")}
    assert kms | {EXPIRE} | acks | {name for name in INVALID.values() if name.startswith("kms.")} == SECTION_7 | OURS
    assert {LOGIN, REVOKE}.isdisjoint(served)


def test_only_health_and_public_keys_leave_no_event() -> None:
    quiet = {route.path for route in all_routes() if type(route) is OpenRoute}
    assert quiet == {"/healthz", "/readyz", "/version"}
    assert {route.path for route in all_routes() if isinstance(route, TokenRoute)} == OPEN - quiet


def path_of(path: str, key: str, instance_id: str) -> str:
    """A path whose parameters name something that is there, or what can be missed."""
    path = path.replace("{id:path}", "4d4ff6f0-0000-4000-8000-000000000000").replace("{crn:path}", "crn")
    path = path.replace("{id}", key if path.startswith("/api/") else "nothing")
    for name in ("{key_ring_id}", "{alias}", "{group_id}", "{iam_id}"):
        path = path.replace(name, "absent")
    return path


def test_every_call_says_how_it_ended(audited: Service, administrator: httpx.Client) -> None:
    """Each route there is, with a body that can be read and with one that cannot: the event says what the caller was
    told."""
    headers = {**administrator.headers, "If-Match": "0-0", "IAM-ApiKey": audited.state.api_key}
    with httpx.Client(base_url=audited.url, headers=headers, timeout=60) as client:
        for method, path, action in guarded_calls():
            key = create_key(administrator, "ended") if path.startswith("/api/v2/keys/{id}") else ""
            place = path_of(path, key, audited.state.instance_id)
            bodies: list[dict[str, Any]] = [{"json": BODIES.get((method, path))}]
            bodies += [{"content": b'{"a":'}] if method in ("POST", "PUT", "PATCH") else []
            for body in bodies:
                answer, correlation_id = call(client, method, place, **body)
                event = outcome(audited, correlation_id)
                assert event["reason"]["reasonCode"] == answer.status_code, (method, path, answer.text)
                assert event["action"] == action.value, (method, path)
                assert event["outcome"] == ("failure" if answer.status_code >= 400 else "success")
                assert event["typeURI"] == "http://schemas.dmtf.org/cloud/audit/1.0/event"
                assert (event["eventType"], event["observer"]["name"]) == ("activity", "hsmkms")
                assert event["initiator"]["credential"] == {"type": "token"}
                assert event["target"]["id"].startswith("crn:v1:bluemix:public:")
                assert event["requestData"]["requestURI"] == place.partition("?")[0]
                if path.startswith("/api/"):
                    assert event["requestData"]["instanceID"] == audited.state.instance_id
                    assert event["logSourceCRN"].endswith(f":{audited.state.instance_id}::")
                    # Whatever became of it: which key it was about.
                    assert not key or event["target"]["name"] == key, (method, path)


def test_calls_that_there_are_not_are_recorded(audited: Service, administrator: httpx.Client) -> None:
    with httpx.Client(base_url=audited.url, timeout=60) as client:
        for path, action in INVALID.items():
            answer, correlation_id = call(client, "PUT", path)
            event = outcome(audited, correlation_id)
            assert answer.status_code in (404, 405), path
            assert (event["action"], event["reason"]["reasonCode"]) == (action, answer.status_code), path
        _, correlation_id = call(client, "GET", "/favicon.ico")
        assert records(audited, correlation_id) == []
    answer, correlation_id = call(administrator, "POST", f"/keys/{uuid.uuid4()}?action=melt")
    assert (answer.status_code, outcome(audited, correlation_id)["action"]) == (400, "kms.secrets.default")
    answer, correlation_id = call(administrator, "POST", f"/keys/{uuid.uuid4()}?action=rotate&action=disable")
    assert (answer.status_code, outcome(audited, correlation_id)["action"]) == (400, "kms.secrets.default")


def test_wrong_input_is_not_quoted(audited: Service, administrator: httpx.Client) -> None:
    """But for the path, and of that no more than the target's name and the URI take: strangers fill the disk of it."""
    words = "ada@example.org, 555"
    for method, path in (("GET", "/keys"), ("POST", f"/keys/{uuid.uuid4()}/actions/wrap")):
        for ring, noted in ((words, None), ("a" * 101, None), ("no-such-ring", "no-such-ring")):
            answer, correlation_id = call(administrator, method, path, headers={"X-Kms-Key-Ring": ring}, json={})
            event = outcome(audited, correlation_id)
            assert event["requestData"].get("keyRingId") == noted, (path, answer.text)
            assert words not in json.dumps(event)
    with httpx.Client(base_url=audited.url, timeout=60) as nobody:
        for method, ending in (("POST", "/actions/wrap"), ("GET", "/metadata"), ("POST", "?action=rotate")):
            answer, correlation_id = call(nobody, method, f"/api/v2/keys/{'b' * 30_000}{ending}")
            assert answer.status_code == 401
            event = outcome(audited, correlation_id)
            assert event["target"]["name"] == "b" * 512
            assert len(json.dumps(event)) < 3_000


def test_too_many_requests_are_recorded(state: State) -> None:
    slowly = Service(state, HSMKMS_IDENTITY_REQUESTS_PER_S="0.001", HSMKMS_IDENTITY_BURST_REQUESTS="1")
    with slowly as service, service.client() as client:
        statuses = []
        for _ in range(2):
            answer, correlation_id = call(client, "GET", "/keys")
            statuses.append(answer.status_code)
            assert outcome(service, correlation_id)["reason"]["reasonCode"] == answer.status_code
        assert statuses == [200, 429]


def test_what_a_change_changed_is_told(audited: Service, administrator: httpx.Client) -> None:
    """The members of section 7 for moving, for the two words and for policies of the instance."""
    key = create_key(administrator, "told")
    assert administrator.post("/key_rings/told").status_code == 201
    _, correlation_id = call(administrator, "PATCH", f"/keys/{key}", json={"keyRingID": "told"})
    asked = outcome(audited, correlation_id)["requestData"]
    assert (asked["initialValue"], asked["newValue"]) == ({"keyRingId": "default"}, {"keyRingId": "told"})

    metadata = {"collectionType": "application/vnd.ibm.kms.policy+json", "collectionTotal": 1}
    two = {"metadata": metadata, "resources": [{"dualAuthDelete": {"enabled": True}}]}
    assert administrator.put(f"/keys/{key}/policies", json=two).status_code == 200
    _, correlation_id = call(administrator, "POST", f"/keys/{key}/actions/setKeyForDeletion")
    event = outcome(audited, correlation_id)
    word = event["responseData"]["newValue"]
    assert (word["authID"], event["responseData"]["initialValue"]) == (event["initiator"]["id"], {})
    _, correlation_id = call(administrator, "POST", f"/keys/{key}/actions/unsetKeyForDeletion")
    said = outcome(audited, correlation_id)["responseData"]
    assert (said["initialValue"], said["newValue"]) == (word, {})

    _, correlation_id = call(administrator, "GET", f"/keys/{key}/versions?totalCount=true")
    assert outcome(audited, correlation_id)["responseData"]["totalResources"] == 1

    for enabled, before in ((True, {}), (False, {"policyAllowedNetworkEnabled": True})):
        resource: dict[str, Any] = {"enabled": enabled}
        if enabled:
            resource["attributes"] = {"allowed_network": "public-and-private"}
        body = {"metadata": metadata, "resources": [{"policy_type": "allowedNetwork", "policy_data": resource}]}
        answer, correlation_id = call(administrator, "PUT", "/instance/policies", json=body)
        assert answer.status_code == 204, answer.text
        asked = outcome(audited, correlation_id)["requestData"]
        assert asked["newValue"]["policyAllowedNetworkEnabled"] is enabled
        assert asked.get("initialValue", {}).items() >= before.items()


def test_grants_say_who_was_granted_what(audited: Service) -> None:
    with Iam(audited) as iam:
        somebody = iam.somebody()
        granted, correlation_id = call(iam.http, "POST", "/v1/policies", json=iam.policy(somebody.iam_id, Role.READER))
        event = outcome(audited, correlation_id)
        assert event["target"]["name"] == granted.json()["id"]
        assert event["requestData"]["newValue"] == {"roles": ["Reader"], "subject": somebody.iam_id, "scope": "*/*/*"}
        group = iam.http.post("/v2/groups", json={"name": "audited"}).json()["id"]
        body = {"members": [{"iam_id": somebody.iam_id, "type": "service"}]}
        _, correlation_id = call(iam.http, "PUT", f"/v2/groups/{group}/members", json=body)
        assert outcome(audited, correlation_id)["requestData"]["newValue"] == {"members": [somebody.iam_id]}
        made, correlation_id = call(iam.http, "POST", "/v1/apikeys", json={"name": "k", "iam_id": somebody.iam_id})
        event = outcome(audited, correlation_id)
        assert event["responseData"] == {"records": [f"api_key:{made.json()['id']}"]}
        assert made.json()["apikey"] not in json.dumps(event)
        _, correlation_id = call(iam.http, "DELETE", f"/v1/policies/{granted.json()['id']}")
        assert outcome(audited, correlation_id)["requestData"]["initialValue"]["subject"] == somebody.iam_id


def test_nobody_is_named(audited: Service, administrator: httpx.Client) -> None:
    """What people write about themselves and their keys stays out: names and descriptions of identities, API keys,
    groups, policies, keys and instances."""
    word = f"ada.{uuid.uuid4().hex}@example.org"
    with Iam(audited) as iam:
        body = {"account_id": iam.account, "name": word, "description": word, "apikey": {"name": word}}
        made = iam.http.post("/v1/serviceids/", json=body)
        assert made.status_code == 201
        who = made.json()["iam_id"]
        assert iam.http.post("/v2/groups", json={"name": word, "description": word}).status_code == 201
        policy = {**iam.policy(who, Role.READER), "description": word}
        assert iam.http.post("/v1/policies", json=policy).status_code == 201
        with iam.client(Somebody(who, "", "", made.json()["apikey"]["apikey"])) as client:
            assert client.get("/keys").status_code == 200
    named: dict[str, Any] = {"name": word[:80], "description": word, "tags": [word[:30]]}
    key = create_key(administrator, **named)
    assert administrator.get("/keys", params={"search": word}).status_code == 200
    assert administrator.get(f"/keys/{key}").status_code == 200
    for path in (audited.state.path / "audit").glob("*.jsonl"):
        assert word[:30].encode() not in path.read_bytes()


def test_acknowledgements_say_of_what(audited: Service, administrator: httpx.Client) -> None:
    """Good and bad, under the name of what was acknowledged."""
    with Iam(audited) as iam:
        storage = Adopter(iam)
        key = create_key(administrator, "acknowledged")
        storage.register(key, "bucket")
        assert administrator.post(f"/keys/{key}/actions/rotate").status_code == 204
        (notice,), _ = storage.events()
        newest = notice["keyVersion"]["id"]
        for version, status in ((str(uuid.uuid4()), 422), (newest, 204)):
            storage.http.headers["Correlation-Id"] = correlation_id = str(uuid.uuid4())
            answer = storage.acknowledge(notice["eventId"], "DEK_ENABLED", version)
            assert answer.status_code == status, answer.text
            intent, event = records(audited, correlation_id)
            assert (intent["action"], event["action"]) == ("kms.secrets-event.ack", "kms.secrets.ack-rotate")
            said = event["responseData"]
            assert said["eventAckData"]["eventId"] == notice["eventId"]
            assert said["eventAckData"]["newKeyVersionId"] == newest
            assert said["eventAckData"]["oldKeyVersionId"] != newest
            assert said["eventAckData"]["resourceCRN"] == storage.crn("bucket")
            assert ("reasonForFailure" in said) is (status == 422)
        storage.http.close()


def test_every_call_without_a_token_is_recorded_once(audited: Service) -> None:
    """Each route there is, both spellings of actions: one event, which says 401."""
    with httpx.Client(base_url=audited.url, timeout=60) as nobody:
        for method, path, action in guarded_calls():
            answer, correlation_id = call(nobody, method, path.replace("{", "").replace("}", "").replace(":path", ""))
            assert answer.status_code == 401, (method, path)
            (event,) = records(audited, correlation_id)
            assert (event["action"], event["outcome"], event["severity"]) == (action.value, "failure", "critical")
            assert (event["reason"]["reasonCode"], event["initiator"]["id"]) == (401, "unknown")
            assert event["initiator"]["host"]["address"] == "127.0.0.1"


def test_what_changes_something_says_so_first(audited: Service, administrator: httpx.Client) -> None:
    """The life of a key: an intent before each change, then its outcome, with the members that the contract names."""
    created, correlation_id = call(administrator, "POST", "/keys", json=create_body("audited"))
    key = created.json()["resources"][0]
    intent, outcome = records(audited, correlation_id)
    assert (intent["outcome"], outcome["outcome"], outcome["intent"]) == ("pending", "success", intent["id"])
    assert outcome["target"] == {"id": key["crn"], "name": key["id"], "typeURI": "kms/secrets"}
    assert outcome["initiator"]["id"] == key["createdBy"]
    assert outcome["requestData"] == {
        "requestURI": "/api/v2/keys",
        "instanceID": audited.state.instance_id,
        "keyType": "root",
    }
    said = outcome["responseData"]
    assert (said["keyId"], said["keyState"], said["keyRingId"]) == (key["id"], 1, "default")
    assert said["keyVersionId"] == key["keyVersion"]["id"]

    wrapped, correlation_id = call(administrator, "POST", f"/keys/{key['id']}/actions/wrap")
    (event,) = records(audited, correlation_id)
    assert (event["action"], event["responseData"]["keyVersionId"]) == ("kms.secrets.wrap", key["keyVersion"]["id"])

    _, correlation_id = call(administrator, "POST", f"/keys/{key['id']}/actions/rotate")
    intent, outcome = records(audited, correlation_id)
    assert (outcome["action"], outcome["severity"]) == ("kms.secrets.rotate", "warning")

    body = {"ciphertext": wrapped.json()["ciphertext"]}
    rewrapped, correlation_id = call(administrator, "POST", f"/keys/{key['id']}/actions/rewrap", json=body)
    (event,) = records(audited, correlation_id)
    assert event["responseData"]["keyVersionId"] == key["keyVersion"]["id"]
    assert event["responseData"]["rewrappedKeyVersionId"] == rewrapped.json()["rewrappedKeyVersion"]["id"]

    _, correlation_id = call(administrator, "POST", f"/keys/{key['id']}/actions/unwrap", json={"ciphertext": "AAAA"})
    (event,) = records(audited, correlation_id)
    assert (event["outcome"], event["responseData"]) == ("failure", {})

    _, correlation_id = call(administrator, "DELETE", f"/keys/{key['id']}")
    intent, outcome = records(audited, correlation_id)
    assert (outcome["severity"], outcome["responseData"]["keyState"]) == ("critical", 5)

    refused, correlation_id = call(administrator, "POST", f"/keys/{key['id']}/actions/disable")
    assert refused.status_code >= 400
    intent, outcome = records(audited, correlation_id)
    assert (outcome["outcome"], outcome["reason"]["reasonCode"]) == ("failure", refused.status_code)


def test_lists_say_how_many_and_never_what(audited: Service, administrator: httpx.Client) -> None:
    listed, correlation_id = call(administrator, "GET", "/keys?limit=1&search=audited")
    (event,) = records(audited, correlation_id)
    assert event["responseData"]["totalResources"] == listed.json()["metadata"]["collectionTotal"]
    assert event["requestData"]["requestURI"] == "/api/v2/keys"


def test_import_tokens_say_how_often(audited: Service, administrator: httpx.Client) -> None:
    made, correlation_id = call(administrator, "POST", "/import_token", json={"maxAllowedRetrievals": 2})
    assert made.status_code == 200
    assert records(audited, correlation_id)[-1]["responseData"]["remainingRetrievals"] == 2
    got, correlation_id = call(administrator, "GET", "/import_token")
    event = outcome(audited, correlation_id)
    assert (event["responseData"]["maxAllowedRetrievals"], event["responseData"]["remainingRetrievals"]) == (2, 1)
    assert got.json()["nonce"] not in json.dumps(event)


def test_log_ins_say_who(audited: Service) -> None:
    """Good and bad; neither the API key nor the token is there."""
    form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey"}
    with httpx.Client(base_url=audited.url, timeout=60) as client:
        good, good_id = call(client, "POST", "/identity/token", data={**form, "apikey": audited.state.api_key})
        bad, bad_id = call(client, "POST", "/identity/token", data={**form, "apikey": "x" + audited.state.api_key})
    assert (good.status_code, bad.status_code) == (200, 400)
    ((said,), (refused,)) = records(audited, good_id), records(audited, bad_id)
    assert said["initiator"]["id"].startswith("iam-ServiceId-")
    assert (said["outcome"], refused["outcome"], refused["initiator"]["id"]) == ("success", "failure", "unknown")


def test_health_is_not_recorded(audited: Service) -> None:
    with httpx.Client(base_url=audited.url) as client:
        for path in ("/healthz", "/readyz", "/version", "/identity/keys"):
            _, correlation_id = call(client, "GET", path)
            assert records(audited, correlation_id) == []


@pytest.mark.parametrize(
    ("action", "changing"),
    [
        ("kms.secrets.wrap", False),
        ("kms.secrets.list", False),
        ("kms.secrets.purge", True),
        ("iam.policy.write", True),
        ("kms.import-token.read", True),
    ],
)
def test_intents(action: str, changing: bool) -> None:
    assert changes(action) is changing
