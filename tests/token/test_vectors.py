"""Key wrap vectors through the token: NIST's (SP 800-38F, CAVP, from `cryptography-vectors`) and one of our own."""

from __future__ import annotations

from collections.abc import Iterator

import cryptography_vectors
import pytest

from hsmkms.domain import frame
from hsmkms.token import cryptoki as ck
from hsmkms.token.returned import CryptokiError
from hsmkms.token.sessions import SessionPool
from tests.unit.test_ciphertext import AAD, DEK, KEK, SEALED, VERSION_ID

BITS = (128, 192, 256)


def _vectors(name: str) -> Iterator[dict[str, bytes | None]]:
    """Each vector's K, C and P; a vector that must fail has no P."""
    current: dict[str, bytes | None] = {}
    with cryptography_vectors.open_vector_file(f"keywrap/kwtestvectors/{name}.txt", "r") as file:
        for line in map(str.strip, file):
            if line.startswith("COUNT") and current:
                yield current
                current = {}
            elif line == "FAIL":
                current["P"] = None
            elif line.startswith(("K = ", "C = ", "P = ")):
                key, _, value = line.partition(" = ")
                current[key] = bytes.fromhex(value)
    yield current


def _known_key(session: ck.Session, value: bytes) -> int:
    return session.create_object(
        {
            ck.CKA_CLASS: ck.CKO_SECRET_KEY,
            ck.CKA_KEY_TYPE: ck.CKK_AES,
            ck.CKA_TOKEN: False,
            ck.CKA_WRAP: True,
            ck.CKA_UNWRAP: True,
            ck.CKA_VALUE: value,
        }
    )


@pytest.mark.parametrize("bits", BITS)
def test_authenticated_encryption(pool: SessionPool, bits: int) -> None:
    count = 0
    with pool.session() as session:
        for vector in _vectors(f"KW_AE_{bits}"):
            key, plain, wrapped = vector["K"], vector["P"], vector["C"]
            assert key is not None
            assert plain is not None
            handle = _known_key(session, key)
            assert session.seal(handle, plain) == wrapped
            session.destroy(handle)
            count += 1
    assert count == 500


@pytest.mark.parametrize("bits", BITS)
def test_authenticated_decryption(pool: SessionPool, bits: int) -> None:
    """Also the vectors that must fail."""
    opened = refused = 0
    with pool.session() as session:
        for vector in _vectors(f"KW_AD_{bits}"):
            key, wrapped = vector["K"], vector["C"]
            assert key is not None
            assert wrapped is not None
            handle = _known_key(session, key)
            if vector["P"] is None:
                with pytest.raises(CryptokiError):
                    session.open(handle, wrapped)
                refused += 1
            else:
                assert session.open(handle, wrapped) == vector["P"]
                opened += 1
            session.destroy(handle)
    assert (opened, refused) == (400, 100)


def test_documented_ciphertext(pool: SessionPool) -> None:
    """The constant of the unit tests, made in software by the documentation alone, is what the token makes and opens:
    who has a root key's bytes can leave this service, or come to it, with all ciphertexts."""
    framed = frame.pack(DEK, frame.context_digest(VERSION_ID, AAD))
    with pool.session() as session:
        handle = _known_key(session, KEK)
        assert session.seal(handle, framed) == SEALED
        assert session.open(handle, SEALED) == framed
