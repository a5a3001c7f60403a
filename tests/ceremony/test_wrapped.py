"""A key that another HSM wraps: what is taken, what is refused, and that no pair is left on the token."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from hsmkms.ceremony import components
from hsmkms.ceremony import record as records
from hsmkms.ceremony.record import Record, fingerprint
from hsmkms.ceremony.refusals import CeremonyRefused
from hsmkms.ceremony.screen import Answers
from tests.ceremony.conftest import LEADER, Table
from tests.ceremony.test_power_cut import PowerCut
from tests.ceremony.test_run import refusals, require_right, require_silent
from tests.token.conftest import pkcs11_tool

HASHES = {"sha256": hashes.SHA256(), "sha1": hashes.SHA1()}
Answer = str | Callable[[], str]


class OtherHsm(Answers):
    """Answers, of which some are made when they are asked for: what the other HSM does with the public key."""

    def __init__(self, answers: dict[str, list[str]], *leader: Answer) -> None:
        super().__init__(answers)
        self._leader = list(leader)

    def _next(self, who: str, prompt: str) -> str:
        if prompt.startswith("Path of the wrapped key") and self._leader:
            answer = self._leader.pop(0)
            return answer if isinstance(answer, str) else answer()
        return super()._next(who, prompt)


def wrap_to(public: Path, key: bytes, oaep: str) -> bytes:
    read = serialization.load_pem_public_key(public.read_bytes())
    assert isinstance(read, rsa.RSAPublicKey)
    return read.encrypt(key, padding.OAEP(padding.MGF1(HASHES[oaep]), HASHES[oaep], None))


def plan(table: Table, source: str = "", key: str = "") -> None:
    table.write_plan(kind="wrapped", k=None, custodians=(), source=source, key=key)


def public_key(table: Table) -> Path:
    return table.record.with_name("record.jsonl.public.pem")


def pairs(table: Table) -> int:
    """RSA private keys on the token."""
    return len(re.findall(r"Private Key Object; RSA", pkcs11_tool(table.state, "--list-objects", "--type", "privkey")))


@pytest.mark.parametrize("length", [16, 24, 32])
@pytest.mark.parametrize(("oaep", "way"), [("sha256", "RSA-OAEP padding removed in locked"), ("sha1", "unwrapped in")])
def test_a_key_of_another_hsm(table: Table, tmp_path: Path, oaep: str, way: str, length: int) -> None:
    key, file = os.urandom(length), tmp_path / "wrapped.bin"
    plan(table, f'oaep = "{oaep}"\nexpected = "{components.check_values(bytearray(key)).cmac}"', f"bytes = {length}")

    def carried() -> str:
        file.write_bytes(wrap_to(public_key(table), key, oaep))
        return str(file)

    table.hold(OtherHsm(table.answers({}), carried))
    verified = records.verify(table.record)
    require_right(table, verified, key)
    require_silent(table, [key])
    made, pair = verified.last("key made"), verified.last("pair made")
    assert made is not None
    assert made.data["passage"].startswith(way)
    assert pair is not None
    assert pair.data["fingerprint"] == fingerprint(pair.data["public_key"].encode())
    assert [step.what for step in verified.steps if step.what.startswith("pair")] == [
        "pair announced",
        "pair made",
        "pair destroyed",
    ]
    assert pairs(table) == 0
    assert not public_key(table).exists()


@pytest.mark.parametrize("oaep", HASHES)
def test_every_wrong_file_is_asked_again(table: Table, tmp_path: Path, oaep: str) -> None:
    key = os.urandom(32)
    plan(table, f'oaep = "{oaep}"\nexpected = "{components.check_values(bytearray(key)).cmac}"')
    stranger = rsa.generate_private_key(65537, 4096).public_key()
    other = next(name for name in HASHES if name != oaep)
    scheme = padding.OAEP(padding.MGF1(HASHES[oaep]), HASHES[oaep], None)

    def file(make: Callable[[], bytes]) -> Callable[[], str]:
        def write() -> str:
            (tmp_path / "file").write_bytes(make())
            return str(tmp_path / "file")

        return write

    def good() -> bytes:
        return wrap_to(public_key(table), key, oaep)

    def changed() -> bytes:
        whole = bytearray(good())
        whole[-1] ^= 1
        return bytes(whole)

    files: list[Callable[[], bytes]] = [
        lambda: good()[:-1],
        lambda: b"",
        lambda: base64.b64encode(good()),
        lambda: public_key(table).read_bytes(),
        lambda: good().hex().encode(),
        changed,
        lambda: stranger.encrypt(key, scheme),
        lambda: wrap_to(public_key(table), key, other),
        lambda: b"\xff" * 512,
        lambda: wrap_to(public_key(table), os.urandom(16), oaep),
        lambda: wrap_to(public_key(table), os.urandom(33), oaep),
        lambda: wrap_to(public_key(table), os.urandom(32), oaep),
        good,
    ]
    table.hold(OtherHsm(table.answers({}), "", str(tmp_path / "nowhere"), str(tmp_path), *map(file, files)))
    verified = records.verify(table.record)
    require_right(table, verified, key)
    said = [re.split(r"[.:]| has | is [0-9A-F]{6}", why)[0] for why in refusals(verified)]
    unreadable = "This is no AES key wrapped to the key pair that was made for it, under the hash of the plan"
    assert said == [
        *["That file cannot be read"] * 3,
        "That file",
        *["That file holds text, not bytes"] * 4,
        *[unreadable] * 4,
        # SoftHSM does not tell the length of a key that it unwrapped; the check value is another's all the same.
        "This key" if oaep == "sha256" else "The key check value",
        unreadable,
        "The key check value",
    ]
    assert pairs(table) == 0


def test_the_leader_compares_with_paper(table: Table, tmp_path: Path) -> None:
    """Without an expected value the leader decides, and may give up."""
    plan(table)
    file = tmp_path / "wrapped.bin"

    def carried() -> str:
        file.write_bytes(wrap_to(public_key(table), os.urandom(32), "sha256"))
        return str(file)

    with pytest.raises(CeremonyRefused, match="pair was destroyed"):
        table.hold(OtherHsm(table.answers({}, leader=["no"]), carried, "destroy"))
    assert (pairs(table), table.key_ids()) == (0, [])
    answers = table.answers({})
    answers[LEADER].remove(LEADER)
    for who in list(answers)[1:]:
        answers[who] = answers[who][1:]
    table.hold(OtherHsm(answers, carried))
    verified = records.verify(table.record)
    assert verified.complete
    assert refusals(verified) == ["The leader does not agree to this key check value."]
    assert [step.what for step in verified.steps].count("pair made") == 2
    assert pairs(table) == 0


# opened, 3 present, pair announced, pair made, key opened, announced, made, pair destroyed, 2 witnessed, closed.
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("line", range(5, 12))
def test_the_power_fails(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: int, moment: str) -> None:
    """Whenever it does, the next start ends with one key and no pair."""
    key, file, whole_write, written = os.urandom(32), tmp_path / "wrapped.bin", Record._write, 0
    plan(table, 'oaep = "sha1"')

    def carried() -> str:
        file.write_bytes(wrap_to(public_key(table), key, "sha1"))
        return str(file)

    def cut(self: Record, data: bytes) -> None:
        nonlocal written
        written += 1
        if written == line and moment == "before":
            raise PowerCut
        whole_write(self, data)
        if written == line:
            raise PowerCut

    with monkeypatch.context() as patched:
        patched.setattr(Record, "_write", cut)
        with pytest.raises(PowerCut):
            table.hold(OtherHsm(table.answers({}), carried))
    answers = table.answers({})
    for step in records.check(table.record.read_bytes()):
        if step.what in ("present", "witnessed"):
            answers[step.actor].remove(step.actor)
    table.pool.reopen(table.pool.generation)
    table.hold(OtherHsm(answers, carried))
    require_right(table, records.verify(table.record), key)
    assert pairs(table) == 0
