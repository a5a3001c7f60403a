"""Return values (CK_RV) and what they mean: the one table that tells bad data from a bad device.

Evidence is noted per vendor, because PKCS#11 leaves room: a wrong key or a changed ciphertext is CKR_GENERAL_ERROR on
SoftHSM 2.6.1, which a sick device also gives, and CKR_WRAPPED_KEY_INVALID on NSS 3.87. Whatever is ambiguous is
decided by a canary (`recovery`), never by this table alone.
"""

from __future__ import annotations

import enum
from typing import ClassVar, Final

CKR_OK: Final = 0x0
CKR_PIN_INCORRECT, CKR_PIN_LOCKED, CKR_PIN_EXPIRED = 0xA0, 0xA4, 0xA3
CKR_USER_ALREADY_LOGGED_IN: Final = 0x100
CKR_NOT_INITIALIZED, CKR_ALREADY_INITIALIZED = 0x190, 0x191

_NAMES: Final = {
    0x02: "CKR_HOST_MEMORY",
    0x05: "CKR_GENERAL_ERROR",
    0x06: "CKR_FUNCTION_FAILED",
    0x07: "CKR_ARGUMENTS_BAD",
    0x10: "CKR_ATTRIBUTE_READ_ONLY",
    0x11: "CKR_ATTRIBUTE_SENSITIVE",
    0x12: "CKR_ATTRIBUTE_TYPE_INVALID",
    0x13: "CKR_ATTRIBUTE_VALUE_INVALID",
    0x1B: "CKR_ACTION_PROHIBITED",
    0x30: "CKR_DEVICE_ERROR",
    0x31: "CKR_DEVICE_MEMORY",
    0x32: "CKR_DEVICE_REMOVED",
    0x40: "CKR_ENCRYPTED_DATA_INVALID",
    0x41: "CKR_ENCRYPTED_DATA_LEN_RANGE",
    0x54: "CKR_FUNCTION_NOT_SUPPORTED",
    0x60: "CKR_KEY_HANDLE_INVALID",
    0x62: "CKR_KEY_SIZE_RANGE",
    0x68: "CKR_KEY_FUNCTION_NOT_PERMITTED",
    0x69: "CKR_KEY_NOT_WRAPPABLE",
    0x6A: "CKR_KEY_UNEXTRACTABLE",
    0x70: "CKR_MECHANISM_INVALID",
    0x82: "CKR_OBJECT_HANDLE_INVALID",
    0x90: "CKR_OPERATION_ACTIVE",
    0xA0: "CKR_PIN_INCORRECT",
    0xA3: "CKR_PIN_EXPIRED",
    0xA4: "CKR_PIN_LOCKED",
    0xB0: "CKR_SESSION_CLOSED",
    0xB1: "CKR_SESSION_COUNT",
    0xB3: "CKR_SESSION_HANDLE_INVALID",
    0xD0: "CKR_TEMPLATE_INCOMPLETE",
    0xD1: "CKR_TEMPLATE_INCONSISTENT",
    0xE0: "CKR_TOKEN_NOT_PRESENT",
    0xE1: "CKR_TOKEN_NOT_RECOGNIZED",
    0xF0: "CKR_UNWRAPPING_KEY_HANDLE_INVALID",
    0x100: "CKR_USER_ALREADY_LOGGED_IN",
    0x101: "CKR_USER_NOT_LOGGED_IN",
    0x110: "CKR_WRAPPED_KEY_INVALID",
    0x112: "CKR_WRAPPED_KEY_LEN_RANGE",
    0x113: "CKR_WRAPPING_KEY_HANDLE_INVALID",
    0x190: "CKR_CRYPTOKI_NOT_INITIALIZED",
}


class Meaning(enum.Enum):
    """What to do about a return value."""

    DATA = "the input is bad; the device is well"
    OBJECT = "the handle is stale: the object was destroyed, or the token or the login went away"
    DOUBTFUL = "bad input or a bad device; only a canary can tell"
    DEVICE = "session, login or device is lost: open everything anew"


_MEANINGS: Final = {
    # SoftHSM: odd length or under 24 bytes. NSS: any wrong key or changed ciphertext.
    0x110: Meaning.DATA,
    0x112: Meaning.DATA,
    0x40: Meaning.DATA,
    0x41: Meaning.DATA,
    # SoftHSM answers these for a key destroyed by another process, and for a token directory that went away.
    0x60: Meaning.OBJECT,
    0x82: Meaning.OBJECT,
    0xF0: Meaning.OBJECT,
    0x113: Meaning.OBJECT,
    # SoftHSM: wrong key or changed ciphertext, and nearly every internal trouble.
    0x05: Meaning.DOUBTFUL,
    0x06: Meaning.DOUBTFUL,
}


class CryptokiError(Exception):
    """A Cryptoki function did not return CKR_OK. Stays inside the token room."""

    ATTRIBUTE_NOT_GIVEN: ClassVar = frozenset({0x11, 0x12})

    def __init__(self, function: str, returned: int) -> None:
        self.function = function
        self.returned = returned
        super().__init__(f"{function}: {self.name}")

    @property
    def name(self) -> str:
        """The return value as the standard spells it, or in hexadecimal."""
        return _NAMES.get(self.returned, hex(self.returned))

    @property
    def may_be_input(self) -> bool:
        """Whether bad input alone can explain it."""
        return self.meaning in (Meaning.DATA, Meaning.DOUBTFUL)

    @property
    def meaning(self) -> Meaning:
        """Unknown values count as a lost device: that leads to a fresh start and 503, never to a wrong 422."""
        return _MEANINGS.get(self.returned, Meaning.DEVICE)
