"""Plans: only the one that the leader signed, without a member that nobody reads, is carried out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from hsmkms.ceremony import plan as plans
from hsmkms.ceremony.plan import SourceKind
from hsmkms.ceremony.refusals import PlanRefused
from tests.ceremony.plans import CUSTODIANS, make_leader, plan_text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(plan_text())
    return path


@pytest.mark.parametrize("ecdsa", [False, True])
def test_a_signed_plan(path: Path, tmp_path: Path, ecdsa: bool) -> None:
    leader = make_leader(tmp_path, ecdsa=ecdsa)
    leader.sign(path)
    read = plans.read_signed(path, leader.public)
    assert (read.plan.source.kind, read.plan.source.k, read.plan.people.custodians) == (
        SourceKind.SHARES,
        3,
        list(CUSTODIANS),
    )
    shown = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
    assert shown.startswith(read.digest)


def test_a_changed_plan(path: Path, tmp_path: Path) -> None:
    leader = make_leader(tmp_path)
    leader.sign(path)
    signed = path.read_bytes()
    for changed in (signed + b"\n", signed.replace(b"k = 3", b"k = 2"), signed[:-1], b""):
        path.write_bytes(changed)
        with pytest.raises(PlanRefused, match="not the one that its leader signed"):
            plans.read_signed(path, leader.public)
    path.write_bytes(signed)
    assert plans.read_signed(path, leader.public).plan.source.k == 3


def test_another_leader_and_no_signature(path: Path, tmp_path: Path) -> None:
    leader, other = make_leader(tmp_path), make_leader(tmp_path, name="other")
    with pytest.raises(PlanRefused, match="signature"):
        plans.read_signed(path, leader.public)
    other.sign(path)
    with pytest.raises(PlanRefused, match="not the one"):
        plans.read_signed(path, leader.public)
    for nonsense in ("", "{}", "[]", '{"signature": 1}', '{"signature": "xy"}'):
        plans.signature_path(path).write_text(nonsense)
        with pytest.raises(PlanRefused, match="cannot be read"):
            plans.read_signed(path, leader.public)
    leader.sign(path)
    with pytest.raises(PlanRefused):
        plans.read_signed(path, path)


def test_keys_of_other_kinds(path: Path, tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    pem = tmp_path / "rsa.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(PlanRefused, match="Ed25519 or P-256"):
        plans.sign(path, pem, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (plan_text() + "\n[extra]\na = 1\n", "extra"),
        (plan_text(source='colour = "red"'), "source.colour"),
        (plan_text(k=1), "2 to n"),
        (plan_text(k=6), "2 to n"),
        (plan_text(k=None), "2 to n"),
        (plan_text().replace("n = 5", "n = 4"), "number of custodians"),
        (plan_text(custodians=CUSTODIANS[:1]), "2 to 16"),
        (plan_text(kind="components"), "there is no k"),
        (plan_text(kind="components", k=None, custodians=[f"Custodian {n}" for n in range(10)]), "2 to 9"),
        (plan_text(kind="generate"), "a generated key has no k"),
        (plan_text(kind="generate", k=None, source='expected = "ABCDEF"'), "a generated key has no"),
        (plan_text(kind="generate", k=None, key="bytes = 16"), "32 bytes"),
        (plan_text(kind="wrapped", custodians=()), "a wrapped key has no k"),
        (plan_text(kind="wrapped", k=None, custodians=(), source='oaep = "md5"'), "source.oaep"),
        (plan_text(source='oaep = "sha1"'), "only a wrapped file"),
        (plan_text(kind="split", k=1), "2 to n"),
        (plan_text(kind="split", source='expected = "ABCDEF"'), "still to be made"),
        (plan_text(kind="split", source='parts = { "Alice Ahrens" = "ABCDEF" }'), "custodians of this plan"),
        (plan_text(kind="generate", k=None) + '\n[output]\nto = "bundle"\n', "never holds such a key"),
        (plan_text(kind="wrapped", k=None, custodians=()) + '\n[output]\nto = "bundle"\n', "never holds such a key"),
        (plan_text() + '\n[output]\nto = "cloud"\n', "output.to"),
        (plan_text(kind="dance"), "source.kind"),
        (plan_text(key="bytes = 20"), "key.bytes"),
        (plan_text(source='expected = "abcdef"'), "source.expected"),
        (plan_text(source='parts = { "Mallory" = "ABCDEF" }'), "custodians of this plan"),
        (plan_text(custodians=("Alice", "alice", "Bob")), "names must differ"),
        (plan_text(custodians=("Lea Lindqvist", "Bob", "Carol")), "two roles"),
        (plan_text(custodians=("A\\u001b[2Jlice", "Bob", "Carol")), "printable"),
        (plan_text().replace('["Wim Weber", "Wanda Wójcik"]', "[]"), "people.witnesses"),
        (plan_text().replace("6f1d9d5a", "6F1D9D5A"), "GUID"),
        (plan_text(serial=""), "token.serial"),
        ("title = 1", "title"),
        ("title", "TOML"),
    ],
)
def test_plans_that_cannot_be_carried_out(path: Path, tmp_path: Path, text: str, said: str) -> None:
    """They are refused when they are signed, which is days before people travel."""
    path.write_text(text)
    with pytest.raises(PlanRefused) as raised:
        make_leader(tmp_path).sign(path)
    assert said in raised.value.message
    assert not plans.signature_path(path).exists()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanRefused, match="cannot be read"):
        plans.read(tmp_path / "plan.toml")
