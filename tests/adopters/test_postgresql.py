"""PostgreSQL on an encrypted volume, from the guide's first step to its last: real server, real key service."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from hsmkms.adopters.client import KeyRefused
from hsmkms.adopters.core.dek_file import WrappedDekFile
from hsmkms.adopters.volume import operations
from hsmkms.adopters.volume.fscrypt import Fscrypt
from hsmkms.adopters.volume.layout import Volume
from hsmkms.adopters.volume.outside import DataOutside, require_inside
from hsmkms.adopters.volume.server import Server
from hsmkms.adopters.volume.status import describe
from hsmkms.store import engine
from tests.api.backstage import age
from tests.support.adopter import DATABASES, Adopter
from tests.support.connections import write_connection
from tests.support.deployment import Service, create_key
from tests.support.iam import Iam, key_client
from tests.support.volumes import (
    POSTGRES,
    WAIT_S,
    Database,
    Run,
    act,
    disk,
    holds,
    make,
    opened,
    place,
    purge,
    require,
    require_fuse,
)

MARKER = "a-marker-that-must-not-be-found"
MINUTE, HOURS = timedelta(minutes=1), timedelta(hours=5)


@pytest.fixture
def directory() -> Iterator[Path]:
    require_fuse()
    with place() as directory:
        yield directory


def registered(admin: httpx.Client, key: str) -> str:
    """The key version that a key's one registration tells."""
    (found,) = admin.get(f"/keys/{key}/registrations").json()["resources"]
    return str(found["keyVersion"]["id"])


def statuses(admin: httpx.Client, key: str) -> list[tuple[str, str]]:
    found = admin.get(f"/keys/{key}/events").json()["resources"]
    return [(event["eventType"], event["status"]) for event in reversed(found)]


@pytest.mark.alone
def test_a_database_from_its_first_row_to_the_end_of_its_key(
    admin: httpx.Client,
    iam: Iam,
    database: Adopter,
    connection_file: Path,
    directory: Path,
    database_of: engine.Database,
) -> None:
    key = create_key(admin)
    volume = make(directory / "bank", connection_file, key, database.crn("bank"), POSTGRES)
    server, plain = Database(directory, volume), Database(directory, None)
    with opened(volume):
        server.init()
        _refuses_places_outside(server, volume)
    assert admin.delete(f"/keys/{key}").status_code == 409  # The registration is in the way.
    with server.run() as run:
        run.wait_until("serving", server.answers)
        server.do(f"CREATE TABLE t AS SELECT '{MARKER}' || n AS v FROM generate_series(1, 1000) n")
        server.tool("pgbench", "-i", "-q", "-s", "1", server.url)
        server.do("CHECKPOINT")
        assert holds(volume.mount, MARKER.encode())
        assert not holds(volume.cipher, MARKER.encode())
        before = WrappedDekFile.read(volume.dek_file)
        balance = _rotate_under_load(admin, key, server, run)
        after = WrappedDekFile.read(volume.dek_file)
        assert (after.dek_id, after.ciphertext == before.ciphertext) == (before.dek_id, False)
        assert after.key_version == registered(admin, key)
        act(admin, key, "disable")
        stopped_s = run.wait_until("locked", lambda: not run.is_open and not server.answers())
        assert stopped_s < 60
        with operations.client_of(volume) as client, pytest.raises(KeyRefused, match="KEY_ACTION_INVALID_STATE_ERR"):
            client.unwrap(key, after.ciphertext, after.aad)
        age(database_of, key, disabled_at=MINUTE)
        act(admin, key, "enable")
        run.wait_until("serving again", server.answers)
        assert server.ask("SELECT count(*) FROM t") == 1000
        assert server.ask("SELECT sum(abalance) FROM pgbench_accounts") == balance
        act(admin, key, "delete")
        run.wait_until("locked for good", lambda: not run.is_open and not server.answers())
        run.wait_until("acknowledged", lambda: len(statuses(admin, key)) == 4)
        run.wait_until("acknowledged", lambda: {status for _, status in statuses(admin, key)} == {"acknowledged"})
        assert run.end() == 0
    age(database_of, key, deleted_at=HOURS)
    purge(iam, key)
    with pytest.raises(KeyRefused, match="KEY_NOT_FOUND_ERR"):
        operations.open_(volume)
    with Run(volume, "postgres") as refused:
        assert refused.process.wait(WAIT_S) == 1
    assert "KEY_NOT_FOUND_ERR" in refused.log.read_text().splitlines()[-1]
    assert not holds(volume.cipher, MARKER.encode())
    _plain_holds_the_marker(plain)


def test_a_database_that_the_kernel_encrypts_under_an_imported_key_of_another_instance(
    iam: Iam, service: Service, connection_file: Path, database_of: engine.Database
) -> None:
    """The guide from its first step: instance, authorization with Reader, imported key; then the key's whole life."""
    if os.geteuid() != 0:
        pytest.skip("fscrypt: only root may mount")
    instance_id = iam.instance()
    database = Adopter(iam, DATABASES, "local", instance_id)
    connection = write_connection(connection_file.parent, service, database.who.api_key, instance_id=instance_id)
    with (
        place() as directory,
        disk(directory, 512, "encrypt") as ext4,
        key_client(service, iam.token, instance_id) as admin,
    ):
        require(Fscrypt(), Volume(ext4.place / "x", "fscrypt", ext4.place, ext4.place))
        key = create_key(admin, payload=_material())
        volume = make(ext4.place / "bank", connection, key, database.crn("bank"), POSTGRES, backend="fscrypt")
        server = Database(directory, volume)
        with opened(volume):
            server.init()
        assert admin.delete(f"/keys/{key}").status_code == 409
        with server.run() as run:
            run.wait_until("serving", server.answers)
            server.do(f"CREATE TABLE t AS SELECT '{MARKER}' || n AS v FROM generate_series(1, 1000) n")
            server.do("CHECKPOINT")
            assert holds(volume.mount, MARKER.encode())
            rotated = admin.post(f"/keys/{key}/actions/rotate", json={"payload": _material()})
            assert rotated.status_code == 204, rotated.text
            newest = admin.get(f"/keys/{key}/metadata").json()["resources"][0]["keyVersion"]["id"]
            run.wait_until("rewrapped", lambda: registered(admin, key) == newest)
            act(admin, key, "disable")
            run.wait_until("locked", lambda: describe(volume)["condition"] == "locked")
            assert not run.is_open
            assert not server.answers()
            assert not ext4.holds(MARKER.encode())
            assert not any((volume.cipher / name).exists() for name in ("pgdata", "pgdata/PG_VERSION"))
            age(database_of, key, disabled_at=MINUTE)
            act(admin, key, "enable")
            run.wait_until("serving again", server.answers)
            assert server.ask(f"SELECT count(*) FROM t WHERE v LIKE '{MARKER}%'") == 1000
            act(admin, key, "delete")
            run.wait_until("locked for good", lambda: describe(volume)["condition"] == "locked")
            assert "What remains is ciphertext" in str(describe(volume)["reason"])
            assert run.end() == 0
        with Run(volume, "postgres") as refused:
            assert refused.process.wait(WAIT_S) == 1
        assert "deleted" in refused.log.read_text().splitlines()[-1]
    database.http.close()


def _material() -> str:
    """A key that its owner brings."""
    return base64.b64encode(os.urandom(32)).decode()


def _refuses_places_outside(server: Database, volume: Volume) -> None:
    """What PostgreSQL's own settings say counts, from the command line or its files."""
    logs = ["--logging_collector=on", f"--log_directory={server.directory}"]
    for more, words in ((logs, "log_directory is"), (["--data_directory=/var/lib/postgresql"], "data_directory is")):
        asked = Server([*server.command, *more], POSTGRES, signal.SIGINT, 1)
        with pytest.raises(DataOutside, match=words):
            require_inside(volume.mount, asked)
    require_inside(volume.mount, Server(server.command, POSTGRES, signal.SIGINT, 1))


def _rotate_under_load(admin: httpx.Client, key: str, server: Database, run: Run) -> object:
    """Rotate while pgbench writes; every transaction that it counts is in the history, and its sums fit."""
    command = [*server.as_user, str(server.bin / "pgbench"), "-n", "-c", "2", "-t", "200", server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/") as load:
        run.wait_until("under load", lambda: bool(server.ask("SELECT count(*) FROM pgbench_history")))
        act(admin, key, "rotate")
        version = admin.get(f"/keys/{key}/metadata").json()["resources"][0]["keyVersion"]["id"]
        run.wait_until("rewrapped", lambda: registered(admin, key) == version)
        told, errors = load.communicate(timeout=120)
    assert load.returncode == 0, errors.decode()
    assert b"number of transactions actually processed: 400/400" in told
    assert server.ask("SELECT count(*) FROM pgbench_history") == 400
    balance = server.ask("SELECT sum(abalance) FROM pgbench_accounts")
    assert balance == server.ask("SELECT sum(delta) FROM pgbench_history")
    return balance


def _plain_holds_the_marker(plain: Database) -> None:
    """The search would find it: without the volume it is there."""
    plain.init()
    script = f"CREATE TABLE t AS SELECT '{MARKER}'::text AS v;\n".encode()
    single = [*plain.as_user, str(plain.bin / "postgres"), "--single", "-D", str(plain.data), "postgres"]
    subprocess.run(single, input=script, check=True, capture_output=True, cwd="/")
    assert holds(plain.data, MARKER.encode())
