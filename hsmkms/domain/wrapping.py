"""The client's half of an import: a key wrapped to an import token's public key, and the nonce under the key (contract
section 1.2, additions 3.4)."""

from __future__ import annotations

import os
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsmkms.domain.importing import TRANSPORT_KEY_BITS, Oaep, WrappedMaterial
from hsmkms.domain.secrets import SecretBytes
from hsmkms.errors import OperatorError

_GCM_IV_BYTES: Final = 12
_CBC_IV_BYTES: Final = 16


def wrap_key(public: rsa.RSAPublicKey, nonce: bytes, key: SecretBytes, oaep: Oaep) -> WrappedMaterial:
    """A key of 16, 24 or 32 bytes for the import token with this public key and nonce."""
    algorithm = hashes.SHA256() if oaep is Oaep.SHA_256 else hashes.SHA1()  # noqa: S303 (RFC 8017 appendix B.1)
    wrapped = public.encrypt(key.reveal(), rsa_padding.OAEP(rsa_padding.MGF1(algorithm), algorithm, None))
    if oaep is Oaep.SHA_256:
        iv = os.urandom(_GCM_IV_BYTES)
        return WrappedMaterial(wrapped, AESGCM(key.reveal()).encrypt(iv, nonce, None), iv, oaep)
    iv = os.urandom(_CBC_IV_BYTES)
    padder = padding.PKCS7(algorithms.AES.block_size).padder()
    encryptor = Cipher(algorithms.AES(key.reveal()), modes.CBC(iv)).encryptor()
    encrypted = encryptor.update(padder.update(nonce) + padder.finalize()) + encryptor.finalize()
    return WrappedMaterial(wrapped, encrypted, iv, oaep)


def read_public_key(pem: bytes) -> rsa.RSAPublicKey:
    """The public key of an import token. Raises OperatorError."""
    try:
        public = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise OperatorError("The import token's `payload` is no public key. Fetch the import token again.") from error
    if not isinstance(public, rsa.RSAPublicKey) or public.key_size != TRANSPORT_KEY_BITS:
        raise OperatorError(f"The import token's `payload` is no RSA-{TRANSPORT_KEY_BITS} key. Ask who gave it to you.")
    return public
