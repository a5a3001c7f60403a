"""What happens by time alone: expiry, rotation by policy, purge after 90 days; by one process of several, and by
another when that one dies. Time passes by the back door: the moments in a key's row are moved into the past."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy

from hsmkms.store.changes import record_change
from hsmkms.store.engine import Database
from hsmkms.store.tables import key as key_table
from tests.api.backstage import age
from tests.api.test_lifecycle import put
from tests.support.deployment import Service, State, create_body, create_key
from tests.support.postgresql import PostgresServer

pytestmark = pytest.mark.alone

REPLACED_WITHIN_S = 30.0


class Nodes:
    """Two services on one database, and the database itself."""

    def __init__(self, state: State, extra: dict[str, str], run: Callable[..., Service]) -> None:
        self.state, self.extra = state, extra
        self.first, self.second = run(state, workers=1, **extra), run(state, workers=1, **extra)
        self.database = Database(self.first.database_url)

    def jobs(self) -> dict[str, dict[str, Any]]:
        """What `hsmkms jobs` shows, by job."""
        done = self.state.run("jobs", "--json", stdin=b"", **self.extra)
        assert done.returncode == 0, done.stderr
        return {row["job"]: row for row in json.loads(done.stdout)}


@pytest.fixture(params=["sqlite", "postgresql"])
def nodes(request: pytest.FixtureRequest, state: State, run_service: Callable[..., Service]) -> Iterator[Nodes]:
    extra: dict[str, str] = {}
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        extra["HSMKMS_DATABASE_URL"] = server.new_database("jobs")
        (state.path / "client.env").unlink()
        assert state.run("init", stdin=b"", **extra).returncode == 0
    found = Nodes(state, extra, run_service)
    yield found
    found.database.close()


def until(ask: Callable[[], bool], within_s: float = REPLACED_WITHIN_S) -> None:
    """Wait for something that a job does."""
    started = time.monotonic()
    while not ask():
        assert time.monotonic() - started < within_s
        time.sleep(0.2)


def versions(client: httpx.Client, key: str) -> list[str]:
    return [one["id"] for one in client.get(f"/keys/{key}/versions?allKeyStates=true").json()["resources"]]


def test_what_is_due_is_done_once(nodes: Nodes) -> None:
    """Exactly one new version, although two processes look for work; old ciphertexts open; the rest stays as it is."""
    with nodes.first.client() as client:
        due, young, off = (create_key(client) for _ in range(3))
        for key, policy in ((due, True), (young, True), (off, False)):
            put(client, key, {"rotation": {"enabled": policy, "interval_month": 1}})
        wrapped = client.post(f"/keys/{due}/actions/wrap").json()
        expiring = str(
            client.post("/keys", json=create_body(expirationDate="2100-01-01T00:00:00Z")).json()["resources"][0]["id"]
        )
        gone, kept = create_key(client), create_key(client)
        for key in (gone, kept):
            assert client.delete(f"/keys/{key}").status_code == 204
        age(nodes.database, due, created_at=timedelta(days=30))
        age(nodes.database, young, created_at=timedelta(days=29, hours=23))
        age(nodes.database, off, created_at=timedelta(days=60))
        age(nodes.database, expiring, expires_at=timedelta(days=365 * 80))
        age(nodes.database, gone, deleted_at=timedelta(days=90))
        age(nodes.database, kept, deleted_at=timedelta(days=89))
        until(lambda: len(versions(client, due)) == 2)
        until(lambda: client.get(f"/keys/{gone}").status_code == 404)
        until(lambda: all(job["due"] == 0 for job in nodes.jobs().values()))
        opened = client.post(f"/keys/{due}/actions/unwrap", json={"ciphertext": wrapped["ciphertext"]}).json()
        assert opened["plaintext"] == wrapped["plaintext"]
        assert opened["rewrappedKeyVersion"]["id"] == versions(client, due)[0]
        assert [len(versions(client, key)) for key in (due, young, off)] == [2, 1, 1]
        assert client.get(f"/keys/{expiring}/metadata").json()["resources"][0]["state"] == 3
        assert client.get(f"/keys/{kept}/metadata").json()["resources"][0]["state"] == 5
    assert set(nodes.jobs()) == {"expiry", "rotation", "purge", "events", "overdue", "import_tokens", "webhooks"}
    doctor = nodes.state.run("doctor", stdin=b"", **nodes.extra).stdout
    assert b"row without object" not in doctor
    assert b"pending" not in doctor
    assert b"interrupted" not in doctor


def test_an_interrupted_purge_is_ended(nodes: Nodes) -> None:
    """As after a crash between the first commit and the last: nobody sees the key, and a job takes the rest away."""
    with nodes.first.client() as client:
        key = create_key(client)
        assert client.delete(f"/keys/{key}").status_code == 204
        with nodes.database.write() as connection:
            begun = sqlalchemy.update(key_table).where(key_table.c.id == key).values(purge_began_at=datetime.now(UTC))
            connection.execute(begun)
            record_change(connection, "key", key)
        until(lambda: client.get(f"/keys/{key}").status_code == 404, 1)
        assert key not in client.get("/keys?state=5&limit=5000").text

        def rows() -> int:
            with nodes.database.read() as connection:
                count = sqlalchemy.select(sqlalchemy.func.count()).where(key_table.c.id == key)
                return int(connection.execute(count).scalar_one())

        until(lambda: rows() == 0)
    assert key.encode() not in nodes.state.run("doctor", stdin=b"", **nodes.extra).stdout


@pytest.mark.parametrize("nodes", [pytest.param("sqlite", marks=pytest.mark.slow), "postgresql"], indirect=True)
def test_a_process_that_dies_is_replaced(nodes: Nodes) -> None:
    """The one that holds the lease is killed; the other does what is due within 30 seconds."""
    until(lambda: nodes.jobs()["rotation"]["by"] is not None)
    holder = int(nodes.jobs()["rotation"]["by"].rpartition("-")[2])
    dying, other = (nodes.first, nodes.second) if nodes.first.process.pid == holder else (nodes.second, nodes.first)
    assert holder in (nodes.first.process.pid, nodes.second.process.pid)
    with other.client() as client:
        key = create_key(client)
        put(client, key, {"rotation": {"enabled": True, "interval_month": 1}})
        dying.kill()
        killed_at = time.monotonic()
        age(nodes.database, key, created_at=timedelta(days=31))
        until(lambda: len(versions(client, key)) == 2)
        assert time.monotonic() - killed_at < REPLACED_WITHIN_S
    assert nodes.jobs()["rotation"]["by"] != f"{holder}"
