"""Lost administrators, a database of the first schema, and a token that is not the deployment's."""

from __future__ import annotations

import re
import shutil
import sqlite3
from pathlib import Path

import httpx
import pytest
import sqlalchemy
from alembic import command
from alembic.config import Config

from hsmkms.store import engine
from tests.support.deployment import Service, State, create_key, make_state
from tests.support.iam import GRANT, key_client, log_in
from tests.support.ports import free_port
from tests.token.conftest import lose_audit_key

MIGRATIONS = Path(engine.__file__).parent / "migrations"


def recovered(state: State, answer: bytes = b"") -> str:
    """The API key that `iam recover` shows."""
    done = state.run("iam", "recover", stdin=answer)
    assert done.returncode == 0, done.stderr.decode()
    found = re.search(r"administrator key  (\S+)", done.stdout.decode())
    assert found
    return found[1]


def test_a_lost_administrator_is_replaced_on_the_host(state: State) -> None:
    with Service(state) as service:
        api_key = recovered(state)
        with key_client(service, log_in(service, api_key)) as http:
            key = create_key(http)
            assert http.post(f"/keys/{key}/actions/wrap").status_code == 200
        # The lost one goes on until somebody deletes it.
        with service.client() as lost:
            assert lost.get("/keys").status_code == 200


def test_recovery_needs_the_pin(state: State) -> None:
    (state.path / "pin").write_text("wrong\n")
    done = state.run("iam", "recover", stdin=b"")
    assert done.returncode == 1
    assert b"administrator key" not in done.stdout


def test_a_database_of_the_first_schema(state: State, tmp_path: Path) -> None:
    """Its API keys are gone; its instances are sealed when the operator says that they are his; its keys still open."""
    with Service(state) as service, service.client() as client:
        key = create_key(client, aliases=["old-key"])
        wrapped = client.post(f"/keys/{key}/actions/wrap").json()
    old = first_schema(state, tmp_path / "old.db")
    shutil.copy(old, state.path / "hsmkms.db")
    for leftover in state.path.glob("hsmkms.db-*"):
        leftover.unlink()
    assert b"hsmkms serve" in state.run("keys", "list", stdin=b"").stderr
    done = state.run("serve", stdin=b"")
    assert done.returncode == 1
    assert b"hsmkms iam recover" in done.stderr
    refused = state.run("iam", "recover", stdin=b"n\n")
    assert refused.returncode == 1
    assert state.instance_id.encode() in refused.stderr
    api_key = recovered(state, b"y\n")
    with Service(state) as service:
        form = {"grant_type": GRANT, "apikey": state.api_key}
        assert httpx.post(f"{service.url}/identity/token", data=form).status_code == 400
        with key_client(service, log_in(service, api_key)) as http:
            opened = http.post("/keys/old-key/actions/unwrap", json={"ciphertext": wrapped["ciphertext"]})
            assert opened.json()["plaintext"] == wrapped["plaintext"]


def test_a_lost_audit_key_is_replaced_only_when_somebody_asks(state: State) -> None:
    """Logs that it signed could not be verified any more, and nobody would know why."""
    output = state.run("audit", "public-key").stdout
    lose_audit_key(state)
    done = state.run("serve", "--port", str(free_port()))
    assert done.returncode == 1
    assert b"hsmkms iam recover" in done.stderr
    assert b"hsmkms iam recover" in state.run("doctor").stderr
    recovered(state)
    with Service(state):
        assert state.run("audit", "public-key").stdout not in (b"", output)


def first_schema(state: State, path: Path) -> Path:
    """The deployment's instance and keys in a database as the first schema had it."""
    url = f"sqlite:///{path}"
    with sqlalchemy.create_engine(url).connect() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.commit()
    with sqlite3.connect(path) as database:
        database.execute("ATTACH ? AS new", (str(state.path / "hsmkms.db"),))
        for table in ("instance", "key", "key_version", "key_alias"):
            kept = ", ".join(row[1] for row in database.execute(f"PRAGMA main.table_info({table})"))
            database.execute(f"INSERT INTO main.{table} ({kept}) SELECT {kept} FROM new.{table}")
    database.close()
    return path


@pytest.mark.parametrize("command", [("serve",), ("iam", "recover"), ("init",)])
def test_another_deployments_token_is_refused(state: State, tmp_path: Path, command: tuple[str, ...]) -> None:
    """It has the same label, a sentinel and a sealing key of its own; the database stays as it is."""
    other = make_state(tmp_path / "other")
    (state.path / "client.env").unlink()
    shutil.rmtree(state.path / "tokens")
    shutil.copytree(other.path / "tokens", state.path / "tokens")
    for name in ("pin", "so-pin"):
        shutil.copy(other.path / name, state.path / name)
    before = (state.path / "hsmkms.db").read_bytes()
    done = state.run(*command, stdin=b"y\ny\n")
    assert done.returncode == 1, done.stdout
    assert b"administrator key" not in done.stdout
    assert (state.path / "hsmkms.db").read_bytes() == before
