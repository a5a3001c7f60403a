"""A backup that was made under load brings back every key that anybody was told of, and what they sealed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import stat
import subprocess
import tarfile
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from hsmkms.clock import system_clock
from hsmkms.service import archive as a
from hsmkms.service.backup import bring_back
from hsmkms.store.audit import AuditHeadStore
from hsmkms.store.dump import snapshot
from hsmkms.store.engine import Database
from hsmkms.token import integrity
from tests.support.deployment import Service, State, create_key, make_state
from tests.support.injector import MODULE
from tests.support.postgresql import PostgresServer
from tests.token.conftest import lose_audit_key, object_id, pkcs11_tool

ROUNDS = 1


def _members(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as archive:
        return {one.name: archive.extractfile(one).read() for one in archive.getmembers()}  # type: ignore[union-attr]


def _pack(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        for name, content in members.items():
            information = tarfile.TarInfo(name)
            information.size = len(content)
            archive.addfile(information, io.BytesIO(content))
    return file


def _with_settings(file: Path, members: dict[str, bytes], settings: str) -> Path:
    """A backup with other settings, as somebody makes it who can write the file and not use the token."""
    text = settings.encode()
    manifest: dict[str, Any] = json.loads(members["manifest.json"])
    manifest["members"]["hsmkms.toml"] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    return _pack(file, members | {"manifest.json": json.dumps(manifest).encode(), "hsmkms.toml": text})


def _keys_in(file: Path) -> set[str]:
    table, found = "", set()
    for line in _members(file)["rows.jsonl"].splitlines():
        read = json.loads(line)
        if isinstance(read, dict):
            table = read["table"]
        elif table == "key":
            found.add(read[0])
    return found


def _host_with_token_of(state: State, path: Path) -> State:
    """Another host, to which nothing but the token came."""
    path.mkdir()
    shutil.copytree(state.path / "tokens", path / "tokens")
    for name in ("softhsm2.conf", "hsmkms.toml", "pin"):
        (path / name).write_text((state.path / name).read_text().replace(str(state.path), str(path)))
        (path / name).chmod(0o600)
    return State(path)


class _Creating:
    """Somebody who creates keys and remembers which he was told of."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stop = threading.Event()
        self.told: list[str] = []
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        with self._service.client() as client:
            while not self._stop.is_set():
                self.told.append(create_key(client))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.parametrize(
    ("source", "target"),
    [pytest.param("sqlite", "postgresql", marks=pytest.mark.slow), ("postgresql", "sqlite")],
)
def test_a_backup_under_load_brings_the_service_back(
    source: str,
    target: str,
    state: State,
    tmp_path: Path,
    postgres: PostgresServer,
    run_service: Callable[..., Service],
) -> None:
    extra: dict[str, str] = {}
    if source == "postgresql":
        url = postgres.new_database("source").replace("hsmkms@", "hsmkms:word-of-the-database@")
        extra["HSMKMS_DATABASE_URL"] = url
        state = make_state(tmp_path / "on a server", **extra)
    service = run_service(state, **extra)
    with service.client() as client:
        key = create_key(client, aliases=["mine"])
        standard = create_key(client, "a secret", extractable=True, payload="c2VjcmV0")
        sealed = client.post(f"/keys/{key}/actions/wrap", json={}).json()
        assert client.post(f"/keys/{key}/actions/rotate", json={}).status_code == 204
        creating = _Creating(service)
        try:
            for number in range(ROUNDS):
                while len(creating.told) < 5 * (number + 1):
                    creating._thread.join(0.05)
                told = set(creating.told)
                done = state.run("backup", str(tmp_path / f"{number}.backup"), stdin=b"", **extra)
                assert done.returncode == 0, done.stderr.decode()
                assert done.stderr == b""
                assert told <= _keys_in(tmp_path / f"{number}.backup")
        finally:
            creating.stop()
        assert len(creating.told) > len(told), "nothing was written meanwhile"
        file = tmp_path / "last.backup"
        assert state.run("backup", str(file), stdin=b"", **extra).returncode == 0
    service.__exit__(None, None, None)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not list(tmp_path.glob(".hsmkms-backup-*"))
    content = b"".join(_members(file).values())
    for secret in (state.pin, state.api_key, "word-of-the-database", "c2VjcmV0", sealed["plaintext"]):
        assert secret.encode() not in content
    assert state.run("backup", str(file), stdin=b"", **extra).returncode == 1, "a backup took the place of another"

    host = _host_with_token_of(state, tmp_path / "host")
    where = {
        "HSMKMS_DATABASE_URL": postgres.new_database("target")
        if target == "postgresql"
        else f"sqlite:///{host.path}/b.db"
    }
    done = host.run("restore", str(file), stdin=b"", **where)
    assert done.returncode == 0, done.stderr.decode()
    done = host.run("doctor", stdin=b"", **where)
    assert done.returncode == 0, done.stdout.decode()
    (host.path / "client.env").write_text((state.path / "client.env").read_text())
    restored = run_service(host, **where)
    with restored.client() as client:
        opened = client.post("/keys/mine/actions/unwrap", json={"ciphertext": sealed["ciphertext"]})
        assert opened.json()["plaintext"] == sealed["plaintext"]
        assert "rewrappedKeyVersion" in opened.json()
        assert client.get(f"/keys/{standard}").json()["resources"][0]["payload"] == "c2VjcmV0"
        assert client.get("/keys", params={"limit": 5000}).json()["metadata"]["collectionTotal"] == 2 + len(
            creating.told
        )
        assert create_key(client)
    refused = host.run("restore", str(file), stdin=b"", **where)
    assert (refused.returncode, b"not empty" in refused.stderr) == (1, True)
    refused = host.run("restore", str(file), "--replace", stdin=b"", **where)
    assert (refused.returncode, b"Stop the service" in refused.stderr) == (1, True)
    restored.__exit__(None, None, None)
    done = host.run("restore", str(file), "--replace", stdin=b"", **where)
    assert done.returncode == 0, done.stderr.decode()
    assert b"delete it when nobody needs it" in done.stdout
    # Its log was closed by the service before this command wrote on; the deployment's first log is on another host.
    verified = host.run("audit", "verify", stdin=b"", **where)
    assert verified.returncode == 1
    assert json.loads(_members(file)["manifest.json"])["audit_heads"][0]["log"].encode() in verified.stdout


def _backup_of(database: Database, heads: list[a.AuditHead], target: Path) -> a.Archive:
    with a.writing(target) as directory:
        (directory / a.SETTINGS).touch()
        with snapshot(database) as dump, (directory / a.ROWS).open("wb") as file:
            rows, revision = dump.write(file), dump.revision()
        manifest = a.Manifest(
            format=a.FORMAT,
            program="test",
            created_at=system_clock(),
            database="sqlite",
            revision=revision,
            rows=rows,
            members={name: a.describe(directory / name) for name in (a.ROWS, a.SETTINGS)},
            token=a.TokenNeeds("label", "serial", "nobody", "sentinel", [], []),
            audit_public_key="",
            audit_heads=heads,
        )
        a.pack(directory, manifest, lambda _: b"", target)
    return a.Archive(target)


def test_what_the_files_knew_more_of_audit_logs_comes_back(tmp_path: Path) -> None:
    """The manifest's heads are newer than the rows, which know of logs up to their last checkpoints."""
    rows = (("one", 5, False), ("same", 5, False), ("closed", 5, True))
    source, target = (Database(f"sqlite:///{tmp_path / name}") for name in ("source.db", "target.db"))
    source.migrate()
    for log, sequence, closed in rows:
        AuditHeadStore(source).put(log, sequence, "aa" * 32, system_clock(), closed=closed)
    told = [a.AuditHead("one", 9, "cc" * 32, closed=True), a.AuditHead("same", 5, "aa" * 32, closed=False)]
    told += [a.AuditHead("new", 2, "cc" * 32, closed=False), a.AuditHead("closed", 7, "cc" * 32, closed=False)]
    with capture_logs() as lines:
        bring_back(target, _backup_of(source, told, tmp_path / "backup"), system_clock, replace=False)
    assert {(log, sequence, closed) for log, sequence, _, closed in AuditHeadStore(target).all()} == {
        ("one", 9, True),
        ("same", 5, False),
        ("new", 2, False),
        ("closed", 5, True),
    }
    assert [line["log"] for line in lines if line["log_level"] == "error"] == ["closed"]
    source.close()
    target.close()


def test_a_restore_that_does_not_fit_changes_nothing(
    seed_state: State, state: State, tmp_path: Path, run_service: Callable[..., Service]
) -> None:
    with Service(state) as service, service.client() as client:
        key = create_key(client)
        version = client.get(f"/keys/{key}/versions").json()["resources"][0]["id"]
    file = tmp_path / "good.backup"
    assert state.run("backup", str(file)).returncode == 0
    members = _members(file)
    manifest: dict[str, Any] = json.loads(members["manifest.json"])
    assert version in {one["id"] for one in manifest["token"]["wrapping_keys"]}

    def refused(host: State, file: Path, *words: str) -> str:
        done = host.run("restore", str(file), *words)
        assert done.returncode == 1
        assert not (host.path / "hsmkms.db").exists()
        assert not list(host.path.glob("*.restoring*"))
        return done.stderr.decode()

    older = _host_with_token_of(seed_state, tmp_path / "older")
    assert f"lacks {version} (" in refused(older, file)
    host = _host_with_token_of(state, tmp_path / "host")
    changed = members | {"rows.jsonl": members["rows.jsonl"].replace(b'"a root key"', b'"a root kez"')}
    assert "is not what the backup held" in refused(host, _pack(tmp_path / "rows", changed))
    resealed = members | {"manifest.json": members["manifest.json"].replace(b'"audit_heads"', b' "audit_heads"')}
    assert "token sealed" in refused(host, _pack(tmp_path / "manifest", resealed))
    assert "token sealed" in refused(host, _pack(tmp_path / "seal", members | {"seal": b"\xff"}))
    newer = json.dumps(manifest | {"revision": "9999"}).encode()
    assert refused(host, _pack(tmp_path / "newer", members | {"manifest.json": newer}))
    (tmp_path / "cut").write_bytes(file.read_bytes()[:-200])
    assert "cannot be read as a backup" in refused(host, tmp_path / "cut")
    (tmp_path / "text").write_bytes(gzip.compress(b"no archive"))
    assert "cannot be read as a backup" in refused(host, tmp_path / "text")

    keyless = _host_with_token_of(state, tmp_path / "keyless")
    lose_audit_key(keyless)
    assert "lacks the key that signs audit logs. " in refused(keyless, file)
    done = keyless.run("restore", str(file), "--accept-missing")
    assert done.returncode == 0, done.stderr.decode()
    assert "MISSING  the key that signs audit logs" in done.stdout.decode()
    assert keyless.run("doctor").returncode == 0
    another = _host_with_token_of(keyless, tmp_path / "another")
    assert "lacks the key that signs audit logs (it has another)" in refused(another, file)

    done = older.run("restore", str(file), "--accept-missing")
    assert done.returncode == 0, done.stderr.decode()
    assert f"MISSING  {version}" in done.stdout.decode()
    examined = older.run("doctor").stdout.decode().splitlines()
    assert any("row without object" in line and version in line for line in examined)


def test_only_the_host_names_the_token_that_proves_a_backup(state: State, tmp_path: Path) -> None:
    file = tmp_path / "good.backup"
    assert state.run("backup", str(file)).returncode == 0
    members = _members(file)
    host = _host_with_token_of(state, tmp_path / "host")
    loaded = tmp_path / "loaded"
    library = _library_that_notes_its_loading(tmp_path, loaded)
    standby = f'standby_pkcs11_module = "{library}"\nstandby_token_label = "x"\nstandby_pin_file = "{host.path}/pin"\n'
    forged = _with_settings(tmp_path / "forged", members, standby)
    named = {
        "HSMKMS_PKCS11_MODULE": MODULE,
        "HSMKMS_TOKEN_LABEL": "hsmkms",
        "HSMKMS_PIN_FILE": str(host.path / "pin"),
        "HSMKMS_SOFTHSM2_CONF": str(host.path / "softhsm2.conf"),
    }
    (host.path / "hsmkms.toml").unlink()

    done = host.run("restore", str(forged), stdin=b"", **named)
    assert (done.returncode, b"token sealed" in done.stderr) == (1, True), done.stderr.decode()
    for lacking in ({"HSMKMS_PIN": host.pin}, {"HSMKMS_PKCS11_MODULE": MODULE}):
        done = host.run("restore", str(file), stdin=b"", **lacking)
        assert (done.returncode, b"Set HSMKMS_PKCS11_MODULE, HSMKMS_TOKEN_LABEL and" in done.stderr) == (1, True)
        assert len(done.stderr.splitlines()) == 1
    assert not (host.path / "hsmkms.db").exists()

    # Without the key that made the seal nobody can tell.
    sealer = _host_with_token_of(state, tmp_path / "sealer")
    pkcs11_tool(sealer, "--delete-object", "--type", "secrkey", "--id", object_id(integrity.KEY_ID))
    done = sealer.run("restore", str(forged), "--accept-missing")
    assert b"settings were not taken" in done.stdout, done.stderr.decode()
    assert "standby" not in (sealer.path / "hsmkms.toml").read_text()
    assert not loaded.exists()

    done = host.run("restore", str(file), stdin=b"", **named)
    assert done.returncode == 0, done.stderr.decode()
    assert str(host.path / "pin") in (host.path / "hsmkms.toml").read_text()
    assert host.run("doctor").returncode == 0


def test_the_settings_of_a_backup_stay_behind_those_of_the_host(state: State, tmp_path: Path) -> None:
    file = tmp_path / "good.backup"
    of_backup = {"HSMKMS_IMPORT_BY_PROCESS": "false", "HSMKMS_ISSUER": "https://of/backup", "HSMKMS_WORKERS": "3"}
    sinks = {"HSMKMS_AUDIT_SINKS": '[{"kind": "stdout", "name": "out"}]', "HSMKMS_LOG_LEVEL": "debug"}
    assert state.run("backup", str(file), stdin=b"", **of_backup, **sinks).returncode == 0
    host = _host_with_token_of(state, tmp_path / "host")
    settings = host.path / "hsmkms.toml"
    own = f'pin = "{host.pin}"\nlog_level = "error"\n' + settings.read_text()
    settings.write_text(own)
    done = host.run("restore", str(file), stdin=b"", HSMKMS_WORKERS="4")
    assert done.returncode == 0, done.stderr.decode()
    assert b"What was there" not in done.stdout
    assert not list(host.path.glob("*.replaced-*"))
    written = tomllib.loads(settings.read_text())
    assert written == tomllib.loads(own) | {
        "import_by_process": False,
        "issuer": "https://of/backup",
        "workers": 4,
        "audit_sinks": [{"kind": "stdout", "name": "out"}],
    }
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    assert host.run("doctor").returncode == 0


def _library_that_notes_its_loading(directory: Path, note: Path) -> Path:
    source, library = directory / "noting.c", directory / "noting.so"
    source.write_text(
        "#include <fcntl.h>\n"
        f'__attribute__((constructor)) static void note(void) {{ open("{note}", O_CREAT | O_WRONLY, 0600); }}\n'
    )
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library
