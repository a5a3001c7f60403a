"""Return values (CK_RV) and what they mean: the one table that tells bad data from a bad device.

PKCS#11 leaves room, so each row says on what evidence it stands: measured on SoftHSM 2.6.1 and NSS softoken 3.87, for
devices in the network what their makers publish, and else the text of PKCS#11 2.40 (section 5.1). Whatever is ambiguous
is decided by a canary (`recovery`), never by this table alone. `docs/hsms.md` has the same rows.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar, Final

CKR_OK: Final = 0x0
CKR_PIN_INCORRECT, CKR_PIN_LOCKED, CKR_PIN_EXPIRED = 0xA0, 0xA4, 0xA3
CKR_PIN_INVALID, CKR_PIN_LEN_RANGE = 0xA1, 0xA2
CKR_USER_ALREADY_LOGGED_IN: Final = 0x100
CKR_NOT_INITIALIZED, CKR_ALREADY_INITIALIZED = 0x190, 0x191


class Meaning(enum.Enum):
    """What to do about a return value."""

    DATA = "bad data: the input is to blame, the device is well"
    OBJECT = "lost object: the handle is stale; it was destroyed, or the token or the login went away. A search tells"
    SESSION = "lost session: the device closed it, or logged it out. Everything is opened anew"
    DEVICE = "lost device: gone, ill or restarted. Everything is opened anew"
    DOUBTFUL = "bad data or a bad device; only a canary can tell"
    CALL = "this service asked for what the token does not do; opening anew does no harm and may help"


@dataclass(frozen=True, slots=True)
class Returned:
    """A row of the table."""

    name: str
    meaning: Meaning
    evidence: str


TABLE: Final = {
    0x02: Returned(
        "CKR_HOST_MEMORY", Meaning.DEVICE, "2.40: the host has no memory left; a fresh start gives some back"
    ),
    0x05: Returned(
        "CKR_GENERAL_ERROR",
        Meaning.DOUBTFUL,
        "SoftHSM: wrong key, changed ciphertext, and nearly every internal trouble; NSS: a database that fails",
    ),
    0x06: Returned(
        "CKR_FUNCTION_FAILED", Meaning.DOUBTFUL, "2.40: failed, perhaps for the input, and may be tried again"
    ),
    0x07: Returned("CKR_ARGUMENTS_BAD", Meaning.CALL, "SoftHSM: OAEP with SHA-256, which it does not do"),
    0x10: Returned(
        "CKR_ATTRIBUTE_READ_ONLY", Meaning.CALL, "SoftHSM: an attribute after CKA_MODIFIABLE in an unwrap template"
    ),
    0x11: Returned("CKR_ATTRIBUTE_SENSITIVE", Meaning.CALL, "both: the value of a key that is kept"),
    0x12: Returned("CKR_ATTRIBUTE_TYPE_INVALID", Meaning.CALL, "both: an attribute that the token does not know"),
    0x13: Returned("CKR_ATTRIBUTE_VALUE_INVALID", Meaning.CALL, "2.40: a template that the token does not take"),
    0x1B: Returned("CKR_ACTION_PROHIBITED", Meaning.CALL, "SoftHSM: to copy or change a key that forbids it"),
    0x20: Returned("CKR_DATA_INVALID", Meaning.DATA, "2.40: plaintext of a form that the mechanism does not take"),
    0x21: Returned("CKR_DATA_LEN_RANGE", Meaning.DATA, "NSS: a ciphertext of odd length or under 24 bytes"),
    0x30: Returned(
        "CKR_DEVICE_ERROR", Meaning.DEVICE, "2.40: trouble with token or slot; network clients: connection lost"
    ),
    0x31: Returned("CKR_DEVICE_MEMORY", Meaning.DEVICE, "2.40: the token has no memory left for the call"),
    0x32: Returned("CKR_DEVICE_REMOVED", Meaning.DEVICE, "2.40: the token was taken out during the call"),
    0x40: Returned("CKR_ENCRYPTED_DATA_INVALID", Meaning.DATA, "2.40: a ciphertext that fails the mechanism's check"),
    0x41: Returned("CKR_ENCRYPTED_DATA_LEN_RANGE", Meaning.DATA, "2.40: a ciphertext of a length that cannot be"),
    0x50: Returned(
        "CKR_FUNCTION_CANCELED", Meaning.DEVICE, "2.40: the call was broken off by the device or its client"
    ),
    0x54: Returned("CKR_FUNCTION_NOT_SUPPORTED", Meaning.CALL, "tpm2-pkcs11: C_GenerateKey of an AES key"),
    0x60: Returned("CKR_KEY_HANDLE_INVALID", Meaning.OBJECT, "NSS: any key destroyed by another process"),
    0x62: Returned(
        "CKR_KEY_SIZE_RANGE", Meaning.CALL, "NSS: an AES key of 20 bytes; SoftHSM takes it and fails at its use"
    ),
    0x63: Returned("CKR_KEY_TYPE_INCONSISTENT", Meaning.CALL, "NSS: the template of a transport key pair"),
    0x68: Returned("CKR_KEY_FUNCTION_NOT_PERMITTED", Meaning.CALL, "both: a use that the key's attributes forbid"),
    0x69: Returned("CKR_KEY_NOT_WRAPPABLE", Meaning.CALL, "2.40: the mechanism does not wrap this kind of key"),
    0x6A: Returned(
        "CKR_KEY_UNEXTRACTABLE", Meaning.CALL, "SoftHSM: to wrap a key that is kept, as the self-test tries"
    ),
    0x70: Returned("CKR_MECHANISM_INVALID", Meaning.CALL, "p11-kit's remoting: CKM_AES_KEY_WRAP"),
    0x71: Returned("CKR_MECHANISM_PARAM_INVALID", Meaning.CALL, "2.40: a parameter that the mechanism does not take"),
    0x82: Returned("CKR_OBJECT_HANDLE_INVALID", Meaning.OBJECT, "SoftHSM: an object destroyed by another process"),
    0x90: Returned("CKR_OPERATION_ACTIVE", Meaning.SESSION, "2.40: a session that a call before left half done"),
    0x91: Returned(
        "CKR_OPERATION_NOT_INITIALIZED", Meaning.SESSION, "2.40: the device lost what was begun in a session"
    ),
    0xA0: Returned("CKR_PIN_INCORRECT", Meaning.SESSION, "both: C_Login; never tried again (`pin_guard`)"),
    0xA1: Returned(
        "CKR_PIN_INVALID", Meaning.SESSION, "2.40: C_Login, a PIN with forbidden characters; never tried again"
    ),
    0xA2: Returned("CKR_PIN_LEN_RANGE", Meaning.SESSION, "2.40: C_Login, a PIN of such a length; never tried again"),
    0xA3: Returned("CKR_PIN_EXPIRED", Meaning.SESSION, "2.40: C_Login; never tried again"),
    0xA4: Returned("CKR_PIN_LOCKED", Meaning.SESSION, "2.40: C_Login after too many wrong PINs; never tried again"),
    0xB0: Returned("CKR_SESSION_CLOSED", Meaning.SESSION, "2.40: closed during the call"),
    0xB1: Returned("CKR_SESSION_COUNT", Meaning.DEVICE, "2.40: no more sessions; a fresh start closes ours"),
    0xB3: Returned("CKR_SESSION_HANDLE_INVALID", Meaning.SESSION, "both: a session that was closed"),
    0xD0: Returned("CKR_TEMPLATE_INCOMPLETE", Meaning.CALL, "2.40: a template that the token does not take"),
    0xD1: Returned("CKR_TEMPLATE_INCONSISTENT", Meaning.CALL, "NSS: to unwrap more than 256 bytes into a key object"),
    0xE0: Returned(
        "CKR_TOKEN_NOT_PRESENT",
        Meaning.DEVICE,
        "2.40; Luna: a member of no group that was cut off; nShield: card removed",
    ),
    0xE1: Returned("CKR_TOKEN_NOT_RECOGNIZED", Meaning.DEVICE, "2.40: another device is in the slot"),
    0xF0: Returned(
        "CKR_UNWRAPPING_KEY_HANDLE_INVALID",
        Meaning.OBJECT,
        "SoftHSM: key destroyed by another process, or the token's directory is away",
    ),
    0x100: Returned("CKR_USER_ALREADY_LOGGED_IN", Meaning.SESSION, "both: as good as logged in"),
    0x101: Returned("CKR_USER_NOT_LOGGED_IN", Meaning.SESSION, "both: after the session that logged in was closed"),
    0x102: Returned(
        "CKR_USER_PIN_NOT_INITIALIZED",
        Meaning.DEVICE,
        "SoftHSM: C_Login while others open the token; no PIN is used up",
    ),
    0x110: Returned("CKR_WRAPPED_KEY_INVALID", Meaning.DATA, "NSS: wrong key or changed ciphertext"),
    0x112: Returned("CKR_WRAPPED_KEY_LEN_RANGE", Meaning.DATA, "SoftHSM: a ciphertext of odd length or under 24 bytes"),
    0x113: Returned(
        "CKR_WRAPPING_KEY_HANDLE_INVALID",
        Meaning.OBJECT,
        "SoftHSM: key destroyed by another process, or the token's directory is away",
    ),
    0x150: Returned("CKR_BUFFER_TOO_SMALL", Meaning.CALL, "SoftHSM: C_Decrypt of more than this service has room for"),
    0x190: Returned(
        "CKR_CRYPTOKI_NOT_INITIALIZED", Meaning.DEVICE, "both: after C_Finalize; a client that started anew"
    ),
}
"""Values that are not here, those of the vendors (0x80000000 and above) among them, count as a lost device: that leads
to a fresh start and 503, never to a wrong 422."""


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
        known = TABLE.get(self.returned)
        return hex(self.returned) if known is None else known.name

    @property
    def may_be_input(self) -> bool:
        """Whether bad input alone can explain it."""
        return self.meaning in (Meaning.DATA, Meaning.DOUBTFUL)

    @property
    def is_answer(self) -> bool:
        """Whether it may be what a token that is well says to what it does not do, perhaps in its maker's own words."""
        return self.returned not in TABLE or self.meaning in (Meaning.CALL, Meaning.DATA, Meaning.DOUBTFUL)

    @property
    def meaning(self) -> Meaning:
        """What the table says; a lost device for what it does not know."""
        known = TABLE.get(self.returned)
        return Meaning.DEVICE if known is None else known.meaning
