"""Transport keys never outlive their import token: not a kill, not a replacement, not the end of their time."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Final

import httpx
import pytest

from tests.faults.test_jobs import until
from tests.support.bringing import Fetched
from tests.support.deployment import Service, State, create_body, create_key
from tests.token.conftest import object_id, pkcs11_tool

Run = Callable[..., Service]
DAY_US: Final = 86_400_000_000


def transport_keys(state: State) -> str:
    """What an outside program lists of RSA keys."""
    listing = pkcs11_tool(state, "--list-objects", "--type", "privkey")
    return "\n".join(part for part in listing.split("Private Key Object; ") if part.startswith("RSA"))


@contextmanager
def database(state: State) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(state.path / "hsmkms.db", isolation_level=None, timeout=30)) as connection:
        yield connection


def pending(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT version_id FROM pending_object")]


def repaired(state: State) -> str:
    """What the doctor did; afterwards it finds nothing."""
    report = state.run("doctor", "--repair", "--pending-older-than", "0").stdout.decode()
    assert state.run("doctor").returncode == 0
    return report


def bring(client: httpx.Client, fetched: Fetched) -> int:
    return client.post("/keys", json=create_body("brought", **fetched.fields(os.urandom(32)))).status_code  # type: ignore[arg-type]


def fetch(client: httpx.Client) -> tuple[str, Fetched]:
    assert client.post("/import_token").status_code == 200
    answer = client.get("/import_token").json()
    return answer["id"], Fetched.of(answer)


def test_a_kill_between_pair_and_row(state: State, run_service: Run) -> None:
    """The commit is held up by a lock; once the pair is on the token the service dies."""
    service = run_service(state)

    def ask(headers: httpx.Headers) -> None:
        with pytest.raises(httpx.TransportError):
            httpx.post(f"{service.url}/api/v2/import_token", headers=headers, timeout=60)

    with service.client() as client, database(state) as connection:
        asking = threading.Thread(target=ask, args=(client.headers,))
        asking.start()
        # Without a pause: the lock has to be there before the pair is, which takes the token a tenth of a second.
        while not pending(connection):
            assert asking.is_alive()
        connection.execute("BEGIN IMMEDIATE")
        (made,) = pending(connection)
        until(lambda: object_id(made) in transport_keys(state))
        service.kill()
        asking.join()
        connection.execute("ROLLBACK")
    assert f"{made} settled: object destroyed" in repaired(state)
    assert transport_keys(state) == ""


def test_a_kill_between_replacement_and_destruction(state: State) -> None:
    """What the commit of a replacement leaves when nothing follows it: the old row gone, the old pair pending."""
    with Service(state) as service, service.client() as client:
        old, _ = fetch(client)
    with database(state) as connection:
        connection.execute("DELETE FROM import_token")
        owner = f"{state.instance_id} import"
        connection.execute("INSERT INTO pending_object VALUES (?, ?, 1)", (old, owner))
    assert object_id(old) in transport_keys(state)
    assert state.run("doctor").returncode == 1
    assert f"{old} settled: object destroyed" in repaired(state)
    assert transport_keys(state) == ""


def test_a_pair_in_use_is_not_destroyed(state: State, run_service: Run) -> None:
    """A pending row that a crash left behind although the real one was committed."""
    with Service(state) as service, service.client() as client:
        kept, fetched = fetch(client)
    with database(state) as connection:
        connection.execute("INSERT INTO pending_object VALUES (?, ?, 1)", (kept, f"{state.instance_id} import"))
    assert f"{kept} settled: no object to destroy" in repaired(state)
    with run_service(state).client() as client:
        assert bring(client, fetched) == 201


def test_a_replaced_pair_is_destroyed_at_once(state: State, run_service: Run) -> None:
    with run_service(state).client() as client:
        (old, _), (new, _) = fetch(client), fetch(client)
    assert object_id(old) not in transport_keys(state)
    assert object_id(new) in transport_keys(state)


def test_many_import_tokens_at_once_hold_nobody_up(state: State, run_service: Run) -> None:
    """A pair takes seconds of a session. Of two sessions one stays with those who wrap and wait for half a second."""
    service = run_service(state, HSMKMS_SESSIONS="2", HSMKMS_SESSION_WAIT_S="0.5")
    with service.client() as client, ThreadPoolExecutor(6) as threads:
        key = create_key(client)
        asked = [threads.submit(client.post, "/import_token") for _ in range(6)]
        wraps = []
        while not all(one.done() for one in asked):
            wraps.append(client.post(f"/keys/{key}/actions/wrap").status_code)
    assert set(wraps) == {200}
    # Who waits too long is told to come again.
    assert 200 in {one.result().status_code for one in asked} <= {200, 503}


def test_an_expired_pair_is_destroyed_by_a_job(state: State, run_service: Run) -> None:
    service = run_service(state)
    with service.client() as client, database(state) as connection:
        made, fetched = fetch(client)
        assert object_id(made) in transport_keys(state)
        connection.execute("UPDATE import_token SET expires_at = expires_at - ?", (DAY_US,))
        until(lambda: connection.execute("SELECT count(*) FROM import_token").fetchone() == (0,))
        assert transport_keys(state) == ""
        assert bring(client, fetched) == 409
    assert state.run("doctor").returncode == 0
