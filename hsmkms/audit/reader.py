"""Read one log and prove what it proves by itself: needs the file and the public key."""

from __future__ import annotations

import hashlib
from binascii import hexlify
from dataclasses import dataclass, field
from datetime import datetime
from typing import BinaryIO

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hsmkms.audit import chain
from hsmkms.audit.proof import NotProved, checkpoint_of
from hsmkms.errors import AuditKeyInvalid


@dataclass(frozen=True, slots=True)
class Unproved:
    """Records that their process had not signed when it ended, so that whoever could write to the file may have written
    them: they are behind the signature of `after`, if there was one, and before the restart of `until`."""

    first: int
    last: int
    after: datetime | None
    until: datetime


@dataclass(slots=True)
class Verified:
    """What a log proves. `broken_at` is the number of the first record that is wrong, for the reason in `problem`;
    records behind `signed` stand on no signature yet, nor do those behind `covered`, which counts the record of the
    last signature too. `torn` bytes are behind the last whole record. `closed` says that nothing may follow, `held`
    that a process writes it, `elsewhere` that nobody looked for it here."""

    log: str
    records: int = 0
    signed: int = 0
    covered: int = 0
    torn: int = 0
    closed: bool = False
    closed_at: datetime | None = None
    held: bool = False
    retired: bool = False
    elsewhere: bool = False
    broken_at: int | None = None
    problem: str | None = None
    heads: list[tuple[str, int, str]] = field(default_factory=list)
    """What its checkpoints say of other logs: log, number and hash of a record."""
    gone: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Logs that it says were retired, with their last records, as far as the process that wrote it signed that."""
    unproved: list[Unproved] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)
    """Hashes of the records that a checkpoint signed, of the last one, and of the one that was asked for: what others
    tell of is nearly always one of these."""

    @property
    def sound(self) -> bool:
        """Nothing is wrong, and nothing behind the last signature could have been cut off unseen."""
        return self.problem is None and (self.closed or self.held or self.retired)


def node_of(log: str) -> str:
    """The node in a log's name."""
    return log.partition("-")[2].rpartition("-")[0]


def load_public_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    """A P-256 public key. Raises AuditKeyInvalid."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AuditKeyInvalid("The public key is no PEM of a public key.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise AuditKeyInvalid("The public key is of another kind: it must be on P-256.")
    return key


class Reader:
    """Reads one log to its end or to the first record that is wrong. The last record of one that is `held` may be torn;
    the hash of record number `wanted` is kept."""

    def __init__(self, log: str, key: ec.EllipticCurvePublicKey, *, held: bool, wanted: int = 0) -> None:
        self._key = key
        self._wanted = wanted
        self._known = Verified(log, held=held)
        self._unsigned: list[bytes] = []
        """Hashes of the records behind the last that a checkpoint signed."""
        self._retired: list[tuple[int, chain.Retired]] = []
        """Those that no signature covers yet."""
        self._checkpoint: tuple[int, datetime] | None = None
        """Number and time of the last one."""

    def read(self, file: BinaryIO) -> Verified:
        """Raises OSError."""
        known, unsigned, wanted, sha256 = self._known, self._unsigned, self._wanted, hashlib.sha256
        digest, number, body_at = chain.genesis(known.log), 0, chain.BODY_AT
        for text in file:
            number += 1
            # All that a record's beginning may be, compared at once: a plain event is not looked at any closer.
            before, digest = digest, sha256(digest + text[body_at:-1]).digest()
            begins = b'{"hash":"%b","seq":%d,"' % (hexlify(digest), number)
            if not text.startswith(begins) or text[-2:] != b"}\n":
                if known.held and not text.endswith(b"\n"):
                    # The process that writes the log is in the middle of it, or ended there.
                    number, digest, known.torn = number - 1, before, len(text)
                    break
                return self._broken(number, _why(text, digest))
            if number == 1 or known.closed or not text.startswith(b'event":', len(begins)):
                kind, _, content = text[len(begins) : -2].partition(b'":')
                problem = self._special(number, kind, content)
                if problem is not None:
                    return self._broken(number, problem)
            unsigned.append(digest)
            if known.closed:
                unsigned.clear()
            if number == wanted:
                known.digests[number] = digest.hex()
        if number == 0:
            return self._broken(1, "it is empty")
        known.records, known.covered = number, self._first_unsigned(number + 1) - 1
        known.digests[number] = digest.hex()
        return known

    def _first_unsigned(self, following: int) -> int:
        """Number of the first record that no signature covers; that of the one which follows if there is none."""
        first = following - len(self._unsigned)
        # A checkpoint right behind what it signs proves itself.
        return first + 1 if self._checkpoint is not None and self._checkpoint[0] == first else first

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
                    return self._signed(number, checkpoint_of(self._key, content))
                case b"retired":
                    self._retired.append((number, msgspec.json.decode(content, type=chain.Retired)))
                case b"resumed":
                    return self._resumed(number, msgspec.json.decode(content, type=chain.Resumed))
                case _:
                    return "it is of an unknown kind"
        except NotProved as error:
            return str(error)
        except (msgspec.MsgspecError, RecursionError):
            return "it cannot be read"
        return None

    def _opened(self, opened: chain.Opened) -> str | None:
        log = self._known.log
        if (opened.log, opened.node, opened.format) != (log, node_of(log), chain.FORMAT):
            return "it is of another log"
        try:
            same = load_public_key(opened.public_key.encode()).public_numbers() == self._key.public_numbers()
        except AuditKeyInvalid:
            return "its public key is none"
        return None if same else "it names another public key"

    def _resumed(self, number: int, resumed: chain.Resumed) -> str | None:
        """What stands before this record and was not signed, anybody could have put there before a process came."""
        self._retired.clear()
        first = self._first_unsigned(number)
        after = None if self._checkpoint is None else self._checkpoint[1]
        if resumed.unsigned_from not in (None, first):
            return "it says something else of what was signed before it"
        if first == number:
            return None
        unproved = self._known.unproved
        if unproved and unproved[-1].first == first:
            # No signature since the restart before.
            unproved.pop()
        unproved.append(Unproved(first, number - 1, after, resumed.at))
        return None

    def _signed(self, number: int, checkpoint: chain.Checkpoint) -> str | None:
        known, signed = self._known, checkpoint.upto - (number - 1 - len(self._unsigned)) - 1
        if not 0 <= signed < len(self._unsigned) or self._unsigned[signed].hex() != checkpoint.digest:
            return "what was signed is another record than the one that is there"
        if checkpoint.final and checkpoint.upto != number - 1:
            return "the log goes on to where it was closed, and further"
        del self._unsigned[: signed + 1]
        known.digests[checkpoint.upto] = checkpoint.digest
        self._checkpoint = number, checkpoint.at
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
