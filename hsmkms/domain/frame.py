"""The sealed frame: what CKM_AES_KEY_WRAP wraps, and how a DEK is bound to its context.

    offset  size  member
    0       1     format, 1
    1       1     flags, 0
    2       2     reserved, 0
    4       4     length of the DEK in bytes, big endian
    8       32    SHA-256 of the context: tag | version id | number of AAD strings | each string with its length in
    front 40      n     the DEK
    40 + n  0-7   zeros up to a multiple of 8

RFC 3394 has no associated data and takes multiples of 8 bytes; the integrity of the key wrap covers this whole frame,
so the digest inside authenticates the AAD and the length. The version id is the one that the ciphertext names, not one
of the key that opens it: a handle that was changed on the way is noticed, and material that was imported again under a
new version id still opens what it sealed. The key id is not in the frame, for the same reason.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

FORMAT: Final = 1
MAX_DEK_BYTES: Final = 7_680
HEADER_BYTES: Final = 40
MAX_FRAME_BYTES: Final = HEADER_BYTES + MAX_DEK_BYTES

_TAG: Final = b"hsmkms frame 1\0"
_HEAD: Final = struct.Struct(">BBHI")
_COUNT: Final = struct.Struct(">I")


class FrameMismatch(Exception):
    """The frame is not ours, or belongs to another context. It does not say which check failed."""


def context_digest(version_id: str, aad: Sequence[str]) -> bytes:
    """SHA-256 over everything a DEK is bound to. No AAD and an empty list are the same context."""
    parts = [_tagged(version_id), _COUNT.pack(len(aad))]
    for text in aad:
        encoded = text.encode()
        parts += (_COUNT.pack(len(encoded)), encoded)
    return hashlib.sha256(b"".join(parts)).digest()


@lru_cache(maxsize=1_024)
def _tagged(version_id: str) -> bytes:
    return _TAG + bytes.fromhex(version_id.replace("-", ""))


def pack(dek: bytes, digest: bytes) -> bytes:
    """Frame `dek` (1 to MAX_DEK_BYTES bytes) under a 32-byte context digest."""
    length = len(dek)
    if not 1 <= length <= MAX_DEK_BYTES:
        raise ValueError("a DEK has 1 to 7680 bytes")
    return _HEAD.pack(FORMAT, 0, 0, length) + digest + dek + bytes(-length % 8)


def unpack(frame: bytes, digest: bytes) -> bytes:
    """The DEK inside `frame`; FrameMismatch if anything at all is not as `pack` makes it."""
    if len(frame) <= HEADER_BYTES:
        raise FrameMismatch
    head = _HEAD.unpack_from(frame)
    end = HEADER_BYTES + head[3]
    bound = hmac.compare_digest(frame[8:HEADER_BYTES], digest)
    formed = head[:3] == (FORMAT, 0, 0) and head[3] > 0 and len(frame) == end + -end % 8 and not any(frame[end:])
    if not (bound and formed):
        raise FrameMismatch
    return frame[HEADER_BYTES:end]
