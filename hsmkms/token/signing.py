"""P-256 keys that sign access tokens or a ceremony's record: born in the token, used for ECDSA and nothing else."""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hsmkms.token import cryptoki as ck
from hsmkms.token import templates
from hsmkms.token.objects import ObjectMissing

LABEL: Final = "hsmkms signing"


def generate(session: ck.Session, key_id: str, *, fixed: bool) -> bytes:
    """Generate the pair; the public key as PEM of a SubjectPublicKeyInfo (RFC 5480)."""
    public, private = templates.signing_key_pair(key_id, LABEL, fixed=fixed)
    public_handle, _ = session.generate_key_pair(ck.CKM_EC_KEY_PAIR_GEN, public, private)
    return _pem(session, public_handle)


def public_key(session: ck.Session, key_id: str) -> bytes:
    """The public key as PEM. Raises ObjectMissing when there is not exactly one."""
    handles = session.find({ck.CKA_CLASS: ck.CKO_PUBLIC_KEY, ck.CKA_ID: templates.object_id(key_id)})
    if len(handles) != 1:
        raise ObjectMissing
    return _pem(session, handles[0])


def _pem(session: ck.Session, public_handle: int) -> bytes:
    point = session.read(public_handle, (ck.CKA_EC_POINT,))[ck.CKA_EC_POINT]
    # PKCS#11 2.40 wants the point inside a DER OCTET STRING (04 41 04 x y); some tokens give it bare (04 x y).
    encoded = point[2:] if len(point) == 67 else point
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), encoded)
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def private_of(key_id: str) -> ck.Template:
    """What a private key is found by."""
    return {ck.CKA_CLASS: ck.CKO_PRIVATE_KEY, ck.CKA_ID: templates.object_id(key_id)}


def find(session: ck.Session, key_id: str) -> int:
    """Handle of the private key. Raises ObjectMissing when there is not exactly one."""
    handles = session.find(private_of(key_id))
    if len(handles) != 1:
        raise ObjectMissing
    return handles[0]


def destroy(session: ck.Session, key_id: str) -> bool:
    """Destroy every object of the pair that is there; False if the private key was not."""
    private = session.find(private_of(key_id))
    public = session.find({ck.CKA_CLASS: ck.CKO_PUBLIC_KEY, ck.CKA_ID: templates.object_id(key_id)})
    for handle in (*private, *public):
        session.destroy(handle)
    return bool(private)


def sign(session: ck.Session, handle: int, message: bytes) -> bytes:
    """ECDSA over SHA-256 of `message`: r and s, 32 bytes each."""
    return session.sign(ck.CKM_ECDSA, handle, hashlib.sha256(message).digest())
