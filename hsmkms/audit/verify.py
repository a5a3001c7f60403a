"""Prove that logs are whole: needs the files and the public key, no token, no database, no service."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from hsmkms.audit import chain
from hsmkms.audit.logfile import is_held, lines_of, logs_in
from hsmkms.errors import AuditKeyInvalid


@dataclass(slots=True)
class Verified:
    """What a log proves. `broken_at` is the number of the first record that is wrong, for the reason in `problem`;
    records behind `signed` stand on no signature yet. `closed` says that nothing may follow."""

    log: str
    records: int = 0
    signed: int = 0
    closed: bool = False
    held: bool = False
    broken_at: int | None = None
    problem: str | None = None
    heads: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Nothing is wrong, and nothing behind the last signature could have been cut off unseen."""
        return self.problem is None and (self.closed or self.held)


def load_public_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    """A P-256 public key. Raises AuditKeyInvalid."""
    try:
        key = serialization.load_pem_public_key(pem)
    except ValueError as error:
        raise AuditKeyInvalid("The public key is no PEM of a public key.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise AuditKeyInvalid("The public key is of another kind: it must be on P-256.")
    return key


def verify(
    directories: Sequence[Path], key: ec.EllipticCurvePublicKey, heads: Mapping[str, tuple[int, str]]
) -> list[Verified]:
    """Verify every log, and that every head that another log's checkpoint or `heads` tells of is there. Logs that are
    told of and missing are in the answer too. Raises OSError."""
    paths = logs_in(directories)
    told: dict[str, dict[int, str]] = {}
    for log, (sequence, digest) in heads.items():
        told.setdefault(log, {})[sequence] = digest
    found: dict[str, Verified] = {}
    for path in paths:
        log = path.name.removesuffix(chain.SUFFIX)
        if log in found:
            found[log].problem = "it is there twice"
            continue
        found[log] = one = _Reader(log, key).read(path)
        one.held = is_held(path)
        for other, (sequence, digest) in one.heads.items():
            told.setdefault(other, {})[sequence] = digest
    for path in paths:
        log = path.name.removesuffix(chain.SUFFIX)
        if log in told and found[log].problem is None:
            _compare(found[log], told[log], path)
    for log in sorted(told.keys() - found.keys()):
        found[log] = Verified(log, broken_at=1, problem="the whole log is missing")
    return [found[log] for log in sorted(found)]


def _compare(one: Verified, told: Mapping[int, str], path: Path) -> None:
    wanted = {sequence: digest for sequence, digest in told.items() if sequence <= one.records}
    if len(wanted) < len(told):
        one.broken_at = one.records + 1
        one.problem = f"records up to {max(told)} were seen by another log and are gone"
        return
    for number, text in enumerate(lines_of(path), 1):
        if number in wanted:
            parts = chain.split(text.rstrip(b"\n"))
            if parts is None or parts[0].decode("latin-1") != wanted[number]:
                one.broken_at, one.problem = number, "another log saw another record here"
                return


class _Reader:
    """Reads one log to its end or to the first record that is wrong."""

    def __init__(self, log: str, key: ec.EllipticCurvePublicKey) -> None:
        self._key = key
        self._known = Verified(log)
        self._digests: dict[int, str] = {}
        """Of records that no checkpoint has signed yet."""

    def read(self, path: Path) -> Verified:
        """Raises OSError."""
        known = self._known
        digest = chain.genesis(known.log)
        sha256, number = hashlib.sha256, 0
        for text in lines_of(path):
            number += 1
            parts = chain.split(text[:-1]) if text.endswith(b"\n") else None
            if parts is None:
                return self._broken(number, "it is no whole record")
            stated, body = parts
            hashed = sha256(digest + body)
            if hashed.hexdigest().encode() != stated:
                return self._broken(number, "its hash does not follow from the record before it")
            digest = hashed.digest()
            kind = chain.kind_of(body, number)
            if kind is None:
                return self._broken(number, "its number is wrong")
            if kind[0] != "event" or number == 1 or known.closed:
                problem = self._special(number, kind[0], kind[1])
                if problem is not None:
                    return self._broken(number, problem)
            known.records = number
            self._digests[number] = parts[0].decode()
        if number == 0:
            return self._broken(1, "it is empty")
        return known

    def _broken(self, number: int, problem: str) -> Verified:
        self._known.broken_at, self._known.problem = number, problem
        return self._known

    def _special(self, number: int, kind: str, content: bytes) -> str | None:
        """Take in a record that is no plain event; what is wrong with it, or None."""
        if self._known.closed:
            return "the log was closed before it"
        if (number == 1) != (kind == "opened"):
            return "a log begins with its opening, and has one"
        try:
            if kind == "opened":
                return self._opened(msgspec.json.decode(content, type=chain.Opened))
            if kind == "checkpoint":
                return self._signed(number, msgspec.json.decode(content, type=chain.SignedCheckpoint))
            if kind != "resumed":
                return "it is of an unknown kind"
        except msgspec.MsgspecError:
            return "it cannot be read"
        return None

    def _opened(self, opened: chain.Opened) -> str | None:
        if opened.log != self._known.log or opened.format != chain.FORMAT:
            return "it is of another log"
        same = load_public_key(opened.public_key.encode()).public_numbers() == self._key.public_numbers()
        return None if same else "it names another public key"

    def _signed(self, number: int, record: chain.SignedCheckpoint) -> str | None:
        try:
            raw = bytes.fromhex(record.signature)
        except ValueError:
            raw = b""
        if len(raw) != 64:
            return "the signature cannot be read"
        der = utils.encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
        try:
            self._key.verify(der, chain.signed_message(bytes(record.checkpoint)), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return "the signature is not by the audit key"
        checkpoint = msgspec.json.decode(record.checkpoint, type=chain.Checkpoint)
        if self._digests.get(checkpoint.upto) != checkpoint.digest:
            return "what was signed is another record than the one that is there"
        if checkpoint.final and checkpoint.upto != number - 1:
            return "the log goes on to where it was closed, and further"
        self._digests = {at: digest for at, digest in self._digests.items() if at > checkpoint.upto}
        self._known.signed = number if checkpoint.final else checkpoint.upto
        self._known.closed = checkpoint.final
        self._known.heads.update(checkpoint.heads)
        return None
