"""The chain: each record carries SHA-256 over the record before it and its own bytes, so none can be changed, taken
out, put in or moved without every later hash being wrong.

A log is a file of JSON lines, one record each:

    {"hash":"<64 hex>","seq":1,"opened":{...}}       who writes, when, under which public key
    {"hash":"<64 hex>","seq":2,"event":{...}}        an audit event
    {"hash":"<64 hex>","seq":9,"checkpoint":{...}}   a record before it, signed by the token's audit key (ECDSA P-256)
    {"hash":"<64 hex>","seq":11,"resumed":{...}}     another process closes it after a crash
    {"hash":"<64 hex>","seq":12,"retired":{...}}     old logs were deleted on purpose

`hash` is over the previous record's hash, or that of the log's id for the first, and the line's bytes behind the hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

FORMAT: Final = 1
SUFFIX: Final = ".jsonl"
_GENESIS: Final = b"hsmkms audit log\0"
_SIGNED: Final = b"hsmkms audit checkpoint\0"
_FINAL: Final = b'"final":true},"signature"'
_HEAD: Final = b'{"hash":"'
BODY_AT: Final = len(_HEAD) + 64 + 2


class Opened(msgspec.Struct, frozen=True, rename="camel"):
    """The first record of a log."""

    log: str
    node: str
    at: datetime
    public_key: str
    format: int = FORMAT


class Checkpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """Says that record `upto` of this log has the hash `digest` (hex). It stands anywhere behind that record, because
    signing takes its time, but right behind it when it is `final`: nothing may follow then. `heads` are those of other
    logs as the database told them: log id → number and hash of a record."""

    at: datetime
    upto: int
    digest: str
    heads: dict[str, tuple[int, str]]
    final: bool = False


class SignedCheckpoint(msgspec.Struct, frozen=True):
    """`signature` is over the bytes of `checkpoint` as they stand: r and s, 64 bytes in hex."""

    checkpoint: msgspec.Raw
    signature: str


class Resumed(msgspec.Struct, frozen=True, rename="camel"):
    """A process closes a log that another left; `torn_bytes` of a record that was never whole were dropped. The records
    from `unsigned_from` on, if it is not the number of this one, had no signature yet: whether they are what the other
    wrote nobody can say. None in logs of older versions."""

    node: str
    at: datetime
    torn_bytes: int
    unsigned_from: int | None = None


class Retired(msgspec.Struct, frozen=True):
    """The operator deleted whole logs: log id → number and hash of the last record, so that nobody misses them."""

    at: datetime
    logs: dict[str, tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Head:
    """The last record of a log that is durable: its number and hash (hex)."""

    log: str
    sequence: int
    digest: str
    closed: bool


def genesis(log: str) -> bytes:
    """What the first record's hash stands on."""
    return hashlib.sha256(_GENESIS + log.encode()).digest()


def body(sequence: int, kind: str, content: bytes) -> bytes:
    """A record's bytes without its hash; `content` is JSON."""
    return b'"seq":%d,"%s":%s}' % (sequence, kind.encode(), content)


def link(previous: bytes, content: bytes) -> bytes:
    """The hash of a record behind another."""
    return hashlib.sha256(previous + content).digest()


def line(digest: bytes, content: bytes) -> bytes:
    """A record as it stands in the file."""
    return b"".join(_parts_of_line(digest, content))


def extend(sequence: int, digest: bytes, records: Iterable[tuple[str, bytes]]) -> tuple[bytes, int, bytes]:
    """Records of (kind, JSON) behind the one of this number and hash: their lines, and number and hash of the last."""
    parts: list[bytes] = []
    for kind, content in records:
        sequence += 1
        text = body(sequence, kind, content)
        digest = link(digest, text)
        parts += _parts_of_line(digest, text)
    return b"".join(parts), sequence, digest


def _parts_of_line(digest: bytes, content: bytes) -> tuple[bytes, ...]:
    """Not joined yet, so that a batch is copied once."""
    return _HEAD, digest.hex().encode(), b'",', content, b"\n"


def split(text: bytes) -> tuple[bytes, bytes] | None:
    """Hash (hex) and body of a line without its end; None if it has not the form of a record."""
    if not text.startswith(_HEAD) or text[BODY_AT - 2 : BODY_AT] != b'",':
        return None
    return text[len(_HEAD) : BODY_AT - 2], text[BODY_AT:]


def kind_of(content: bytes, sequence: int) -> tuple[str, bytes] | None:
    """Kind and JSON of a body that is record `sequence`; None if it is not."""
    start = b'"seq":%d,"' % sequence
    if not content.startswith(start) or not content.endswith(b"}"):
        return None
    kind, found, rest = content[len(start) : -1].partition(b'":')
    return (kind.decode("latin-1"), rest) if found else None


def signed_message(checkpoint: bytes) -> bytes:
    """What the audit key signs for a checkpoint (JSON)."""
    return _SIGNED + checkpoint


def is_final(kind: str, content: bytes) -> bool:
    """Whether a record closes its log; that it is signed is for `verify` to say."""
    return kind == "checkpoint" and _FINAL in content
