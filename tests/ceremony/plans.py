"""Plans for tests, and a leader to sign them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from hsmkms.ceremony import plan as plans

INSTANCE = "6f1d9d5a-8f0e-4d62-9a77-0d6d5a1b2c3d"
CUSTODIANS = ("Alice Ahrens", "Bob Brandt", "Carol Çelik", "Dave Dvořák", "Erin Eriksen")


def plan_text(
    *,
    kind: str = "shares",
    k: int | None = 3,
    custodians: Sequence[str] = CUSTODIANS,
    serial: str = "0123456789abcdef",
    source: str = "",
    key: str = "",
) -> str:
    """A plan as a leader writes it."""
    counts = (f"k = {k}\n" if k is not None else "") + (
        f"n = {len(custodians)}\n" if kind not in ("generate", "wrapped") else ""
    )
    listed = ", ".join(f'"{name}"' for name in custodians)
    return f"""title = "Root key of payments, 2027"

[key]
name = "payments root"
purpose = "Wraps the data keys of the payments database"
instance = "{INSTANCE}"
{key}
[source]
kind = "{kind}"
{counts}{source}
[token]
serial = "{serial}"

[people]
leader = "Lea Lindqvist"
witnesses = ["Wim Weber", "Wanda Wójcik"]
custodians = [{listed}]
"""


@dataclass(frozen=True)
class Leader:
    """A key pair in two files."""

    private: Path
    public: Path

    def sign(self, path: Path) -> Path:
        """Sign a plan."""
        return plans.sign(path, self.private, None)


def make_leader(directory: Path, *, ecdsa: bool = False, name: str = "leader") -> Leader:
    """A leader with an Ed25519 or a P-256 key."""
    key = ec.generate_private_key(ec.SECP256R1()) if ecdsa else ed25519.Ed25519PrivateKey.generate()
    leader = Leader(directory / f"{name}.pem", directory / f"{name}.pub.pem")
    leader.private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    leader.public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return leader
