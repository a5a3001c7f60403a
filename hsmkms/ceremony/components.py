"""Key components: each custodian knows one, the key is all of them combined by exclusive or.

Everything here is bytearrays, which can be wiped. The process that holds them is locked in memory (see `memory`).
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from hsmkms.ceremony.refusals import (
    EntriesDiffer,
    EqualComponents,
    NotHexadecimal,
    WeakComponent,
    WeakKey,
    WrongCheckValue,
    WrongLength,
)
from hsmkms.domain.check_values import CheckKind, CheckValues, as_text

COMPONENTS: Final = (2, 9)
_BLOCK: Final = bytes(16)
_HEX: Final = re.compile(r"(?:[0-9A-Fa-f]{2})+", re.ASCII)

CheckValuesOf = Callable[[bytearray], CheckValues]


def check_values(key: bytearray) -> CheckValues:
    """The check values of an AES key, computed here: for a token that has neither mechanism."""
    mac = CMAC(algorithms.AES(key))
    mac.update(_BLOCK)
    # One block of zeros is what the older check value is defined on; nothing is kept secret by it.
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(_BLOCK)  # noqa: S305
    return CheckValues(as_text(mac.finalize()), as_text(block))


def wrap_check_value(key: bytearray) -> bytes:
    """The check value that a service keeps of a root key: 8 bytes of the key wrap (RFC 3394) of 16 zero bytes."""
    return aes_key_wrap(bytes(key), bytes(16))[:8]


def parse(text: str, length: int) -> bytearray:
    """`length` bytes as a custodian types them: hexadecimal digits in either case, spaces wherever they help.

    Raises NotHexadecimal, WrongLength, WeakComponent.
    """
    digits = "".join(text.split())
    if _HEX.fullmatch(digits) is None:
        raise NotHexadecimal
    value = bytearray.fromhex(digits)
    if len(value) != length:
        found = len(value)
        wipe(value)
        raise WrongLength(found, length)
    if not any(value):
        raise WeakComponent
    return value


def require_same(first: str, second: str) -> None:
    """Raise EntriesDiffer unless two entries are the same but for spaces and case."""
    one, other = (" ".join(entry.split()).lower().encode() for entry in (first, second))
    if not hmac.compare_digest(one, other):
        raise EntriesDiffer


def require_new(value: bytearray, others: Iterable[bytearray]) -> None:
    """Raise EqualComponents when another custodian brought the same."""
    if any(hmac.compare_digest(value, other) for other in others):
        raise EqualComponents


def require_check_value(found: CheckValues, kind: CheckKind, wanted: str) -> None:
    """Raise WrongCheckValue unless the value of that kind is the one that was expected."""
    value = found.of(kind)
    if value != wanted:
        raise WrongCheckValue(value or "not known", wanted)


def combine(parts: Iterable[bytearray]) -> bytearray:
    """The key: all components of one length combined by exclusive or. Raises WeakKey when they cancel out."""
    chosen = list(parts)
    key = bytearray(len(chosen[0]))
    for part in chosen:
        for place, byte in enumerate(part):
            key[place] ^= byte
    if not any(key):
        raise WeakKey
    return key


def wipe(secret: bytearray) -> None:
    """Overwrite with zeros."""
    secret[:] = bytes(len(secret))
