"""No request, however malformed, gives 500, and every answer is one that the OpenAPI description names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.support.deployment import Service, State

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance"
)

ANSWER_S = 130
"""For as long as the service itself may wait for a token to generate an RSA pair: the tool's own 10 s are less than
that takes two busy processors."""


def test_description_is_complete(shared_service: Service) -> None:
    """Each call of the service is described, the hot ones included."""
    paths = httpx.get(f"{shared_service.url}/openapi.json").json()["paths"]
    assert {path: set(calls) for path, calls in paths.items()} == {
        "/api/v2/keys": {"get", "post", "head"},
        "/api/v2/keys/{id}": {"get", "patch", "delete"},
        "/api/v2/keys/{id}/metadata": {"get"},
        "/api/v2/keys/{id}/versions": {"get"},
        "/api/v2/keys/{id}/actions/wrap": {"post"},
        "/api/v2/keys/{id}/actions/unwrap": {"post"},
        "/api/v2/keys/{id}/actions/rewrap": {"post"},
        "/api/v2/keys/{id}/actions/bulk_wrap": {"post"},
        "/api/v2/keys/{id}/actions/bulk_unwrap": {"post"},
        "/api/v2/keys/{id}/actions/rotate": {"post"},
        "/api/v2/keys/{id}/actions/disable": {"post"},
        "/api/v2/keys/{id}/actions/enable": {"post"},
        "/api/v2/keys/{id}/actions/setKeyForDeletion": {"post"},
        "/api/v2/keys/{id}/actions/unsetKeyForDeletion": {"post"},
        "/api/v2/keys/{id}/restore": {"post"},
        "/api/v2/keys/{id}/purge": {"delete"},
        "/api/v2/keys/{id}/policies": {"get", "put"},
        "/api/v2/keys/{id}/aliases/{alias}": {"post", "delete"},
        "/api/v2/keys/{id}/actions/sync": {"post"},
        "/api/v2/keys/{id}/registrations": {"get"},
        "/api/v2/keys/{id}/registrations/{crn}": {"get", "post", "put", "patch", "delete"},
        "/api/v2/keys/{id}/events": {"get"},
        "/api/v2/keys/registrations": {"get"},
        "/api/v2/events": {"get"},
        "/api/v2/import_token": {"get", "post"},
        "/api/v2/event_ack": {"post"},
        "/api/v2/keys_with_policy_overrides": {"post"},
        "/api/v2/instance/policies": {"get", "put"},
        "/api/v2/instance/allowed_ip_port": {"get"},
        "/api/v2/key_rings": {"get"},
        "/api/v2/key_rings/{key_ring_id}": {"post", "delete"},
        "/identity/token": {"post"},
        "/identity/revoke": {"post"},
        "/v1/serviceids/": {"get", "post"},
        "/v1/serviceids/{id}": {"get", "put", "delete"},
        "/v1/serviceids/{id}/lock": {"post", "delete"},
        "/v1/apikeys": {"get", "post"},
        "/v1/apikeys/details": {"get"},
        "/v1/apikeys/{id}": {"get", "put", "delete"},
        "/v1/apikeys/{id}/lock": {"post", "delete"},
        "/v1/apikeys/{id}/disable": {"post", "delete"},
        "/v2/groups": {"get", "post"},
        "/v2/groups/{group_id}": {"get", "patch", "delete"},
        "/v2/groups/{group_id}/members": {"get", "put"},
        "/v2/groups/{group_id}/members/{iam_id}": {"head", "delete"},
        "/v1/policies": {"get", "post"},
        "/v1/policies/{id}": {"get", "put", "patch", "delete"},
        "/v2/policies": {"get", "post"},
        "/v2/policies/{id}": {"get", "put", "delete"},
        "/v2/roles": {"get"},
        "/v2/resource_instances": {"get", "post"},
        "/v2/resource_instances/{id}": {"get", "patch", "delete"},
        "/identity/keys": {"get"},
        "/oidc/token": {"post"},
        "/healthz": {"get"},
        "/readyz": {"get"},
        "/version": {"get"},
    }


@pytest.mark.timeout(1_900)
@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("examples", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_no_request_gives_500(
    state: State, run_service: Callable[..., Service], mode: str, examples: int, tmp_path: Path
) -> None:
    """Generated requests with a valid token: well-formed and deliberately broken ones, on a service of their own, for
    some of them change its policies."""
    service = run_service(state)
    done = subprocess.run(
        [
            str(SCHEMATHESIS),
            "run",
            f"{service.url}/openapi.json",
            f"--header=Authorization: Bearer {service.token()}",
            f"--header=Bluemix-Instance: {state.instance_id}",
            f"--mode={mode}",
            f"--checks={CHECKS}",
            "--phases=examples,coverage,fuzzing",
            f"--max-examples={examples}",
            f"--request-timeout={ANSWER_S}",
            "--seed=1",
            "--continue-on-failure",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1_800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
