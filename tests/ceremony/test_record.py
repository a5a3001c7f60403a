"""The record: whatever byte is changed, its step is named; what a power cut leaves is gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from hsmkms.ceremony import record as records
from hsmkms.ceremony.record import CLOSED, FORMAT, OPENED, Record
from hsmkms.ceremony.refusals import CeremonyRefused, RecordBroken

NOW = datetime(2030, 1, 1, 12, 30, tzinfo=UTC)
Write = Callable[[Path], None]


class Signer:
    """A P-256 key outside any token."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.pem = (
            self._key.public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode()
        )

    def __call__(self, message: bytes) -> bytes:
        r, s = utils.decode_dss_signature(self._key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32) + s.to_bytes(32)


def write(path: Path, signer: Signer, *, closed: bool = True) -> None:
    record = Record(path, lambda: NOW)
    record.sign_by(signer)
    if not record.steps:
        record.append("Lea", "leader", OPENED, {"format": FORMAT, "signing_key": signer.pem})
    record.append("Zoë", "custodian", "entered", {"check_value": "ABCDEF", "shares": [1, 2]})
    record.append("Wim", "witness", "witnessed", {})
    if closed:
        record.append("Lea", "leader", CLOSED, {})
    record.close()


@pytest.fixture
def signer() -> Signer:
    return Signer()


@pytest.fixture
def path(tmp_path: Path, signer: Signer) -> Path:
    path = tmp_path / "record.jsonl"
    write(path, signer)
    return path


def test_a_whole_record(path: Path, signer: Signer) -> None:
    verified = records.verify(path)
    assert [(step.number, step.actor, step.what) for step in verified.steps] == [
        (1, "Lea", OPENED),
        (2, "Zoë", "entered"),
        (3, "Wim", "witnessed"),
        (4, "Lea", CLOSED),
    ]
    assert verified.complete
    assert verified.fingerprint == records.fingerprint(signer.pem.encode())
    assert verified.steps[0].at == "2030-01-01T12:30:00Z"
    assert path.stat().st_mode & 0o777 == 0o600


def test_every_byte(path: Path) -> None:
    """Each byte of the file, with one bit changed: the step that is named is the one whose byte it is."""
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        with pytest.raises(RecordBroken) as raised:
            records.check(bytes(changed))
        assert raised.value.step == content[:place].count(b"\n") + 1, place


def test_signatures_in_capital_letters(path: Path) -> None:
    """The same number in another spelling is another byte."""
    line = path.read_bytes().splitlines(keepends=True)[0]
    signature = json.loads(line)["signature"].encode()
    with pytest.raises(RecordBroken, match="Step 1"):
        records.check(line.replace(signature, signature.upper()))


def test_steps_taken_out_doubled_or_exchanged(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    for changed, step in (
        ([lines[0], *lines[2:]], 2),
        (lines[1:], 1),
        ([lines[0], lines[2], lines[1], lines[3]], 2),
        ([*lines, lines[3]], 5),
        ([*lines[:3], lines[3][:-1]], 4),
        ([*lines[:3], lines[3][:20]], 4),
    ):
        with pytest.raises(RecordBroken) as raised:
            records.check(b"".join(changed))
        assert raised.value.step == step
    path.write_bytes(b"".join(lines[:3]))
    assert not records.verify(path).complete
    path.write_bytes(b"")
    with pytest.raises(RecordBroken):
        records.verify(path)


def test_a_chain_made_anew_needs_the_key(path: Path, tmp_path: Path) -> None:
    """Whoever can compute hashes but not use the token cannot put another step in."""
    forged = tmp_path / "forged.jsonl"
    write(forged, Signer())
    ours, theirs = (one.read_bytes().splitlines(keepends=True) for one in (path, forged))
    assert [json.loads(line)["data"] for line in ours[1:]] == [json.loads(line)["data"] for line in theirs[1:]]
    with pytest.raises(RecordBroken) as raised:
        records.check(b"".join([ours[0], *theirs[1:]]))
    assert raised.value.step == 2
    # A record that is another's altogether is told by the fingerprint on paper.
    assert records.verify(forged).fingerprint != records.verify(path).fingerprint


def test_a_torn_last_line_is_dropped_at_every_length(tmp_path: Path, signer: Signer) -> None:
    path = tmp_path / "record.jsonl"
    write(path, signer, closed=False)
    lines = path.read_bytes().splitlines(keepends=True)
    for length in range(len(lines[2])):
        path.write_bytes(b"".join(lines[:2]) + lines[2][:length])
        record = Record(path, lambda: NOW)
        assert (len(record.steps), record.torn_bytes) == (2, length)
        record.close()
        assert path.read_bytes() == b"".join(lines[:2])
    write(path, signer)
    assert [step.what for step in records.verify(path).steps] == [OPENED, "entered", "entered", "witnessed", CLOSED]


def test_a_changed_record_is_not_gone_on_with(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"ABCDEF", b"ABCDEE"))
    with pytest.raises(RecordBroken, match="Step 2"):
        Record(path, lambda: NOW)


def test_two_processes(path: Path, tmp_path: Path) -> None:
    record = Record(path, lambda: NOW)
    with pytest.raises(CeremonyRefused, match="Another process"):
        Record(path, lambda: NOW)
    record.close()
    with pytest.raises(CeremonyRefused, match="cannot be written"):
        Record(tmp_path / "none" / "record.jsonl", lambda: NOW)
