"""Two processes on one database and one token: what one commits the other obeys."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.deployment import Service, create_key

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def other(service: Service) -> Iterator[httpx.Client]:
    """A client of a second node beside `service`."""
    with Service(service.state, workers=1, **service.extra) as second, second.client() as client:
        yield client


def test_what_one_node_makes_the_other_uses(client: httpx.Client, other: httpx.Client) -> None:
    """Keys and versions that appear after the other node built its index."""
    for _ in range(10):
        key = create_key(client)
        wrapped = other.post(f"/keys/{key}/actions/wrap").json()
        assert client.post(f"/keys/{key}/actions/rotate").status_code == 204
        renewed = client.post(f"/keys/{key}/actions/rewrap", json={"ciphertext": wrapped["ciphertext"]}).json()
        opened = other.post(f"/keys/{key}/actions/unwrap", json={"ciphertext": renewed["ciphertext"]})
        assert opened.status_code == 200, opened.text
        assert opened.json()["plaintext"] == wrapped["plaintext"]


def test_deletion_is_obeyed_within_a_second(client: httpx.Client, other: httpx.Client) -> None:
    for _ in range(3):
        key = create_key(client)
        assert other.post(f"/keys/{key}/actions/wrap").status_code == 200
        assert client.delete(f"/keys/{key}").status_code == 204
        deleted_at = time.monotonic()
        assert client.post(f"/keys/{key}/actions/wrap").status_code == 410
        while other.post(f"/keys/{key}/actions/wrap").status_code != 410:
            assert time.monotonic() - deleted_at < 1.0


def test_a_disabled_key_is_refused_within_a_second(client: httpx.Client, other: httpx.Client) -> None:
    for _ in range(3):
        key = create_key(client)
        assert other.post(f"/keys/{key}/actions/wrap").status_code == 200
        assert client.post(f"/keys/{key}/actions/disable").status_code == 204
        disabled_at = time.monotonic()
        assert client.post(f"/keys/{key}/actions/wrap").status_code == 409
        while other.post(f"/keys/{key}/actions/wrap").status_code != 409:
            assert time.monotonic() - disabled_at < 1.0


def test_simultaneous_rotations_make_one_version(client: httpx.Client, other: httpx.Client) -> None:
    key = create_key(client)
    with ThreadPoolExecutor(2) as threads:
        answers = threads.map(lambda node: node.post(f"/keys/{key}/actions/rotate").status_code, (client, other))
    assert sorted(answers) == [204, 409]
    assert len(client.get(f"/keys/{key}/versions").json()["resources"]) == 2
