"""Ways around grants that a reviewer tried."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy

from hsmkms.domain.access import Role
from hsmkms.store.changes import record_change
from hsmkms.store.engine import Database
from hsmkms.store.tables import key, key_version
from tests.api.backstage import found_instance
from tests.support.deployment import Service, create_body, create_key
from tests.support.iam import GRANT, Iam, key_client, log_in


@pytest.fixture(scope="module")
def alone(service: Service) -> Iterator[Iam]:
    """The only administrator of another account."""
    other = found_instance(service, "alone", "c" * 32)
    with Iam(service, other.api_key) as iam:
        yield iam


class Stalled:
    """A request whose headers were sent and whose body comes later."""

    def __init__(self, service: Service, method: str, path: str, token: str, body: bytes) -> None:
        self._body = body
        self._socket = socket.create_connection(("127.0.0.1", service.port))
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            f"Bluemix-Instance: {service.state.instance_id}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self._socket.sendall(head.encode())

    def finish(self) -> int:
        """Send the body; the status."""
        with contextlib.closing(self._socket):
            self._socket.sendall(self._body)
            answer = b""
            while chunk := self._socket.recv(65_536):
                answer += chunk
        return int(answer.split(b" ")[1])


def test_a_right_that_ends_while_the_body_is_on_its_way_is_no_right(
    service: Service, client: httpx.Client, iam: Iam
) -> None:
    somebody, root = iam.somebody(), create_key(client)
    policy = iam.grant(somebody.iam_id, Role.MANAGER, Role.ADMINISTRATOR)
    token = log_in(service, somebody.api_key)
    calls = [
        ("POST", f"/api/v2/keys/{root}/actions/wrap", b'{"plaintext":"AAAA"}'),
        ("POST", f"/api/v2/keys/{root}/actions/rotate", b"{}      "),
        ("POST", "/v2/groups", b'{"name":"mine"}'),
    ]
    stalled = [Stalled(service, method, path, token, body) for method, path, body in calls]
    time.sleep(0.3)
    iam.revoke(policy)
    with key_client(service, token) as http:
        assert http.post(f"/keys/{root}/actions/wrap").status_code == 401
    assert [one.finish() for one in stalled] == [401, 401, 403]


@contextlib.contextmanager
def changed(service: Service, table: sqlalchemy.Table, row_id: str, **values: Any) -> Iterator[None]:
    """A row that somebody edits in the database, until the block ends."""
    database = Database(service.database_url)
    before: dict[str, Any] = {}
    for now in (values, before):
        with database.write() as connection:
            row = connection.execute(sqlalchemy.select(table).where(table.c.id == row_id)).mappings().one()
            if now is values:
                before.update({name: row[name] for name in values})
            connection.execute(sqlalchemy.update(table).where(table.c.id == row_id).values(now))
            record_change(connection, "instance", "all")
            for key_id in connection.execute(sqlalchemy.select(key.c.id)).scalars().all():
                record_change(connection, "key", key_id)
        # Every log-in asks the change feed.
        log_in(service, service.state.api_key)
        if now is values:
            try:
                yield
            except BaseException:
                database.close()
                raise
    database.close()


def test_a_key_row_moved_to_another_instance_or_key_opens_nothing(
    service: Service, client: httpx.Client, iam: Iam
) -> None:
    """Who writes the database cannot make somebody else's root key his own, warm or cold."""
    victim, mine = create_key(client), iam.instance()
    wrapped = client.post(f"/keys/{victim}/actions/wrap").json()
    with key_client(service, iam.token, mine) as own:
        attacker = create_key(own)
        with changed(service, key, victim, instance_id=mine):
            answer = own.post(f"/keys/{victim}/actions/unwrap", json={"ciphertext": wrapped["ciphertext"]})
            assert answer.status_code == 503, answer.text
        version = client.get(f"/keys/{victim}/versions").json()["resources"][0]["id"]
        with changed(service, key_version, version, key_id=attacker, number=2):
            answer = own.post(f"/keys/{attacker}/actions/unwrap", json={"ciphertext": wrapped["ciphertext"]})
            assert answer.status_code == 503, answer.text
    opened = client.post(f"/keys/{victim}/actions/unwrap", json={"ciphertext": wrapped["ciphertext"]})
    assert opened.json()["plaintext"] == wrapped["plaintext"]


def test_a_log_in_during_a_rotation_does_not_outlive_it(service: Service, iam: Iam) -> None:
    """Many log in with the old secret while the key gets a new one; not one of their tokens is good afterwards."""
    somebody = iam.somebody()
    iam.grant(somebody.iam_id, Role.READER)
    tokens: list[dict[str, str]] = []

    def log_in_until_refused(_: int) -> None:
        while True:
            form = {"grant_type": GRANT, "apikey": somebody.api_key}
            answer = httpx.post(f"{service.url}/identity/token", data=form)
            if answer.status_code != 200:
                return
            tokens.append(answer.json())

    with ThreadPoolExecutor(4) as threads:
        clients = [threads.submit(log_in_until_refused, number) for number in range(4)]
        done = service.state.run("iam", "api-keys", "rotate", somebody.api_key_id, stdin=b"", **service.extra)
        for one in clients:
            one.result(timeout=30)
    assert done.returncode == 0, done.stderr
    new = done.stdout.decode().split()[1]
    for token in tokens[-40:]:
        with key_client(service, token["access_token"]) as http:
            assert http.get("/keys").status_code == 401
        form = {"grant_type": "refresh_token", "refresh_token": token["refresh_token"]}
        assert httpx.post(f"{service.url}/identity/token", data=form).status_code == 400
    with key_client(service, log_in(service, new)) as http:
        assert http.get("/keys").status_code == 200


def test_refresh_keeps_the_log_in_and_ends_with_it(service: Service, iam: Iam) -> None:
    somebody = iam.somebody()
    iam.grant(somebody.iam_id, Role.READER)
    form = {"grant_type": GRANT, "apikey": somebody.api_key}
    first = httpx.post(f"{service.url}/identity/token", data=form).json()
    renew = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"]}
    second = httpx.post(f"{service.url}/identity/token", data=renew).json()
    for token in (first, second):
        with key_client(service, token["access_token"]) as http:
            assert http.get("/keys").status_code == 200
        # Neither may stand in for the other.
        with key_client(service, token["refresh_token"]) as http:
            assert http.get("/keys").status_code == 401
        swapped = {"grant_type": "refresh_token", "refresh_token": token["access_token"]}
        assert httpx.post(f"{service.url}/identity/token", data=swapped).status_code == 400
    assert httpx.post(f"{service.url}/identity/revoke", data={"token": second["refresh_token"]}).status_code == 200
    for token in (first, second):
        with key_client(service, token["access_token"]) as http:
            assert http.get("/keys").status_code == 401
    assert httpx.post(f"{service.url}/identity/token", data=renew).status_code == 400
    # What is no token of ours is as good as revoked, and tells nothing.
    for nonsense in ("x", "a.b.c", "é" * 100):
        assert httpx.post(f"{service.url}/identity/revoke", data={"token": nonsense}).status_code == 200


def test_the_last_administrator_does_not_lock_himself_out_by_expiry(alone: Iam) -> None:
    (own,) = alone.http.get("/v1/apikeys").json()["apikeys"]
    tag = alone.http.get(f"/v1/apikeys/{own['id']}").headers["ETag"]
    for life in (timedelta(seconds=3), timedelta(hours=23)):
        body = {"expires_at": (datetime.now(UTC) + life).isoformat()}
        answer = alone.http.put(f"/v1/apikeys/{own['id']}", json=body, headers={"If-Match": tag})
        assert answer.status_code == 409, answer.text
    body = {"expires_at": (datetime.now(UTC) + timedelta(days=90)).isoformat()}
    assert alone.http.put(f"/v1/apikeys/{own['id']}", json=body, headers={"If-Match": tag}).status_code == 200


def test_two_administrators_cannot_remove_each_other_at_the_same_time(alone: Iam) -> None:
    """However the requests fall, one of them stays and can log in."""
    for _ in range(5):
        other = alone.somebody()
        policy = alone.grant(other.iam_id, Role.ADMINISTRATOR)
        with httpx.Client(
            base_url=alone.service.url, headers={"Authorization": f"Bearer {log_in(alone.service, other.api_key)}"}
        ) as theirs:
            mine = [
                one["id"]
                for one in alone.http.get(
                    "/v1/policies", params={"account_id": alone.account, "iam_id": alone.iam_id}
                ).json()["policies"]
            ]
            with ThreadPoolExecutor(2) as threads:
                here = threads.submit(alone.http.post, f"/v1/apikeys/{other.api_key_id}/disable")
                there = threads.submit(theirs.delete, f"/v1/policies/{mine[0]}")
                statuses = [here.result().status_code, there.result().status_code]
        assert statuses.count(204) <= 1, statuses
        if statuses[1] == 204:
            with httpx.Client(
                base_url=alone.service.url,
                headers={"Authorization": f"Bearer {log_in(alone.service, other.api_key)}"},
            ) as theirs:
                body = alone.policy(alone.iam_id, Role.ADMINISTRATOR, Role.MANAGER)
                assert theirs.post("/v1/policies", json=body).status_code == 201
        assert alone.http.delete(f"/v1/policies/{policy}").status_code == 204
        assert alone.http.delete(f"/v1/serviceids/{other.id}").status_code == 204


def test_a_star_is_not_everybody(iam: Iam) -> None:
    assert iam.http.get("/v1/serviceids/*").status_code == 404
    assert iam.http.get("/v1/apikeys", params={"iam_id": "*"}).json()["apikeys"] == []
    group = iam.http.post("/v2/groups", json={"name": "star"}).json()["id"]
    body = {"members": [{"iam_id": "*", "type": "user"}]}
    assert iam.http.put(f"/v2/groups/{group}/members", json=body).status_code == 400


def test_the_right_secret_never_waits_for_wrong_ones(service: Service, iam: Iam) -> None:
    """Failures of one key from one address wait longer and longer; its right secret, and other keys, do not."""
    somebody, other = iam.somebody(), iam.somebody()
    wrong = somebody.api_key[:-1] + ("A" if somebody.api_key[-1] != "A" else "B")

    def status(secret: str) -> int:
        form = {"grant_type": GRANT, "apikey": secret}
        return httpx.post(f"{service.url}/identity/token", data=form).status_code

    answers = [status(wrong) for _ in range(12)]
    assert answers[:6] == [400] * 6
    assert 429 in answers
    answer = httpx.post(f"{service.url}/identity/token", data={"grant_type": GRANT, "apikey": wrong})
    assert answer.status_code == 400 or int(answer.headers["Retry-After"]) >= 1
    assert status(somebody.api_key) == status(other.api_key) == 200


def test_a_missing_alias_and_one_in_another_ring_take_the_same_statements(
    service: Service, client: httpx.Client, iam: Iam
) -> None:
    """The answer is the same, whatever there is; its time is measured by the reviewer's script, not here."""
    somebody = iam.somebody()
    assert client.post("/key_rings/other-ring").status_code in (201, 409)
    iam.grant(somebody.iam_id, Role.READER, keyRing="other-ring")
    made = client.post("/keys", json=create_body("hidden", aliases=["hidden-alias"]))
    assert made.status_code in (201, 409)
    with iam.client(somebody) as http:
        answers = [
            http.request(method, f"/keys/{reference}{path}")
            for method, path in (("GET", "/metadata"), ("POST", "/actions/wrap"))
            for reference in ("hidden-alias", "absent-alias", "4d4ff6f0-0000-4000-8000-000000000000")
        ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
