"""Signed checkpoints: how they are made, and what one of somebody else has to prove."""

from __future__ import annotations

from datetime import datetime

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from hsmkms.audit import chain
from hsmkms.audit.witness import Sign

_encode = msgspec.json.Encoder().encode


class NotProved(Exception):
    """What is wrong, in the words of `audit verify`."""


def signed(sign: Sign, head: chain.Head, now: datetime, heads: dict[str, tuple[int, str]], *, final: bool) -> bytes:
    """A checkpoint of a record (JSON) that tells of other logs' heads. Raises Unavailable."""
    checkpoint = _encode(chain.Checkpoint(now, head.sequence, head.digest, heads, final))
    signature = sign(chain.signed_message(checkpoint))
    return _encode(chain.SignedCheckpoint(msgspec.Raw(checkpoint), signature.hex()))


def checkpoint_of(key: ec.EllipticCurvePublicKey, content: bytes) -> chain.Checkpoint:
    """The checkpoint in a record's JSON, if the audit key signed it. Raises NotProved, RecursionError."""
    try:
        record = msgspec.json.decode(content, type=chain.SignedCheckpoint)
        raw = bytes.fromhex(record.signature)
        checkpoint = msgspec.json.decode(record.checkpoint, type=chain.Checkpoint)
    except (msgspec.MsgspecError, ValueError):
        raise NotProved("a checkpoint cannot be read") from None
    if len(raw) != 64:
        raise NotProved("the signature cannot be read")
    der = utils.encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
    try:
        key.verify(der, chain.signed_message(bytes(record.checkpoint)), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise NotProved("the signature is not by the audit key") from None
    return checkpoint
