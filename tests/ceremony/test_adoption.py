"""From ceremony to service: the adopted key wraps over the command line; what does not prove itself is refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hsmkms.ceremony.shares import split
from tests.ceremony.conftest import CUSTODIANS, LEADER, WITNESSES
from tests.ceremony.plans import INSTANCE, make_leader, plan_text
from tests.support.deployment import State
from tests.token.conftest import pkcs11_tool

Hold = Callable[..., Path]


@pytest.fixture
def hold(state: State, tmp_path: Path) -> Hold:
    """A whole ceremony by the command, unattended, on the token of `state`; its record."""
    leader = make_leader(tmp_path)
    serial = re.search(r"serial (\w+)", state.run("doctor").stdout.decode())
    assert serial
    shares = split(bytearray(os.urandom(32)), 3, 5)

    def hold(name: str = "plan", *, instance: str = state.instance_id, command: str = "run") -> Path:
        plan = tmp_path / f"{name}.toml"
        plan.write_text(plan_text(serial=serial[1]).replace(INSTANCE, instance))
        signature = leader.sign(plan)
        assert signature.exists()
        digest = state.run("ceremony", "plan", "sign", str(plan), "--key", str(leader.private)).stdout.split()[-1]
        answers = {
            LEADER: [digest.decode()[:8], LEADER, "yes"],
            **{who: [who, who] for who in WITNESSES},
            **{who: [who, share, share] for who, share in zip(CUSTODIANS, shares, strict=True)},
        }
        file = tmp_path / "answers.json"
        file.write_text(json.dumps(answers))
        record = tmp_path / f"{name}.jsonl"
        done = state.run(
            *("ceremony", command, str(plan), "--leader-key", str(leader.public)),
            *("--record", str(record), "--answers", str(file)),
        )
        assert done.returncode == 0, done.stderr
        return record

    return hold


def test_an_adopted_key_wraps(state: State, hold: Hold) -> None:
    record = hold()
    done = state.run("keys", "adopt", str(record), "--json")
    assert done.returncode == 0, done.stderr
    key = json.loads(done.stdout)
    assert (key["name"], key["state"], key["versions"]) == ("payments root", "active", 1)
    wrapped = state.run("wrap", key["id"], stdin=b"a data key of 32 bytes, or so ...")
    assert wrapped.returncode == 0, wrapped.stderr
    assert state.run("unwrap", key["id"], stdin=wrapped.stdout).stdout == b"a data key of 32 bytes, or so ..."
    assert b"WRONG" not in state.run("doctor").stdout
    again = state.run("keys", "adopt", str(record))
    assert (again.returncode, again.stderr) == (1, b"hsmkms: This key was adopted before.\n")


def test_what_does_not_prove_itself(state: State, hold: Hold) -> None:
    record = hold()
    content = record.read_bytes()
    lines = content.splitlines(keepends=True)
    record.write_bytes(b"".join(lines[:-1]))
    assert b"not brought to its end" in state.run("keys", "adopt", str(record)).stderr
    record.write_bytes(content.replace(b"payments root", b"payments boot"))
    assert b"Step 1 of the record is broken" in state.run("keys", "adopt", str(record)).stderr
    record.write_bytes(content)
    # The object is gone and another is in its place.
    version = next(json.loads(line)["data"]["version"] for line in lines if b'"key made"' in line).replace("-", "")
    pkcs11_tool(state, "--delete-object", "--type", "secrkey", "--id", version)
    assert b"not on the token" in state.run("keys", "adopt", str(record)).stderr
    pkcs11_tool(state, "--keygen", "--key-type", "AES:32", "--id", version, "--sensitive")
    assert state.run("keys", "adopt", str(record)).returncode == 1
    assert json.loads(state.run("keys", "list", "--json").stdout) == []


def test_rehearsals_and_strangers(state: State, hold: Hold, seed_state: State, tmp_path: Path) -> None:
    assert b"record of a rehearsal" in state.run("keys", "adopt", str(hold("r", command="rehearse"))).stderr
    other = hold("other", instance=INSTANCE)
    assert b"Choose an instance" in state.run("keys", "adopt", str(other)).stderr


def test_a_record_that_another_key_signed(state: State, hold: Hold) -> None:
    """The signing key of the record is no longer the token's: whatever the record says, it is not believed."""
    record = hold()
    key_id = json.loads(record.read_bytes().splitlines()[0])["data"]["signing_key_id"].replace("-", "")
    pkcs11_tool(state, "--delete-object", "--type", "privkey", "--id", key_id)
    refused = state.run("keys", "adopt", str(record))
    assert (refused.returncode, refused.stderr) == (
        1,
        b"hsmkms: The key that signed the record is not on this token.\n",
    )
    pkcs11_tool(state, "--keypairgen", "--key-type", "EC:prime256v1", "--id", key_id, "--usage-sign")
    refused = state.run("keys", "adopt", str(record))
    assert b"not signed by a key of this token" in refused.stderr
