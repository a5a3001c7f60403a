"""What a log that was left is worth: read once, before anything is signed that stands behind it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from hsmkms.audit import chain
from hsmkms.audit.proof import NotProved, checkpoint_of
from hsmkms.audit.reader import load_public_key
from hsmkms.errors import AuditKeyInvalid


@dataclass(slots=True)
class Left:
    """A log up to its last whole record, which is number `sequence` with this hash and ends at byte `end`; `torn` bytes
    are behind it. A signature covers those up to `signed`, and its own record up to `covered`."""

    sequence: int
    digest: bytes
    end: int = 0
    torn: int = 0
    signed: int = 0
    covered: int = 0
    unsigned: list[bytes] = field(default_factory=list)
    """Hashes of the records behind number `signed`."""


def read(lines: Iterable[bytes], log: str, node: str, key: ec.EllipticCurvePublicKey, seen: chain.Head | None) -> Left:
    """Check a log of this node that has no final checkpoint, by its lines: the chain, each signature, and that it holds
    the record that others have `seen`. Raises NotProved, in the words of `audit verify`."""
    left = Left(0, chain.genesis(log))
    for line in lines:
        if not line.endswith(b"\n"):
            left.torn = len(line)
            break
        parts = chain.split(line[:-1])
        if parts is None:
            raise _wrong(left, "it is no whole record")
        digest = chain.link(left.digest, parts[1])
        if digest.hex().encode() != parts[0]:
            raise _wrong(left, "its hash does not follow from the record before it")
        found = chain.kind_of(parts[1], left.sequence + 1)
        if found is None:
            raise _wrong(left, "its number is wrong")
        if left.sequence == 0 or found[0] != "event":
            try:
                _take(left, *found, log=log, node=node, key=key)
            except NotProved as error:
                raise _wrong(left, str(error)) from None
            except RecursionError:
                raise _wrong(left, "it cannot be read") from None
        left.sequence, left.digest, left.end = left.sequence + 1, digest, left.end + len(line)
        left.unsigned.append(digest)
        if seen is not None and left.sequence == seen.sequence and digest.hex() != seen.digest:
            raise NotProved(f"record {left.sequence}: the database knows another record here")
    if seen is not None and left.sequence < seen.sequence:
        raise NotProved(f"record {left.sequence + 1}: the database knows records up to {seen.sequence}, which are gone")
    return left


def _wrong(left: Left, problem: str) -> NotProved:
    return NotProved(f"record {left.sequence + 1}: {problem}")


def _take(left: Left, kind: str, content: bytes, *, log: str, node: str, key: ec.EllipticCurvePublicKey) -> None:
    number = left.sequence + 1
    if (number == 1) != (kind == "opened"):
        raise NotProved("a log begins with its opening, and has one")
    if kind == "checkpoint":
        _sign(left, checkpoint_of(key, content))
    elif kind == "opened":
        _open(content, log, node, key)
    elif kind not in ("resumed", "retired"):
        raise NotProved("it is of an unknown kind")


def _open(content: bytes, log: str, node: str, key: ec.EllipticCurvePublicKey) -> None:
    try:
        opened = msgspec.json.decode(content, type=chain.Opened)
        named = load_public_key(opened.public_key.encode())
    except (msgspec.MsgspecError, AuditKeyInvalid):
        raise NotProved("it cannot be read") from None
    if (opened.log, opened.node, opened.format) != (log, node, chain.FORMAT):
        raise NotProved("it is of another log")
    if named.public_numbers() != key.public_numbers():
        raise NotProved("it names another public key")


def _sign(left: Left, checkpoint: chain.Checkpoint) -> None:
    at = checkpoint.upto - left.signed - 1
    if not 0 <= at < len(left.unsigned) or left.unsigned[at].hex() != checkpoint.digest:
        raise NotProved("what was signed is another record than the one that is there")
    if checkpoint.final:
        raise NotProved("the log was closed before its end")
    del left.unsigned[: at + 1]
    left.signed = checkpoint.upto
    # The record of the signature itself, when nothing is between it and what it signs.
    left.covered = left.signed if left.unsigned else left.signed + 1
