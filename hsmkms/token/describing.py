"""What a ceremony records of a token and of a key on it: mechanisms, attributes, check values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hsmkms.domain.check_values import CheckValues, as_text
from hsmkms.token import cryptoki as ck
from hsmkms.token import templates

_BLOCK: Final = bytes(16)
_CHECK_MECHANISMS: Final = frozenset({ck.CKM_AES_CMAC, ck.CKM_AES_ECB})
_NAMES: Final = {getattr(ck, name): name for name in dir(ck) if name.startswith("CKM_")}


@dataclass(frozen=True, slots=True)
class KeyDescription:
    """Attributes of a key by name, as they were read back, None where the token does not tell; label; check values
    that the token itself keeps."""

    label: str
    attributes: dict[str, bool | None]
    check_values: CheckValues


def mechanism_names(kinds: frozenset[int]) -> list[str]:
    """The mechanisms that this service knows by name, the others as numbers."""
    return [_NAMES.get(kind, f"0x{kind:08X}") for kind in sorted(kinds)]


def has_check_mechanisms(kinds: frozenset[int]) -> bool:
    """Whether the token computes both check values."""
    return kinds >= _CHECK_MECHANISMS


def check_values(session: ck.Session, key: bytearray) -> CheckValues:
    """Check values of an AES key, computed by the token on a session object."""
    return check_values_of(session, session.create_from(templates.check_key(), key))


def check_values_of(session: ck.Session, handle: int) -> CheckValues:
    """Check values of a session object that may sign and encrypt, which is destroyed."""
    try:
        mac = session.sign(ck.CKM_AES_CMAC, handle, _BLOCK)
        return CheckValues(as_text(mac), as_text(session.encrypt(ck.CKM_AES_ECB, handle, _BLOCK)))
    finally:
        session.destroy(handle)


def describe(session: ck.Session, handle: int) -> KeyDescription:
    """Read an object back. A key that may only wrap has no check value but CKA_CHECK_VALUE, which is the ECB one
    (PKCS#11 2.40 section 2.7) and which tokens keep for keys that were born in them."""
    read = session.read(handle, (ck.CKA_LABEL, ck.CKA_CHECK_VALUE, *templates.READ_BACK))
    kept = read.get(ck.CKA_CHECK_VALUE, b"")
    return KeyDescription(
        read.get(ck.CKA_LABEL, b"").decode("utf-8", "replace"),
        {templates.NAMES[kind]: value for kind, value in ck.as_bools(read, templates.READ_BACK).items()},
        CheckValues(None, as_text(kept) if kept else None),
    )
