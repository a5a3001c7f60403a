"""Attribute templates, one reason per attribute, and what must be read back."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Final

from hsmkms.errors import TokenRefused
from hsmkms.token import cryptoki as ck

NEVER: Final = (
    ck.CKA_ENCRYPT,
    ck.CKA_DECRYPT,
    ck.CKA_SIGN,
    ck.CKA_VERIFY,
    ck.CKA_DERIVE,
)
"""Usages a wrapping key must not have: with wrap and decrypt together a key's owner could read what it wraps."""

FIXED: Final[dict[int, ck.Value]] = {ck.CKA_COPYABLE: False, ck.CKA_MODIFIABLE: False}
"""Attributes that forbid later changes and copies; left out where a token does not know them (see `selftest`). Last in
every template, and in this order: SoftHSM 2.6.1 sets the attributes of an unwrapped key one by one, and none after
MODIFIABLE (CKR_ATTRIBUTE_READ_ONLY)."""

P256: Final = bytes.fromhex("06082a8648ce3d030107")
"""DER of the object identifier prime256v1 (RFC 5480 section 2.1.1.1)."""


def object_id(version_id: str) -> bytes:
    """CKA_ID: the 16 bytes of the version's UUID."""
    return uuid.UUID(version_id).bytes


LABEL_PREFIX: Final = "hsmkms "


def label_of(owner: str) -> str:
    """CKA_LABEL of an object: what it is of, and whose."""
    return f"{LABEL_PREFIX}{owner}"


def wrapping_key(version_id: str, label: str, *, token: bool = True, fixed: bool = True) -> dict[int, ck.Value]:
    """An AES-256 key that is born in the token, wraps and unwraps, and never leaves (design, "Root keys")."""
    return {ck.CKA_VALUE_LEN: 32, **brought_key(version_id, label, token=token, fixed=fixed)}


def brought_key(version_id: str, label: str, *, token: bool = True, fixed: bool = True) -> dict[int, ck.Value]:
    """The same for a key that comes from outside, whose length is its own."""
    return {
        ck.CKA_CLASS: ck.CKO_SECRET_KEY,
        ck.CKA_KEY_TYPE: ck.CKK_AES,
        ck.CKA_ID: object_id(version_id),
        ck.CKA_LABEL: label,
        ck.CKA_TOKEN: token,
        ck.CKA_PRIVATE: True,
        ck.CKA_SENSITIVE: True,
        ck.CKA_EXTRACTABLE: False,
        ck.CKA_WRAP: True,
        ck.CKA_UNWRAP: True,
        **dict.fromkeys(NEVER, False),
        **(FIXED if fixed else {}),
    }


def signing_key_pair(key_id: str, label: str, *, fixed: bool) -> tuple[dict[int, ck.Value], dict[int, ck.Value]]:
    """Public and private template of a P-256 key that signs and does nothing else."""
    public: dict[int, ck.Value] = {
        ck.CKA_EC_PARAMS: P256,
        ck.CKA_ID: object_id(key_id),
        ck.CKA_LABEL: label,
        ck.CKA_TOKEN: True,
        ck.CKA_VERIFY: True,
    }
    private: dict[int, ck.Value] = {
        ck.CKA_ID: object_id(key_id),
        ck.CKA_LABEL: label,
        ck.CKA_TOKEN: True,
        ck.CKA_PRIVATE: True,
        ck.CKA_SENSITIVE: True,
        ck.CKA_EXTRACTABLE: False,
        ck.CKA_SIGN: True,
        ck.CKA_DECRYPT: False,
        ck.CKA_UNWRAP: False,
        ck.CKA_DERIVE: False,
        **(FIXED if fixed else {}),
    }
    return public, private


def transport_key_pair(
    key_id: str, label: str, bits: int, exponent: int, *, inside: bool, raw: bool
) -> tuple[dict[int, ck.Value], dict[int, ck.Value]]:
    """Session templates of an RSA pair to which keys are encrypted; the private half is copied onto the token. It may
    unwrap (`inside`) and, only for a token that cannot do all of it inside, decrypt (`raw`)."""
    named: dict[int, ck.Value] = {ck.CKA_ID: object_id(key_id), ck.CKA_LABEL: label, ck.CKA_TOKEN: False}
    public: dict[int, ck.Value] = {
        **named,
        ck.CKA_MODULUS_BITS: bits,
        ck.CKA_PUBLIC_EXPONENT: exponent.to_bytes(3),
        ck.CKA_ENCRYPT: False,
        ck.CKA_WRAP: True,
        ck.CKA_VERIFY: False,
    }
    private: dict[int, ck.Value] = {
        **named,
        ck.CKA_PRIVATE: True,
        ck.CKA_SENSITIVE: True,
        ck.CKA_EXTRACTABLE: False,
        ck.CKA_UNWRAP: inside,
        ck.CKA_DECRYPT: raw,
        ck.CKA_SIGN: False,
        ck.CKA_DERIVE: False,
    }
    return public, private


def nonce_key() -> dict[int, ck.Value]:
    """A session object of a key that is being brought: it may decrypt, to prove a nonce, and nothing else."""
    return {
        ck.CKA_CLASS: ck.CKO_SECRET_KEY,
        ck.CKA_KEY_TYPE: ck.CKK_AES,
        ck.CKA_TOKEN: False,
        ck.CKA_PRIVATE: True,
        ck.CKA_SENSITIVE: True,
        ck.CKA_EXTRACTABLE: False,
        ck.CKA_DECRYPT: True,
        ck.CKA_ENCRYPT: False,
        ck.CKA_WRAP: False,
        ck.CKA_UNWRAP: False,
    }


def check_key() -> dict[int, ck.Value]:
    """A session object of a key of which only check values are wanted."""
    return {
        ck.CKA_CLASS: ck.CKO_SECRET_KEY,
        ck.CKA_KEY_TYPE: ck.CKK_AES,
        ck.CKA_TOKEN: False,
        ck.CKA_PRIVATE: True,
        ck.CKA_SENSITIVE: True,
        ck.CKA_EXTRACTABLE: False,
        ck.CKA_SIGN: True,
        ck.CKA_ENCRYPT: True,
        **dict.fromkeys((ck.CKA_DECRYPT, ck.CKA_WRAP, ck.CKA_UNWRAP, ck.CKA_DERIVE), False),
    }


def mac_key(key_id: str, label: str, *, fixed: bool) -> dict[int, ck.Value]:
    """A 256-bit HMAC key that is born in the token, signs and verifies, and never leaves."""
    return {
        ck.CKA_CLASS: ck.CKO_SECRET_KEY,
        ck.CKA_KEY_TYPE: ck.CKK_GENERIC_SECRET,
        ck.CKA_VALUE_LEN: 32,
        ck.CKA_ID: object_id(key_id),
        ck.CKA_LABEL: label,
        ck.CKA_TOKEN: True,
        ck.CKA_PRIVATE: True,
        ck.CKA_SENSITIVE: True,
        ck.CKA_EXTRACTABLE: False,
        ck.CKA_SIGN: True,
        ck.CKA_VERIFY: True,
        **dict.fromkeys((ck.CKA_ENCRYPT, ck.CKA_DECRYPT, ck.CKA_WRAP, ck.CKA_UNWRAP, ck.CKA_DERIVE), False),
        **(FIXED if fixed else {}),
    }


REQUIRED: Final[dict[int, bool]] = {
    ck.CKA_TOKEN: True,
    ck.CKA_PRIVATE: True,
    ck.CKA_SENSITIVE: True,
    ck.CKA_EXTRACTABLE: False,
    ck.CKA_WRAP: True,
    ck.CKA_UNWRAP: True,
    **dict.fromkeys(NEVER, False),
}
"""What a root key must answer when it is asked, imported or generated."""

READ_BACK: Final = (*REQUIRED, ck.CKA_ALWAYS_SENSITIVE, ck.CKA_NEVER_EXTRACTABLE, ck.CKA_LOCAL, *FIXED)

NAMES: Final = {getattr(ck, name): name for name in dir(ck) if name.startswith("CKA_")}


REQUIRED_OF_MAC: Final[dict[int, bool]] = {
    ck.CKA_TOKEN: True,
    ck.CKA_PRIVATE: True,
    ck.CKA_SENSITIVE: True,
    ck.CKA_EXTRACTABLE: False,
    ck.CKA_SIGN: True,
}
"""What the key that seals rights must answer; who could read it could grant himself anything."""


def require_safe(attributes: Mapping[int, bytes], required: Mapping[int, bool] = REQUIRED) -> None:
    """Raise TokenRefused when attributes read back differ from what a root key (or another kind) must have."""
    found = ck.as_bools(attributes, required)
    wrong = [NAMES[kind] for kind, wanted in required.items() if found[kind] is not wanted]
    if wrong:
        raise TokenRefused(f"The token made or holds a key with the wrong {', '.join(wrong)}; it must not be used.")
