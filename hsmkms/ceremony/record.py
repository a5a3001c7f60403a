"""The record: one JSON line a step, each with the hash of the one before and a signature by a key in the token.

A line is the canonical JSON of its step (members sorted, no spaces, ASCII), so that no byte of the file can change
unnoticed. A step is on disk before what follows from it is done. Nothing of a key is ever in it but check values.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from hsmkms.ceremony.refusals import CeremonyRefused, RecordBroken

FORMAT: Final = "hsmkms ceremony record 1"
OPENED, CLOSED = "opened", "closed"
_FIRST: Final = "0" * 64
_SIGNED: Final = b"hsmkms ceremony step\0"
_MEMBERS: Final = frozenset({"step", "at", "actor", "role", "what", "data", "previous", "hash", "signature"})

Sign = Callable[[bytes], bytes]
"""ECDSA P-256 SHA-256 by a key in the token: r and s of 32 bytes each."""


@dataclass(frozen=True, slots=True)
class Step:
    """Who did what, and what was seen. `data` holds texts, numbers and lists, as JSON does."""

    number: int
    at: str
    actor: str
    role: str
    what: str
    data: dict[str, Any]
    hash: str


class Record:
    """A record that is being written, by one process at a time."""

    def __init__(self, path: Path, clock: Callable[[], datetime]) -> None:
        """Open or create it. What a power cut left of an unfinished last line is dropped: it was never relied upon.

        Raises CeremonyRefused when another process has it or it cannot be written, RecordBroken when it was changed.
        """
        self._clock = clock
        self._sign: Sign | None = None
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CeremonyRefused(f"Another process holds the ceremony of {path}.") from None
        except OSError as error:
            raise CeremonyRefused(f"The record {path} cannot be written: {error.strerror}.") from error
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        self.torn_bytes = len(content) - whole
        """How many bytes of an unfinished line were dropped."""
        self.steps: list[Step] = list(check(content[:whole]))
        os.ftruncate(self._file, whole)
        _sync_directory(path.parent)

    def close(self) -> None:
        """Let others have it."""
        os.close(self._file)

    def sign_by(self, sign: Sign) -> None:
        """Sign the steps that follow."""
        self._sign = sign

    def append(self, actor: str, role: str, what: str, data: dict[str, Any]) -> Step:
        """Write a step down. It is on disk when this returns."""
        if self._sign is None:
            raise CeremonyRefused("The record has no key to sign with.")
        body: dict[str, Any] = {
            "step": len(self.steps) + 1,
            "at": self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "actor": actor,
            "role": role,
            "what": what,
            "data": data,
            "previous": self.steps[-1].hash if self.steps else _FIRST,
        }
        digest = hashlib.sha256(_canonical(body)).hexdigest()
        signature = self._sign(_SIGNED + bytes.fromhex(digest)).hex()
        self._write(_canonical({**body, "hash": digest, "signature": signature}) + b"\n")
        step = _step(body, digest)
        self.steps.append(step)
        return step

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)


@dataclass(frozen=True, slots=True)
class Verified:
    """A record that proves what it says. `fingerprint` is that of its signing key; `complete` tells whether the
    ceremony was brought to its end."""

    steps: Sequence[Step]
    public_key: ec.EllipticCurvePublicKey
    fingerprint: str
    complete: bool

    @property
    def head(self) -> str:
        """Hash of the last step: whoever has it on paper can tell that nothing was cut off."""
        return self.steps[-1].hash

    def last(self, what: str) -> Step | None:
        """The last step of a kind."""
        return next((step for step in reversed(self.steps) if step.what == what), None)


def verify(path: Path) -> Verified:
    """Check every step of a record. Raises RecordBroken, which names the first that is wrong."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CeremonyRefused(f"The record {path} cannot be read: {error.strerror}.") from error
    steps = check(content)
    if not steps:
        raise RecordBroken(1, "there is none")
    key = _public_key(steps[0])
    complete = steps[-1].what == CLOSED
    return Verified(steps, key, fingerprint(steps[0].data["signing_key"].encode()), complete)


def fingerprint(pem: bytes) -> str:
    """SHA-256 of a public key's SubjectPublicKeyInfo in hexadecimal."""
    key = serialization.load_pem_public_key(pem)
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def check(content: bytes) -> Sequence[Step]:
    """The steps in a record's bytes. Raises RecordBroken."""
    lines = content.split(b"\n")
    steps: list[Step] = []
    key: ec.EllipticCurvePublicKey | None = None
    for number, line in enumerate(lines[:-1], 1):
        members = _members(number, line)
        body = {name: value for name, value in members.items() if name not in ("hash", "signature")}
        if hashlib.sha256(_canonical(body)).hexdigest() != members["hash"]:
            raise RecordBroken(number, "its content is not what was hashed")
        if members["step"] != number or members["previous"] != (steps[-1].hash if steps else _FIRST):
            raise RecordBroken(number, "it does not follow the step before it")
        step = _step(body, members["hash"])
        key = _public_key(step) if key is None else key
        if not _is_signed(key, members):
            raise RecordBroken(number, "its signature is not by the record's key")
        steps.append(step)
    if lines[-1]:
        raise RecordBroken(len(lines), "its line is cut off")
    return steps


def _members(number: int, line: bytes) -> dict[str, Any]:
    try:
        members = json.loads(line)
        whole = isinstance(members, dict) and members.keys() == _MEMBERS and _canonical(members) == line
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise RecordBroken(number, "its line is not one that this program wrote")
    typed: dict[str, Any] = members
    return typed


def _is_signed(key: ec.EllipticCurvePublicKey, members: dict[str, Any]) -> bool:
    try:
        signature = bytes.fromhex(members["signature"])
        if len(signature) != 64 or signature.hex() != members["signature"]:
            return False
        der = utils.encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
        key.verify(der, _SIGNED + bytes.fromhex(members["hash"]), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _public_key(opened: Step) -> ec.EllipticCurvePublicKey:
    try:
        if opened.what != OPENED or opened.data["format"] != FORMAT:
            raise RecordBroken(1, "it does not open a ceremony")
        key = serialization.load_pem_public_key(opened.data["signing_key"].encode())
    except (ValueError, KeyError, AttributeError) as error:
        raise RecordBroken(1, "it names no signing key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RecordBroken(1, "its signing key is of another kind")
    return key


def _step(body: dict[str, Any], digest: str) -> Step:
    return Step(body["step"], body["at"], body["actor"], body["role"], body["what"], body["data"], digest)


def _canonical(members: dict[str, Any]) -> bytes:
    return json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
