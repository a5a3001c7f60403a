"""A damaged row: what needs it answers 500 and says what to do; the key can be found and deleted; others are none the
worse."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
import sqlalchemy

from hsmkms.store.changes import record_change
from hsmkms.store.engine import Database
from hsmkms.store.tables import key as key_table
from hsmkms.store.tables import key_version
from tests.api.refusals import require_refused
from tests.support.deployment import Service, create_key
from tests.support.iam import Iam, key_client

Damage = Callable[[str], sqlalchemy.Executable]
CODE = "INCOMPLETE_METADATA_ERR"


@pytest.fixture
def own(service: Service, iam: Iam) -> Iterator[httpx.Client]:
    """The administrator in an instance of this test's own."""
    with key_client(service, iam.token, iam.instance()) as http:
        yield http


def damage(service: Service, own: httpx.Client, key_id: str, statement: sqlalchemy.Executable) -> None:
    """Change what the database holds of a key, and let the service notice."""
    database = Database(service.database_url)
    try:
        with database.write() as connection:
            assert connection.execute(statement).rowcount == 1
            record_change(connection, "key", key_id)
    finally:
        database.close()
    # This call asks the change feed.
    assert own.get("/instance/policies").status_code == 200


def without_versions(key_id: str) -> sqlalchemy.Executable:
    return sqlalchemy.delete(key_version).where(key_version.c.key_id == key_id)


def with_values(**values: object) -> Damage:
    return lambda key_id: sqlalchemy.update(key_table).where(key_table.c.id == key_id).values(values)


def test_a_root_key_without_a_version(service: Service, own: httpx.Client) -> None:
    key, whole = create_key(own), create_key(own)
    sealed = own.post(f"/keys/{key}/actions/wrap").json()["ciphertext"]
    damage(service, own, key, without_versions(key))
    for action, body in (("wrap", {}), ("unwrap", {"ciphertext": sealed}), ("rewrap", {"ciphertext": sealed})):
        require_refused(own.post(f"/keys/{key}/actions/{action}", json=body), 500, CODE)
    for action in ("rotate", "disable"):
        require_refused(own.post(f"/keys/{key}/actions/{action}"), 500, CODE)
    require_deletable(own, key, whole)


@pytest.mark.parametrize(
    "how", [with_values(sealed_payload=None), with_values(sealed_payload=b"damaged")], ids=["absent", "damaged"]
)
def test_a_standard_key_without_its_payload(service: Service, own: httpx.Client, how: Damage) -> None:
    key, whole = create_key(own, extractable=True), create_key(own, extractable=True)
    damage(service, own, key, how(key))
    require_refused(own.get(f"/keys/{key}"), 500, CODE)
    assert "payload" in own.get(f"/keys/{whole}").json()["resources"][0]
    require_deletable(own, key, whole)


def test_a_state_that_does_not_exist(service: Service, own: httpx.Client) -> None:
    """Nobody can tell what may be done with such a key, so nothing may."""
    key, whole = create_key(own), create_key(own)
    damage(service, own, key, with_values(state=9)(key))
    for method, path in (("GET", ""), ("GET", "/metadata"), ("POST", "/actions/wrap"), ("DELETE", "")):
        require_refused(own.request(method, f"/keys/{key}{path}"), 500, CODE)
    assert [one["id"] for one in own.get("/keys").json()["resources"]] == [whole]


def require_deletable(client: httpx.Client, key: str, whole: str) -> None:
    """The damaged key is shown beside the whole one, and deleted as the answer advises."""
    assert client.get(f"/keys/{key}/metadata").status_code == 200
    assert {one["id"] for one in client.get("/keys").json()["resources"]} == {key, whole}
    assert client.delete(f"/keys/{key}", headers={"Prefer": "return=representation"}).status_code == 200
    assert {one["id"] for one in client.get("/keys").json()["resources"]} == {whole}
