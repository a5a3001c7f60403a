"""Migrations run while programs of an older version work: they only add, or say what they take away."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import MetaData, insert, select, update

from hsmkms.errors import StoreUnavailable
from hsmkms.store.engine import Database
from tests.support.deployment import Service, State, create_key
from tests.support.schemas import at_revision, reflected, revisions, taken_away

REVISIONS = [script.revision for script in revisions()]
EXPRESSIONS = pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression:sqlalchemy.exc.SAWarning")


@EXPRESSIONS
def test_a_migration_only_adds_or_says_what_it_takes_away(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'schema.db'}")
    before, oldest = MetaData(), ""
    for script in revisions():
        database.migrate(script.revision)
        after = reflected(database.url)
        marked: frozenset[str] = getattr(script.module, "contracts", frozenset())
        assert taken_away(before, after) == marked, (
            f"{script.path} takes away what an older program uses. Add now, and take away in a later release; then "
            "name it in `contracts` and raise schema_support.oldest."
        )
        if "schema_support" in before.tables:
            with database.read() as connection:
                now = connection.execute(select(after.tables["schema_support"].c.oldest)).scalar_one()
            assert oldest <= now <= script.revision
            assert (now > oldest) or not marked, f"{script.path}: programs that used {marked} have to be told"
            oldest = now
        before = after
    database.close()


def test_what_is_taken_away_is_found(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    url = sqlalchemy.engine.make_url(f"sqlite:///{path}")

    def made(*statements: str) -> MetaData:
        path.unlink(missing_ok=True)
        connection = sqlite3.connect(path)
        for statement in statements:
            connection.execute(statement)
        connection.close()
        return reflected(url)

    table, index = "CREATE TABLE a (id INTEGER PRIMARY KEY, b TEXT, c TEXT", "CREATE INDEX i ON a (b)"
    old = made(f"{table})", index, "CREATE TABLE d (e)")
    assert taken_away(old, old) == set()
    more = made(f"{table}, f TEXT, g INTEGER NOT NULL DEFAULT 1)", index, "CREATE TABLE d (e)", "CREATE TABLE h (j)")
    assert taken_away(old, more) == set()
    assert taken_away(old, made(f"{table})")) == {"table d is gone", "index i is gone"}
    new = made(
        "CREATE TABLE a (id INTEGER PRIMARY KEY, b INTEGER NOT NULL, f TEXT NOT NULL)",
        "CREATE UNIQUE INDEX i ON a (b)",
        "CREATE TABLE d (e)",
    )
    assert taken_away(old, new) == {
        "column a.c is gone",
        "column a.b is demanded",
        "column a.f is demanded",
        "column a.b is INTEGER instead of TEXT",
        "unique index i is new",
    }


class _Old:
    """A program of an older version at work: it knows the tables of its revision and their columns by name."""

    def __init__(self, url: str, tables: MetaData, instance_id: str) -> None:
        self._database = Database(url)
        self._tables = tables
        self._instance_id = instance_id
        self._stop = threading.Event()
        self.written: list[str] = []
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._database.close()

    def _work(self) -> None:
        key, version = self._tables.tables["key"], self._tables.tables["key_version"]
        clock = self._tables.tables["change_clock"]
        while not self._stop.wait(0.002):
            new = str(uuid.uuid4())
            try:
                with self._database.write() as connection:
                    connection.execute(update(clock).values(sequence=clock.c.sequence + 1))
                    connection.execute(insert(key).values(**_key(new, self._instance_id)))
                    connection.execute(insert(version).values(**_version(new)))
                self.written.append(new)
                with self._database.write() as connection:
                    connection.execute(update(key).where(key.c.id == new).values(name="another name", updated_at=2))
                with self._database.read() as connection:
                    assert connection.execute(select(key).where(key.c.id == new)).one().name == "another name"
            except StoreUnavailable as error:
                self.failures.append(repr(error.__cause__))


def _key(key_id: str, instance_id: str) -> dict[str, Any]:
    return {
        "id": key_id,
        "instance_id": instance_id,
        "key_ring_id": "default",
        "name": "a name",
        "name_folded": "a name",
        "tags": ["one"],
        "extractable": False,
        "imported": False,
        "state": 1,
        "created_at": 1,
        "created_by": "somebody",
    }


def _version(key_id: str) -> dict[str, Any]:
    return {"id": str(uuid.uuid4()), "key_id": key_id, "number": 1, "created_at": 1, "check_value": b"\0" * 8}


def _migrate(url: str) -> None:
    database = Database(url)
    database.migrate()
    database.close()


@EXPRESSIONS
@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_every_older_schema_is_migrated_while_an_older_program_works_on_it(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    # A server takes longer; there the first, the last, and one that changes many tables.
    for revision in REVISIONS[:-1] if backend == "sqlite" else ("0001", "0004", REVISIONS[-2]):
        url = f"sqlite:///{tmp_path / f'{revision}.db'}"
        if backend == "postgresql":
            url = request.getfixturevalue("postgres").new_database(f"migrate{uuid.uuid4().hex}")
        database = Database(url)
        database.migrate(revision)
        tables = reflected(database.url)
        instance_id = str(uuid.uuid4())
        row = {"id": instance_id, "name": "first", "region": "local", "account": "a", "created_at": 1}
        sealing = {"sealing_id": str(uuid.uuid4()), "sealing_created_at": 1, "sealing_check_value": b"\0" * 8}
        with database.write() as connection:
            connection.execute(insert(tables.tables["instance"]).values(**row, **sealing))
            known = [str(uuid.uuid4()) for _ in range(200)]
            connection.execute(insert(tables.tables["key"]), [_key(one, instance_id) for one in known])
            connection.execute(insert(tables.tables["key_version"]), [_version(one) for one in known])
        old = [_Old(url, tables, instance_id) for _ in range(2)]
        # Two nodes of the new version are started at the same moment.
        new = [threading.Thread(target=_migrate, args=(url,)) for _ in range(2)]
        try:
            for thread in new:
                thread.start()
            for thread in new:
                thread.join()
            assert database.revision() == REVISIONS[-1]
            done = [len(one.written) for one in old]
            deadline = threading.Event()
            for _ in range(200):
                if all(len(one.written) > before for one, before in zip(old, done, strict=True)):
                    break
                deadline.wait(0.05)
        finally:
            for one in old:
                one.stop()
        assert [one.failures for one in old] == [[], []], revision
        assert all(len(one.written) > before for one, before in zip(old, done, strict=True)), "it works no more"
        now = reflected(database.url).tables["key"]
        with database.read() as connection:
            there = set(connection.execute(select(now.c.id)).scalars())
        assert there == {*known, *old[0].written, *old[1].written}, revision
        database.close()


def test_a_service_goes_on_from_the_second_schema(
    state: State, tmp_path: Path, run_service: Callable[..., Service]
) -> None:
    with Service(state) as service, service.client() as client:
        key = create_key(client, aliases=["mine"])
        wrapped = client.post(f"/keys/{key}/actions/wrap").json()
    at_revision(state.path / "hsmkms.db", tmp_path / "old.db", "0002")
    for leftover in state.path.glob("hsmkms.db*"):
        leftover.unlink()
    shutil.move(tmp_path / "old.db", state.path / "hsmkms.db")
    service = run_service(state)
    with service.client() as client:
        opened = client.post("/keys/mine/actions/unwrap", json={"ciphertext": wrapped["ciphertext"]})
        assert opened.json()["plaintext"] == wrapped["plaintext"]
    done = state.run("doctor")
    assert done.returncode == 0, done.stdout.decode()


def test_an_older_program_works_on_a_newer_schema_or_says_why_not(
    state: State, run_service: Callable[..., Service]
) -> None:
    def newer(oldest: str) -> None:
        with sqlite3.connect(state.path / "hsmkms.db") as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
            connection.execute("UPDATE schema_support SET oldest = ?", (oldest,))
        connection.close()

    newer(REVISIONS[-1])
    service = run_service(state)
    with service.client() as client:
        assert client.post(f"/keys/{create_key(client)}/actions/wrap").status_code == 200
    service.__exit__(None, None, None)
    newer("9998")
    for command in (["serve"], ["keys", "list"]):
        done = state.run(*command)
        assert done.returncode == 1
        assert b"Install the newer version" in done.stderr
