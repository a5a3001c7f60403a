"""Two processes on one database: what one takes away the other refuses within a second, on the hot path too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from hsmkms.domain.access import Role
from tests.support.deployment import Service, create_key
from tests.support.iam import Iam, Somebody, key_client, log_in

pytestmark = pytest.mark.alone

WITHIN_S = 1.0
SOURCE = "9b3c5a10-6f5e-4d43-8f0b-0d9a5f8f7a01"


@pytest.fixture(scope="module")
def second(service: Service) -> Iterator[Service]:
    """Another node."""
    with Service(service.state, workers=1, **service.extra) as second:
        yield second


def wrapping(http: httpx.Client, key: str) -> Callable[[], int]:
    """The status of a wrap, asked for anew each time."""
    return lambda: http.post(f"/keys/{key}/actions/wrap").status_code


def refused_within(ask: Callable[[], int], taken_away_at: float, status: int = 401) -> float:
    """Seconds until `ask` gives the status; fails when that takes longer than promised."""
    while ask() != status:
        assert time.monotonic() - taken_away_at < WITHIN_S
    return time.monotonic() - taken_away_at


def take_grant(iam: Iam, _: Somebody, policy: str, __: str) -> None:
    iam.revoke(policy)


def suspend_grant(iam: Iam, _: Somebody, policy: str, __: str) -> None:
    tag = iam.http.get(f"/v1/policies/{policy}").headers["ETag"]
    answer = iam.http.patch(f"/v1/policies/{policy}", json={"state": "deleted"}, headers={"If-Match": tag})
    assert answer.status_code == 200, answer.text


def lock_key(iam: Iam, somebody: Somebody, _: str, __: str) -> None:
    assert iam.http.post(f"/v1/apikeys/{somebody.api_key_id}/lock").status_code == 204


def disable_key(iam: Iam, somebody: Somebody, _: str, __: str) -> None:
    assert iam.http.post(f"/v1/apikeys/{somebody.api_key_id}/disable").status_code == 204


def delete_key(iam: Iam, somebody: Somebody, _: str, __: str) -> None:
    assert iam.http.delete(f"/v1/apikeys/{somebody.api_key_id}").status_code == 204


def lock_identity(iam: Iam, somebody: Somebody, _: str, __: str) -> None:
    assert iam.http.post(f"/v1/serviceids/{somebody.id}/lock").status_code == 204


def delete_identity(iam: Iam, somebody: Somebody, _: str, __: str) -> None:
    assert iam.http.delete(f"/v1/serviceids/{somebody.id}").status_code == 204


def revoke_token(iam: Iam, _: Somebody, __: str, token: str) -> None:
    assert httpx.post(f"{iam.service.url}/identity/revoke", data={"token": token}).status_code == 200


@pytest.mark.parametrize(
    "take_away",
    [take_grant, suspend_grant, lock_key, disable_key, delete_key, lock_identity, delete_identity, revoke_token],
)
def test_what_is_taken_away_at_one_node_is_refused_at_the_other(
    service: Service,
    second: Service,
    client: httpx.Client,
    iam: Iam,
    take_away: Callable[[Iam, Somebody, str, str], None],
) -> None:
    somebody, key = iam.somebody(), create_key(client)
    policy = iam.grant(somebody.iam_id, Role.READER, serviceInstance=service.state.instance_id)
    token = log_in(service, somebody.api_key)
    with key_client(service, token) as here, key_client(second, token) as there:
        for node in (here, there):
            assert eventually(wrapping(node, key)) == 200
            assert node.get(f"/keys/{key}/metadata").status_code == 200
        take_away(iam, somebody, policy, token)
        taken_away_at = time.monotonic()
        assert here.post(f"/keys/{key}/actions/wrap").status_code == 401
        refused_within(wrapping(there, key), taken_away_at)
        for node in (here, there):
            assert node.get(f"/keys/{key}/metadata").status_code == 401
            assert node.post(f"/keys/{key}/actions/wrap").status_code == 401


def eventually(ask: Callable[[], int]) -> int:
    """The first answer that is not 401; a grant, too, is known everywhere within a second."""
    started = time.monotonic()
    while (status := ask()) == 401 and time.monotonic() - started < WITHIN_S:
        pass
    return status


def test_a_deleted_authorization_ends_within_a_second(
    service: Service, second: Service, client: httpx.Client, iam: Iam
) -> None:
    somebody, key = iam.somebody(iam.source("cloud-object-storage", SOURCE)), create_key(client)
    made = iam.authorize("cloud-object-storage", service.state.instance_id)
    assert made.status_code == 201, made.text
    token = log_in(service, somebody.api_key)
    with key_client(second, token) as there:
        assert eventually(wrapping(there, key)) == 200
        iam.revoke(made.json()["id"])
        refused_within(wrapping(there, key), time.monotonic())


def test_a_deleted_key_is_refused_by_the_other_node(second: Service, client: httpx.Client, iam: Iam) -> None:
    key = create_key(client)
    with key_client(second, iam.token) as there:
        assert there.post(f"/keys/{key}/actions/wrap").status_code == 200
        assert client.delete(f"/keys/{key}").status_code == 204
        refused_within(wrapping(there, key), time.monotonic(), 410)


def test_the_signing_key_is_replaced_with_overlap_and_at_once(
    service: Service, second: Service, client: httpx.Client
) -> None:
    """An old token is good after a rotation, and not after one that is --at-once; new ones always are."""
    key, old = create_key(client), service.token()
    assert service.state.run("iam", "rotate-signing-key", stdin=b"", **service.extra).returncode == 0
    new = log_in(second, service.state.api_key)
    for token in (old, new):
        for node in (service, second):
            with key_client(node, token) as http:
                assert http.post(f"/keys/{key}/actions/wrap").status_code == 200
    assert len(httpx.get(f"{service.url}/identity/keys").json()["keys"]) == 2
    done = service.state.run("iam", "rotate-signing-key", "--at-once", stdin=b"", **service.extra)
    ended_at = time.monotonic()
    assert done.returncode == 0, done.stderr
    for token in (old, new):
        for node in (service, second):
            with key_client(node, token) as http:
                refused_within(wrapping(http, key), ended_at)
    assert len(httpx.get(f"{service.url}/identity/keys").json()["keys"]) == 1
    client.headers["Authorization"] = f"Bearer {log_in(second, service.state.api_key)}"
    assert client.post(f"/keys/{key}/actions/wrap").status_code == 200
