"""The recipe of docs/postgresql.md for backups: pgBackRest's repository under a second DEK of a second root key."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from hsmkms.adopters.client import KeyRefused
from hsmkms.adopters.connection import Connection
from hsmkms.adopters.core import passphrase
from hsmkms.adopters.core.dek_file import WrappedDekFile
from hsmkms.adopters.core.passphrase import PassphraseRefused
from tests.support.adopter import Adopter
from tests.support.deployment import create_key
from tests.support.volumes import POSTGRES, Database, act, holds, make, opened, place, require_fuse

OWNER = POSTGRES or os.geteuid()
MARKER = "a-row-that-no-backup-shows"


@pytest.fixture
def directory() -> Iterator[Path]:
    require_fuse()
    with place() as directory:
        yield directory


def shown(file: Path, connection: Path) -> str:
    """The passphrase, through a pipe."""
    reader, writer = os.pipe()
    with open(reader) as pipe, open(writer, "wb") as end:
        passphrase.show(file, Connection.read(connection), end.fileno())
        return pipe.readline().strip()


def test_a_passphrase_is_the_same_through_rotations_and_refused_when_disabled(
    admin: httpx.Client, database: Adopter, connection_file: Path, tmp_path: Path
) -> None:
    key, file, crn = create_key(admin), tmp_path / "backup.json", database.crn("backup")
    passphrase.create(file, Connection.read(connection_file), admin_crn(admin, key), crn)
    first, before = shown(file, connection_file), WrappedDekFile.read(file)
    assert len(bytes.fromhex(first)) == 32
    assert first not in file.read_text()
    act(admin, key, "rotate")
    assert shown(file, connection_file) == first
    assert WrappedDekFile.read(file).key_version != before.key_version
    with pytest.raises(PassphraseRefused, match="exists"):
        passphrase.create(file, Connection.read(connection_file), key, crn)
    terminal, other = os.openpty()
    with pytest.raises(PassphraseRefused, match="terminal"):
        passphrase.show(file, Connection.read(connection_file), other)
    os.close(terminal)
    os.close(other)
    act(admin, key, "disable")
    with pytest.raises(KeyRefused):
        shown(file, connection_file)


def test_many_that_ask_at_once_after_a_rotation_leave_one_whole_file(
    admin: httpx.Client, database: Adopter, connection_file: Path, tmp_path: Path
) -> None:
    """pgBackRest starts several processes, each of which may ask."""
    key, file = create_key(admin), tmp_path / "backup.json"
    passphrase.create(file, Connection.read(connection_file), key, database.crn("backup"))
    first = shown(file, connection_file)
    act(admin, key, "rotate")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: shown(file, connection_file), range(16)))
    assert set(found) == {first}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("backup")] == ["backup.json"]
    assert WrappedDekFile.read(file).key_version == versions(admin, key)[0]


def versions(admin: httpx.Client, key: str) -> list[str]:
    return [str(one["id"]) for one in admin.get(f"/keys/{key}/versions").json()["resources"]]


def admin_crn(admin: httpx.Client, key: str) -> str:
    return str(admin.get(f"/keys/{key}/metadata").json()["resources"][0]["crn"])


@pytest.mark.slow
@pytest.mark.alone
def test_a_backup_is_encrypted_and_comes_back(
    admin: httpx.Client, database: Adopter, connection_file: Path, directory: Path, tmp_path: Path
) -> None:
    if shutil.which("pgbackrest") is None:
        pytest.skip("pgbackrest is not installed")
    volume = make(directory / "bank", connection_file, create_key(admin), database.crn("bank"), POSTGRES)
    file = tmp_path / "backup.json"
    passphrase.create(file, Connection.read(connection_file), create_key(admin), database.crn("bank-backups"))
    server, repository = Database(directory, volume), directory / "repository"
    repository.mkdir()
    shutil.chown(repository, OWNER)
    with opened(volume):
        server.init()
        settings = volume.mount / "pgbackrest.conf"
        settings.write_text(_settings(server, repository, shown(file, connection_file)))
        settings.chmod(0o600)
        shutil.chown(settings, OWNER)
        archive = (
            f"archive_mode = on\narchive_command = 'pgbackrest --config={settings} --stanza=bank archive-push %p'\n"
        )
        with (server.data / "postgresql.conf").open("a") as more:
            more.write(archive)
    backup = [*server.as_user, "pgbackrest", f"--config={volume.mount / 'pgbackrest.conf'}", "--stanza=bank"]
    with server.run() as run:
        run.wait_until("serving", server.answers)
        server.do(f"CREATE TABLE t AS SELECT '{MARKER}' || n AS v FROM generate_series(1, 1000) n")
        for command in ("stanza-create", "check", "backup"):
            done = subprocess.run([*backup, command], capture_output=True, cwd="/", check=False)
            assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
        assert run.end() == 0
    assert not holds(repository, MARKER.encode())
    with opened(volume):
        shutil.rmtree(server.data)
        server.data.mkdir(mode=0o700)
        shutil.chown(server.data, OWNER)
        subprocess.run([*backup, "restore"], check=True, capture_output=True, cwd="/")
    with server.run() as run:
        run.wait_until("serving", server.answers)
        assert server.ask("SELECT count(*) FROM t") == 1000


def _settings(server: Database, repository: Path, secret: str) -> str:
    return (
        f"[global]\nrepo1-path={repository}\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass={secret}\n"
        f"log-path={server.data.parent}\nlock-path={server.data.parent}\nspool-path={server.data.parent}\nstart-fast=y\n"
        f"[bank]\npg1-path={server.data}\npg1-port={server.port}\npg1-user=postgres\n"
        f"pg1-socket-path={server.data.parent}\n"
    )
