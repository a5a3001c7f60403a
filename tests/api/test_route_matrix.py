"""No route without an action; and what a route declares is what it enforces, for every role."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import httpx
import pytest

import hsmkms.api
from hsmkms.api.cold import KmsRoute, OpenRoute
from hsmkms.api.hot import ACTIONS
from hsmkms.domain.access import ROLE_ACTIONS, Action, Role
from tests.support.deployment import Service, create_body, create_key
from tests.support.iam import Iam, Somebody, log_in

OPEN = {
    "/healthz",
    "/readyz",
    "/version",
    "/identity/token",
    "/identity/revoke",
    "/identity/keys",
    "/oidc/token",
}
NOWHERE = "4d4ff6f0-0000-4000-8000-000000000000"
POLICY: dict[str, Any] = {
    "type": "access",
    "subjects": [{"attributes": [{"name": "iam_id", "value": "nobody"}]}],
    "roles": [{"role_id": "crn:v1:bluemix:public:iam::::serviceRole:Reader"}],
    "resources": [{"attributes": [{"name": "serviceName", "value": "kms"}, {"name": "accountId", "value": "x"}]}],
}
POLICY_2: dict[str, Any] = {
    "type": "access",
    "subject": {"attributes": [{"key": "iam_id", "operator": "stringEquals", "value": "nobody"}]},
    "control": {"grant": {"roles": POLICY["roles"]}},
    "resource": {
        "attributes": [
            {"key": "serviceName", "operator": "stringEquals", "value": "kms"},
            {"key": "accountId", "operator": "stringEquals", "value": "x"},
        ]
    },
}
# Bodies that a handler can read, so that it is the right that is decided about.
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/api/v2/keys"): create_body("matrix", extractable=True),
    ("POST", "/api/v2/keys_with_policy_overrides"): create_body("matrix", extractable=True),
    ("PUT", "/api/v2/keys/{id}/policies"): {
        "metadata": {"collectionType": "application/vnd.ibm.kms.policy+json", "collectionTotal": 1},
        "resources": [{"dualAuthDelete": {"enabled": False}}],
    },
    ("PUT", "/api/v2/instance/policies"): {
        "metadata": {"collectionType": "application/vnd.ibm.kms.policy+json", "collectionTotal": 1},
        "resources": [{"policy_type": "metrics", "policy_data": {"enabled": False}}],
    },
    ("PATCH", "/api/v2/keys/{id}"): {"keyRingID": "default"},
    ("POST", "/api/v2/keys/{id}/actions/unwrap"): {"ciphertext": "AAAA"},
    ("POST", "/api/v2/keys/{id}/actions/rewrap"): {"ciphertext": "AAAA"},
    ("POST", "/v1/serviceids/"): {"account_id": "x", "name": "matrix"},
    ("POST", "/v1/serviceids"): {"account_id": "x", "name": "matrix"},
    ("PUT", "/v1/serviceids/{id}"): {"name": "matrix"},
    ("POST", "/v1/apikeys"): {"name": "matrix", "iam_id": "nobody"},
    ("PUT", "/v1/apikeys/{id}"): {"name": "matrix"},
    ("POST", "/v2/groups"): {"name": "matrix"},
    ("PATCH", "/v2/groups/{group_id}"): {"name": "matrix"},
    ("PUT", "/v2/groups/{group_id}/members"): {"members": []},
    ("POST", "/v1/policies"): POLICY,
    ("PUT", "/v1/policies/{id}"): POLICY,
    ("PATCH", "/v1/policies/{id}"): {"state": "active"},
    ("POST", "/v2/policies"): POLICY_2,
    ("PUT", "/v2/policies/{id}"): POLICY_2,
    ("POST", "/v2/resource_instances"): {
        "name": "matrix",
        "target": "!",
        "resource_group": "x",
        "resource_plan_id": "x",
    },
    ("PATCH", "/v2/resource_instances/{id:path}"): {"name": "!!!"},
}


def all_routes() -> list[OpenRoute]:
    """Every route of every module of the HTTP room."""
    found: list[OpenRoute] = []
    for module in pkgutil.iter_modules(hsmkms.api.__path__):
        router = getattr(importlib.import_module(f"hsmkms.api.{module.name}"), "router", None)
        found += [] if router is None else router.routes
    return found


def guarded_calls() -> list[tuple[str, str, Action]]:
    """(method, path, action) of every call that is not for anybody."""
    calls: list[tuple[str, str, Action]] = []
    for route in all_routes():
        for method in sorted(route.methods or ()) if route.path not in OPEN else ():
            named = route.actions if isinstance(route, KmsRoute) else {}
            calls += [(method, f"{route.path}?action={name}", action) for name, action in named.items()]
            calls += [] if named else [(method, route.path, route.action)]
    hot = [("POST", f"/api/v2/keys/{{id}}/actions/{name}", action) for name, action in ACTIONS.items()]
    legacy = [("POST", f"/api/v2/keys/{{id}}?action={name}", action) for name, action in ACTIONS.items()]
    return [*calls, *hot, *legacy]


def test_every_route_has_an_action_or_is_open_on_purpose() -> None:
    for route in all_routes():
        assert isinstance(route, OpenRoute)
        if route.path in OPEN:
            assert not route.authenticated
        else:
            assert route.authenticated, route.path
            named = route.actions if isinstance(route, KmsRoute) else {}
            assert named or route.action in Action, route.path


def test_the_description_says_the_action(service: Service) -> None:
    paths = httpx.get(f"{service.url}/openapi.json").json()["paths"]
    for path, calls in paths.items():
        for call in calls.values():
            assert path in OPEN or call["x-action"] in {action.value for action in Action}, path


@pytest.fixture(scope="module")
def holders(service: Service, iam: Iam) -> dict[Role | None, Somebody]:
    """Somebody for each role on the whole account, and somebody without any."""
    found: dict[Role | None, Somebody] = {None: iam.somebody()}
    for role in Role:
        found[role] = iam.somebody()
        iam.grant(found[role].iam_id, role)
    return found


@pytest.mark.parametrize("role", [None, *Role], ids=lambda role: role.value if role else "no role")
def test_what_is_declared_is_enforced(
    service: Service, client: httpx.Client, iam: Iam, holders: dict[Role | None, Somebody], role: Role | None
) -> None:
    """Each call with a body that reaches the decision, on a key of its own."""
    granted = ROLE_ACTIONS[role] if role else frozenset()
    headers = {
        "Authorization": f"Bearer {log_in(service, holders[role].api_key)}",
        "Bluemix-Instance": service.state.instance_id,
        "If-Match": "0-0",
        "IAM-ApiKey": service.state.api_key,
    }
    key = create_key(client, "matrix")
    with httpx.Client(base_url=service.url, headers=headers, timeout=60) as http:
        for method, path, action in guarded_calls():
            body = BODIES.get((method, path))
            if body and "account_id" in body:
                body = {**body, "account_id": iam.account}
            place = (
                path.replace("{id:path}", service.state.instance_id)
                .replace("{key_ring_id}", "absent-ring")
                .replace("{alias}", "absent-alias")
            )
            place = place.replace("{id}", key if path.startswith("/api/") else "nothing")
            place = place.replace("{group_id}", "nothing").replace("{iam_id}", "nothing")
            if path.startswith("/v2/resource_instances/") and method == "DELETE":
                place = place.replace(service.state.instance_id, NOWHERE)
            answer = http.request(method, place, json=body)
            assert answer.status_code != 500, (method, path, answer.text)
            assert refused(path, answer) is (action not in granted), (method, path, answer.status_code)


def refused(path: str, answer: httpx.Response) -> bool:
    """Whether an answer says that the caller may not."""
    return answer.status_code == (401 if path.startswith("/api/") else 403)
