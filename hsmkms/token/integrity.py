"""The key that seals rights in the database: HMAC-SHA-256 (RFC 2104), born in the token, one a deployment."""

from __future__ import annotations

import uuid
from typing import Final

from hsmkms.token import cryptoki as ck
from hsmkms.token import templates
from hsmkms.token.objects import ObjectAmbiguous, ObjectMissing

KEY_ID: Final = str(uuid.uuid5(uuid.UUID("5b0b6f5e-6d39-4f0e-9a5c-2f1d7a4c8e11"), "hsmkms integrity"))
LABEL: Final = "hsmkms integrity"


def generate(session: ck.Session, *, fixed: bool) -> None:
    """Generate the key and read its attributes back. Raises TokenRefused."""
    handle = session.generate_key(ck.CKM_GENERIC_SECRET_KEY_GEN, templates.mac_key(KEY_ID, LABEL, fixed=fixed))
    templates.require_safe(session.read(handle, (*templates.REQUIRED_OF_MAC,)), templates.REQUIRED_OF_MAC)


def find(session: ck.Session) -> int:
    """Handle of the key, its attributes checked. Raises ObjectMissing, ObjectAmbiguous, TokenRefused."""
    handles = session.find({ck.CKA_CLASS: ck.CKO_SECRET_KEY, ck.CKA_ID: templates.object_id(KEY_ID)})
    if not handles:
        raise ObjectMissing
    if len(handles) > 1:
        raise ObjectAmbiguous
    templates.require_safe(session.read(handles[0], (*templates.REQUIRED_OF_MAC,)), templates.REQUIRED_OF_MAC)
    return handles[0]


def mac(session: ck.Session, handle: int, message: bytes) -> bytes:
    """32 bytes."""
    return session.sign(ck.CKM_SHA256_HMAC, handle, message)
