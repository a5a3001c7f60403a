"""A ceremony on one token, a service on another: the key travels wrapped to the service's import token."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from hsmkms.ceremony import bundle, components
from hsmkms.ceremony import record as records
from hsmkms.ceremony.bundle import Destination
from hsmkms.ceremony.refusals import CeremonyRefused
from hsmkms.ceremony.screen import Answers
from hsmkms.ceremony.shares import split
from hsmkms.cli.imports import fetched
from tests.ceremony.conftest import CUSTODIANS, LEADER, Table
from tests.ceremony.plans import INSTANCE, plan_text
from tests.ceremony.test_run import require_silent, twice
from tests.support.deployment import Service, State

TO_BUNDLE = '\n[output]\nto = "bundle"\n'
Adopt = Callable[..., tuple[int, str]]


@pytest.fixture
def service(seed_state: State, tmp_path: Path) -> State:
    """A deployment with a token of its own."""
    return seed_state.copy_to(tmp_path / "service")


@pytest.fixture
def import_token(service: State, tmp_path: Path) -> Path:
    """What its operator carries to the ceremony: the answer of GET /import_token."""
    with Service(service) as running, running.client() as client:
        assert client.post("/import_token", json={"expiration": 3600}).status_code == 200
        path = tmp_path / "import-token.json"
        path.write_bytes(client.get("/import_token").content)
    return path


def hold(table: Table, import_token: Path, key: bytes, instance: str, *, rehearsal: bool = False) -> Path:
    """A 3-of-5 ceremony; its bundle."""
    text = plan_text(serial=table.token.info.serial, key=f"bytes = {len(key)}")
    table.plan.write_text(text.replace(INSTANCE, instance) + TO_BUNDLE)
    destination = Destination(*fetched(import_token))
    shares = split(bytearray(key), 3, 5)
    answers = table.answers({who: twice(share) for who, share in zip(CUSTODIANS, shares, strict=True)})
    digits, name, *others = answers[LEADER]
    answers[LEADER] = [digits, name, destination.fingerprint[:8], *others]
    table.hold(Answers(answers), rehearsal=rehearsal, destination=destination)
    return table.record.with_name("record.jsonl.bundle.json")


@pytest.fixture
def adopt(service: State, table: Table) -> Adopt:
    def adopt(path: Path, signed_by: str | None = None) -> tuple[int, str]:
        signer = records.verify(table.record).fingerprint if signed_by is None else signed_by
        done = service.run("keys", "adopt", str(table.record), "--bundle", str(path), "--signed-by", signer, "--json")
        return done.returncode, (done.stdout or done.stderr).decode()

    return adopt


@pytest.mark.parametrize("length", [pytest.param(16, marks=pytest.mark.slow), 32])
def test_the_key_arrives(table: Table, service: State, import_token: Path, adopt: Adopt, length: int) -> None:
    key = os.urandom(length)
    path = hold(table, import_token, key, service.instance_id)
    verified = records.verify(table.record)
    require_silent(table, [key])
    assert table.key_ids() == []
    wrapped = verified.last("key wrapped")
    assert wrapped is not None
    assert wrapped.data["wrap_check_value"] == aes_key_wrap(key, bytes(16))[:8].hex().upper()
    assert wrapped.data["check_values"]["cmac"] == components.check_values(bytearray(key)).cmac
    returned, said = adopt(path)
    assert returned == 0, said
    adopted = json.loads(said)
    assert (adopted["id"], adopted["name"], adopted["state"]) == (wrapped.data["key"], "payments root", "active")
    sealed = service.run("wrap", adopted["id"], stdin=b"a data key of 32 bytes, or so ...")
    assert service.run("unwrap", adopted["id"], stdin=sealed.stdout).stdout == b"a data key of 32 bytes, or so ..."
    assert adopt(path) == (1, "hsmkms: This key was adopted before.\n")
    assert b"WRONG" not in service.run("doctor").stdout


def test_what_is_not_adopted(table: Table, service: State, import_token: Path, adopt: Adopt, tmp_path: Path) -> None:
    path = hold(table, import_token, os.urandom(32), service.instance_id)
    assert "which is not what the paper says" in adopt(path, "0" * 64)[1]
    assert "which is not what the paper says" in adopt(path, "")[1]
    assert "cannot be read" in adopt(tmp_path / "nowhere")[1]
    assert "Give it with --bundle" in service.run("keys", "adopt", str(table.record)).stderr.decode()
    content = path.read_bytes()
    members = json.loads(content)
    path.write_text(json.dumps({**members, "iv": members["iv"][::-1]}))
    assert "not the bundle of this record" in adopt(path)[1]
    path.write_bytes(content)
    # The import token was replaced meanwhile.
    with Service(service) as running, running.client() as client:
        assert client.post("/import_token").status_code == 200
    returned, said = adopt(path)
    assert (returned, "Traceback" in said) == (1, False)
    assert json.loads(service.run("keys", "list", "--json").stdout) == []


def test_a_record_that_tells_of_another_key(
    table: Table, service: State, import_token: Path, adopt: Adopt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ceremony program that wrote a false check value, say: the key is not kept."""
    monkeypatch.setattr(components, "wrap_check_value", lambda _: bytes(8))
    path = hold(table, import_token, os.urandom(32), service.instance_id)
    assert adopt(path) == (1, "hsmkms: The key in the bundle is not the one in the record.\n")
    assert json.loads(service.run("keys", "list", "--json").stdout) == []
    assert b"WRONG" not in service.run("doctor").stdout


def test_rehearsals_and_nowhere_to_go(table: Table, service: State, import_token: Path, adopt: Adopt) -> None:
    path = hold(table, import_token, os.urandom(32), service.instance_id, rehearsal=True)
    assert "record of a rehearsal" in adopt(path)[1]
    table.record.unlink()
    with pytest.raises(CeremonyRefused, match="Give --import-token"):
        table.hold(Answers(table.answers({})))


def test_files_that_are_no_bundle(tmp_path: Path) -> None:
    path = tmp_path / "bundle.json"
    for content in (b"", b"[]", b"{}", b'{"format": 1, "key": 2}', b'"x"'):
        path.write_bytes(content)
        with pytest.raises(CeremonyRefused):
            bundle.read(path, "key", hashlib.sha256(content).hexdigest())
