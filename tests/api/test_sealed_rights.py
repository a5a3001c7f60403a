"""Who can write the database and not use the token grants nothing: changed and invented rows are ignored, logged once
and named by `doctor`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy

from hsmkms.domain.access import Role
from hsmkms.domain.ids import new_id
from hsmkms.store.changes import record_change
from hsmkms.store.engine import Database
from hsmkms.store.tables import instance, record
from tests.support.deployment import Service, State, create_key
from tests.support.iam import GRANT, Iam, Somebody, key_client, log_in
from tests.support.postgresql import PostgresServer

Change = Callable[[dict[str, Any]], dict[str, Any]]


class Tampered:
    """A running service, its administrator, somebody without rights, and the database by the back door."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.iam = Iam(service)
        self.database = Database(service.database_url)

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The records of a kind."""
        with self.database.read() as connection:
            found = connection.execute(sqlalchemy.select(record).where(record.c.kind == kind))
            return [dict(row) for row in found.mappings()]

    def put(self, row: dict[str, Any]) -> None:
        """Write a row over what is there, and tell the change feed, as an attacker would."""
        place = (record.c.kind == row["kind"], record.c.id == row["id"])
        with self.database.write() as connection:
            connection.execute(sqlalchemy.delete(record).where(*place))
            connection.execute(sqlalchemy.insert(record).values(row))
            record_change(connection, row["kind"], row["id"])
        self._have_it_read()

    def forget(self, row: dict[str, Any]) -> None:
        """Take it away again."""
        with self.database.write() as connection:
            connection.execute(sqlalchemy.delete(record).where(record.c.kind == row["kind"], record.c.id == row["id"]))
            record_change(connection, row["kind"], row["id"])
        self._have_it_read()

    def _have_it_read(self) -> None:
        """Nobody is refused a log-in, nor told to wait, before the process has read what the feed tells."""
        form = {"grant_type": GRANT, "apikey": "nobody's"}
        answer = httpx.post(f"{self.service.url}/identity/token", data=form, verify=self.service.verify)
        assert answer.status_code in (400, 429), answer.text

    def doctor(self) -> str:
        """What `hsmkms doctor` says; it fails."""
        done = self.service.state.run("doctor", stdin=b"", **self.service.extra)
        assert done.returncode == 1, done.stdout
        return done.stdout.decode()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def tampered(
    request: pytest.FixtureRequest, seed_state: State, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tampered]:
    """A deployment of this module's own, as it ends up in a bad way."""
    state = seed_state.copy_to(tmp_path_factory.mktemp("tampered") / "state")
    extra: dict[str, str] = {}
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        extra["HSMKMS_DATABASE_URL"] = server.new_database("tampered")
        (state.path / "client.env").unlink()
        assert state.run("init", stdin=b"", **extra).returncode == 0
    with Service(state, workers=1, **extra) as service:
        found = Tampered(service)
        with found.iam:
            yield found
        found.database.close()


def wraps(tampered: Tampered, somebody: Somebody, key: str) -> int:
    """The status of a wrap with a fresh token."""
    with key_client(tampered.service, log_in(tampered.service, somebody.api_key)) as http:
        return http.post(f"/keys/{key}/actions/wrap").status_code


def edited(row: dict[str, Any], change: Change) -> dict[str, Any]:
    """A row with another document and the MAC of the old one."""
    return {**row, "document": json.dumps(change(json.loads(row["document"]))).encode()}


def of(tampered: Tampered, kind: str, record_id: str) -> dict[str, Any]:
    return next(row for row in tampered.rows(kind) if row["id"] == record_id)


def test_an_edited_policy_grants_nothing(tampered: Tampered) -> None:
    """Its roles, scope and subject; and the untouched row is good again afterwards."""
    iam, key = tampered.iam, _key(tampered)
    somebody, other = iam.somebody(), iam.somebody()
    here, elsewhere = tampered.service.state.instance_id, iam.instance()
    policy = iam.grant(somebody.iam_id, Role.READER, serviceInstance=elsewhere)
    row = of(tampered, "policy", policy)
    for change in (
        lambda document: {**document, "roles": ["Manager"]},
        lambda document: {**document, "scope": {"instance_id": None, "key_ring_id": None, "key_id": None}},
        lambda document: {
            **document,
            "scope": {**document["scope"], "instance_id": here},
        },
        lambda document: {**document, "subject": {**document["subject"], "iam_id": other.iam_id}},
    ):
        tampered.put(edited(row, change))
        assert wraps(tampered, somebody, key) == wraps(tampered, other, key) == 401
        assert policy in tampered.doctor()
    tampered.put(row)
    with key_client(tampered.service, log_in(tampered.service, somebody.api_key), elsewhere) as http:
        assert http.get("/keys").status_code == 200


def test_rows_that_were_put_in_by_hand_grant_nothing(tampered: Tampered) -> None:
    """A copy of a good policy under another id, with another revision, and one with a MAC of zeros."""
    iam, key = tampered.iam, _key(tampered)
    somebody = iam.somebody()
    holder = iam.somebody()
    granted = iam.grant(holder.iam_id, Role.READER)
    row = of(tampered, "policy", granted)
    fresh = new_id()
    copied = {**edited(row, lambda document: {**document, "id": fresh}), "id": fresh}
    for forged in (
        copied,
        {**edited(copied, lambda document: {**document, "subject": {"iam_id": somebody.iam_id}}), "mac": bytes(32)},
        {**row, "revision": row["revision"] + 1},
        {**row, "account": "f" * 32},
    ):
        tampered.put(forged)
        assert wraps(tampered, somebody, key) == 401
        assert forged["id"] in tampered.doctor()
        tampered.forget(forged)


def test_an_api_key_by_hand_is_none(tampered: Tampered) -> None:
    """Somebody who knows the secret of one key writes its hash into the administrator's row."""
    iam = tampered.iam
    somebody = iam.somebody()
    mine = of(tampered, "api_key", somebody.api_key_id)
    theirs = next(row for row in tampered.rows("api_key") if json.loads(row["document"])["iam_id"] == iam.iam_id)
    secret = json.loads(mine["document"])["secret_sha256"]
    tampered.put(edited(mine, lambda document: {**document, "iam_id": iam.iam_id}))
    _refused(tampered, somebody)
    tampered.put(mine)
    tampered.put(edited(theirs, lambda document: {**document, "secret_sha256": secret}))
    assert theirs["id"] in tampered.doctor()
    assert iam.http.get("/v1/apikeys").status_code == 401
    tampered.put(theirs)
    # Every log-in asks the change feed.
    log_in(tampered.service, somebody.api_key)
    assert iam.http.get("/v1/apikeys").status_code == 200


def test_memberships_logins_and_authorizations_by_hand_are_none(tampered: Tampered) -> None:
    iam, key = tampered.iam, _key(tampered)
    somebody, member = iam.somebody(), iam.somebody()
    group = iam.http.post("/v2/groups", json={"name": "sealed"}).json()["id"]
    body = {"members": [{"iam_id": member.iam_id, "type": "service"}]}
    assert iam.http.put(f"/v2/groups/{group}/members", json=body).status_code == 207
    iam.grant(group, Role.READER)
    assert wraps(tampered, member, key) == 200
    row = of(tampered, "access_group", group)
    member_of = {"iam_id": somebody.iam_id}
    added = edited(row, lambda document: {**document, "members": [{**document["members"][0], **member_of}]})
    tampered.put(added)
    assert wraps(tampered, somebody, key) == wraps(tampered, member, key) == 401
    tampered.put(row)
    assert wraps(tampered, member, key) == 200
    source = iam.somebody(iam.source("cloudantnosqldb", "cloudant-1"))
    made = iam.authorize("databases-for-postgresql", tampered.service.state.instance_id).json()["id"]
    row = of(tampered, "policy", made)
    tampered.put(
        edited(row, lambda document: {**document, "subject": {**document["subject"], "service": "cloudantnosqldb"}})
    )
    assert wraps(tampered, source, key) == 401
    tampered.forget(row)


def test_an_instance_cannot_be_moved_to_another_account(tampered: Tampered) -> None:
    """Nor brought back after it was deleted."""
    iam = tampered.iam
    guid = iam.instance()
    for values in ({"account": "f" * 32}, {"region": "eu-de"}, {"mac": None}, {"name": "other"}):
        with tampered.database.write() as connection:
            before = connection.execute(sqlalchemy.select(instance).where(instance.c.id == guid)).mappings().one()
            connection.execute(sqlalchemy.update(instance).where(instance.c.id == guid).values(values))
            record_change(connection, "instance", guid)
        iam.http.get("/v1/policies", params={"account_id": iam.account})
        assert iam.http.get(f"/v2/resource_instances/{guid}").status_code == 404
        assert guid in tampered.doctor()
        with tampered.database.write() as connection:
            connection.execute(sqlalchemy.update(instance).where(instance.c.id == guid).values(dict(before)))
            record_change(connection, "instance", guid)
        assert iam.http.get(f"/v2/resource_instances/{guid}").status_code == 200
    assert iam.http.delete(f"/v2/resource_instances/{guid}").status_code == 204
    with tampered.database.write() as connection:
        connection.execute(sqlalchemy.update(instance).where(instance.c.id == guid).values(deleted_at=None))
        record_change(connection, "instance", guid)
    assert iam.http.get(f"/v2/resource_instances/{guid}").status_code == 404


def test_the_log_says_so_once(tampered: Tampered) -> None:
    """One line for each forged row, however often it is asked for."""
    iam = tampered.iam
    somebody = iam.somebody()
    row = of(tampered, "api_key", somebody.api_key_id)
    tampered.put(edited(row, lambda document: {**document, "name": "forged"}))
    for _ in range(5):
        _refused(tampered, somebody)
    lines = [json.loads(line) for line in tampered.service.log.read_text().splitlines()]
    alarms = [line for line in lines if line.get("id") == somebody.api_key_id and line["level"] == "critical"]
    assert len(alarms) == 1
    tampered.put(row)


def _key(tampered: Tampered) -> str:
    with tampered.service.client() as client:
        return create_key(client)


def _refused(tampered: Tampered, somebody: Somebody) -> None:
    form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": somebody.api_key}
    answer = tampered.iam.http.post("/identity/token", data=form)
    assert answer.status_code in (400, 429), answer.text
