"""What a client does to bring a key: wrap it to an import token's public key, and its nonce under the key."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsmkms.domain.importing import Oaep, WrappedMaterial


@dataclass(frozen=True)
class Fetched:
    """An import token as its reader has it."""

    public_pem: bytes
    nonce: bytes

    @staticmethod
    def of(answer: dict[str, Any]) -> Fetched:
        """From the answer of GET /import_token."""
        return Fetched(base64.b64decode(answer["payload"]), base64.b64decode(answer["nonce"]))

    def wrap(self, key: bytes, oaep: Oaep = Oaep.SHA_256) -> bytes:
        """RSA-OAEP of a key."""
        public = serialization.load_pem_public_key(self.public_pem)
        assert isinstance(public, rsa.RSAPublicKey)
        algorithm = hashes.SHA256() if oaep is Oaep.SHA_256 else hashes.SHA1()  # the option under test
        return public.encrypt(key, rsa_padding.OAEP(rsa_padding.MGF1(algorithm), algorithm, None))

    def bring(self, key: bytes, oaep: Oaep = Oaep.SHA_256, nonce: bytes | None = None) -> WrappedMaterial:
        """A key with its proof."""
        encrypted, iv = encrypt_nonce(key, self.nonce if nonce is None else nonce, oaep)
        return WrappedMaterial(self.wrap(key, oaep), encrypted, iv, oaep)

    def fields(self, key: bytes, oaep: Oaep = Oaep.SHA_256) -> dict[str, str]:
        """The same as members of a body."""
        brought = self.bring(key, oaep)
        return {
            "payload": base64.b64encode(brought.wrapped).decode(),
            "encryptedNonce": base64.b64encode(brought.encrypted_nonce).decode(),
            "iv": base64.b64encode(brought.iv).decode(),
            "encryptionAlgorithm": oaep.value,
        }


def encrypt_nonce(key: bytes, nonce: bytes, oaep: Oaep) -> tuple[bytes, bytes]:
    """The nonce under the key, and the IV; a key of another length than AES has proves nothing with zeros."""
    usable = key if len(key) in (16, 24, 32) else bytes(32)
    if oaep is Oaep.SHA_256:
        iv = os.urandom(12)
        return AESGCM(usable).encrypt(iv, nonce, None), iv
    iv = os.urandom(16)
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(usable), modes.CBC(iv)).encryptor()
    return encryptor.update(padder.update(nonce) + padder.finalize()) + encryptor.finalize(), iv
