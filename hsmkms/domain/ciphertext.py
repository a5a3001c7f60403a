"""The ciphertext that callers keep: base64 of a JSON object with the members that the contract names (section 2).

`handle` is the id of the key version that made it, `version` the format, `iv` the initial value of RFC 3394 section
2.2.3.1, which is fixed. Only the exact text that `encode` makes is accepted: a ciphertext has one form, so nobody can
change a byte of it and still be understood.
"""

from __future__ import annotations

import binascii
from typing import Final

import msgspec

from hsmkms.domain.ids import is_uuid
from hsmkms.errors import InvalidField, UnprocessableCiphertext

FORMAT_VERSION: Final = "4.0.0"
RFC3394_IV: Final = binascii.b2a_base64(b"\xa6" * 8, newline=False).decode()


class _Envelope(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    ciphertext: bytes
    iv: str
    version: str
    handle: str


_decoder: Final = msgspec.json.Decoder(_Envelope)
_FORM: Final = f'{{"ciphertext":"%s","iv":"{RFC3394_IV}","version":"{FORMAT_VERSION}","handle":"%s"}}'.encode()
"""Neither base64 nor a UUID has anything to escape."""


def encode(version_id: str, sealed: bytes) -> str:
    """The text given to the caller for `sealed`, which key version `version_id` made."""
    text = _FORM % (binascii.b2a_base64(sealed, newline=False), version_id.encode())
    return binascii.b2a_base64(text, newline=False).decode()


def decode(text: str) -> tuple[str, bytes]:
    """Version id and sealed bytes of a ciphertext.

    Raises InvalidField (not base64) or UnprocessableCiphertext (base64, but not a ciphertext of this service).
    """
    try:
        raw = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidField("ciphertext", "The field `ciphertext` must be standard base64.") from error
    try:
        envelope = _decoder.decode(raw)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise UnprocessableCiphertext from error
    if not is_uuid(envelope.handle) or encode(envelope.handle, envelope.ciphertext) != text:
        raise UnprocessableCiphertext
    return envelope.handle, envelope.ciphertext
