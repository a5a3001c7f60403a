"""Prove that logs are whole: needs the files and the public key, no token, no database, no service."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from binascii import hexlify
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from hsmkms.audit import chain
from hsmkms.audit.logfile import BLOCK, is_held, lines_of, logs_in
from hsmkms.errors import AuditKeyInvalid

WORTH_PROCESSES: Final = 64 << 20
"""Bytes of logs from which on starting processes costs less than it saves."""


@dataclass(slots=True)
class Verified:
    """What a log proves. `broken_at` is the number of the first record that is wrong, for the reason in `problem`;
    records behind `signed` stand on no signature yet. `closed` says that nothing may follow."""

    log: str
    records: int = 0
    signed: int = 0
    closed: bool = False
    closed_at: datetime | None = None
    held: bool = False
    retired: bool = False
    broken_at: int | None = None
    problem: str | None = None
    heads: list[tuple[str, int, str]] = field(default_factory=list)
    """What its checkpoints say of other logs: log, number and hash of a record."""
    gone: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Logs that it says were retired, with their last records, as far as the process that wrote it signed that."""
    digests: dict[int, str] = field(default_factory=dict)
    """Hashes of the records that a checkpoint signed, and of the last one: what others tell of is nearly always one
    of these."""

    @property
    def sound(self) -> bool:
        """Nothing is wrong, and nothing behind the last signature could have been cut off unseen."""
        return self.problem is None and (self.closed or self.held or self.retired)


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
    directories: Sequence[Path],
    key: ec.EllipticCurvePublicKey,
    heads: Mapping[str, tuple[int, str]],
    worth_processes: int = WORTH_PROCESSES,
) -> list[Verified]:
    """Verify every log, and that every head that another log's checkpoint or `heads` tells of is there. Logs that are
    told of and missing are in the answer too. From `worth_processes` bytes on each processor reads logs of its own.
    Raises OSError."""
    paths = logs_in(directories)
    told: dict[str, dict[int, str]] = {}
    for log, (sequence, digest) in heads.items():
        told.setdefault(log, {})[sequence] = digest
    found: dict[str, Verified] = {}
    places: dict[str, Path] = {}
    gone: dict[str, tuple[int, str]] = {}
    for path, one in zip(paths, _read_all(paths, key, worth_processes), strict=True):
        if one.log in found:
            if (one.problem, one.digests) != (None, found[one.log].digests):
                found[one.log].problem = "it is there twice, and not the same"
            continue
        found[one.log], places[one.log] = one, path
        for other, sequence, digest in one.heads:
            told.setdefault(other, {})[sequence] = digest
        gone |= one.gone
    for log in told.keys() & found.keys():
        if found[log].problem is None:
            _compare(found[log], told[log], places[log])
    for log in sorted(told.keys() - found.keys()):
        found[log] = _missing(log, told[log], gone.get(log))
    return [found[log] for log in sorted(found)]


def last_records(old: Sequence[Verified], found: Iterable[Verified]) -> dict[str, tuple[int, str]]:
    """What is to be recorded before `old` of all logs that were found are deleted: number and hash of their last
    records, and of those that went before on the word of one of these and that a log which stays tells of."""
    logs = {one.log: (one.records, one.digests[one.records]) for one in old}
    told = {log for one in found if one.log not in logs for log, _, _ in one.heads}
    return {log: last for one in old for log, last in one.gone.items() if log in told} | logs


def _read_all(paths: Sequence[Path], key: ec.EllipticCurvePublicKey, worth_processes: int) -> Iterable[Verified]:
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    read = partial(_read, pem)
    processes = min(len(os.sched_getaffinity(0)), len(paths))
    if processes < 2 or sum(path.stat().st_size for path in paths) < worth_processes:
        return map(read, paths)
    # Spawned: a process that has opened a PKCS#11 library must not be forked.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(read, paths))


def _read(pem: bytes, path: Path) -> Verified:
    held = is_held(path)
    one = _Reader(path.name.removesuffix(chain.SUFFIX), load_public_key(pem)).read(path)
    # Asked before it was read: who lets go of it meanwhile has closed it.
    one.held = held
    return one


def _missing(log: str, told: Mapping[int, str], retired: tuple[int, str] | None) -> Verified:
    if retired is None:
        return Verified(log, broken_at=1, problem="the whole log is missing")
    records, digest = retired
    if max(told) > records or told.get(records, digest) != digest:
        return Verified(log, broken_at=records, problem="what was retired is not what another log saw")
    return Verified(log, records, records, closed=True, retired=True)


def _compare(one: Verified, told: Mapping[int, str], path: Path) -> None:
    if max(told) > one.records:
        one.broken_at = one.records + 1
        one.problem = f"records up to {max(told)} were seen by another log and are gone"
        return
    there = one.digests
    if not told.keys() <= there.keys():
        there = {
            number: parts[0].decode("latin-1")
            for number, text in enumerate(lines_of(path), 1)
            if number in told and (parts := chain.split(text.rstrip(b"\n"))) is not None
        }
    for number, digest in sorted(told.items()):
        if there.get(number) != digest:
            one.broken_at, one.problem = number, "another log saw another record here"
            return


class _Reader:
    """Reads one log to its end or to the first record that is wrong."""

    def __init__(self, log: str, key: ec.EllipticCurvePublicKey) -> None:
        self._key = key
        self._known = Verified(log)
        self._unsigned: list[bytes] = []
        """Hashes of the records behind the last that a checkpoint signed."""
        self._retired: list[tuple[int, chain.Retired]] = []
        """Those that no signature covers yet."""

    def read(self, path: Path) -> Verified:
        """Raises OSError."""
        known, unsigned, sha256 = self._known, self._unsigned, hashlib.sha256
        digest, number, body_at = chain.genesis(known.log), 0, chain.BODY_AT
        with path.open("rb", buffering=BLOCK) as file:
            for text in file:
                number += 1
                # All that a record's beginning may be, compared at once: a plain event is not looked at any closer.
                digest = sha256(digest + text[body_at:-1]).digest()
                begins = b'{"hash":"%b","seq":%d,"' % (hexlify(digest), number)
                if not text.startswith(begins) or text[-2:] != b"}\n":
                    return self._broken(number, _why(text, digest))
                if number == 1 or known.closed or not text.startswith(b'event":', len(begins)):
                    kind, _, content = text[len(begins) : -2].partition(b'":')
                    problem = self._special(number, kind, content)
                    if problem is not None:
                        return self._broken(number, problem)
                unsigned.append(digest)
                if known.closed:
                    unsigned.clear()
        if number == 0:
            return self._broken(1, "it is empty")
        known.records = number
        known.digests[number] = digest.hex()
        return known

    def _broken(self, number: int, problem: str) -> Verified:
        self._known.records = number - 1
        self._known.broken_at, self._known.problem = number, problem
        return self._known

    def _special(self, number: int, kind: bytes, content: bytes) -> str | None:
        """Take in a record that is no plain event; what is wrong with it, or None."""
        if self._known.closed:
            return "the log was closed before it"
        if (number == 1) != (kind == b"opened"):
            return "a log begins with its opening, and has one"
        try:
            match kind:
                case b"opened":
                    return self._opened(msgspec.json.decode(content, type=chain.Opened))
                case b"checkpoint":
                    return self._signed(number, msgspec.json.decode(content, type=chain.SignedCheckpoint))
                case b"retired":
                    self._retired.append((number, msgspec.json.decode(content, type=chain.Retired)))
                case b"resumed":
                    # Not signed by who is said to have written it: anybody could have put it there meanwhile.
                    self._retired.clear()
                case _:
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
        known, signed = self._known, checkpoint.upto - (number - 1 - len(self._unsigned)) - 1
        if not 0 <= signed < len(self._unsigned) or self._unsigned[signed].hex() != checkpoint.digest:
            return "what was signed is another record than the one that is there"
        if checkpoint.final and checkpoint.upto != number - 1:
            return "the log goes on to where it was closed, and further"
        del self._unsigned[: signed + 1]
        known.digests[checkpoint.upto] = checkpoint.digest
        known.signed = number if checkpoint.final else checkpoint.upto
        known.closed, known.closed_at = checkpoint.final, checkpoint.at if checkpoint.final else None
        known.heads += [(log, sequence, digest) for log, (sequence, digest) in checkpoint.heads.items()]
        # Not one between the record that was signed and the checkpoint: anybody could have put it there.
        for at, retired in self._retired:
            if at <= checkpoint.upto:
                known.gone |= retired.logs
        self._retired = [one for one in self._retired if one[0] > checkpoint.upto]
        return None


def _why(text: bytes, digest: bytes) -> str:
    """What is wrong with the form of a record whose hash should be `digest`."""
    parts = chain.split(text[:-1]) if text.endswith(b"\n") else None
    if parts is None or not text.endswith(b"}\n"):
        return "it is no whole record"
    if parts[0] != hexlify(digest):
        return "its hash does not follow from the record before it"
    return "its number is wrong"
