"""Who dumps the memory of a service that has just imported a key does not find the key.

Where the token unwraps inside (SHA-1 on SoftHSM, whose own memory is in the same process) that is a promise. By way of
the process it is the best that Python can do: what we touch is overwritten, and nothing else was ever found. A key in
clear is another matter (docs/threat-model.md): nothing is promised of it, or tested.
"""

from __future__ import annotations

import base64
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from hsmkms.domain.importing import Oaep
from tests.support.bringing import Fetched, encrypt_nonce
from tests.support.deployment import Service, State, create_body
from tests.support.memory import found_in_memory, parts_of
from tests.token.test_importing import encode

KEYS = 6
CANARY = "7f3a9d51-in-the-environment"


@pytest.fixture(scope="module")
def service(seed_state: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    state = seed_state.copy_to(tmp_path_factory.mktemp("memory") / "state")
    with Service(state, HSMKMS_IMPORT_OAEP_SHA1="true", CANARY=CANARY) as service:
        yield service


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def test_the_search_finds_what_is_there(service: Service, client: httpx.Client) -> None:
    token = client.headers["Authorization"].split()[1].encode()
    needles = {"environment": CANARY.encode(), "bearer": token, "nowhere": os.urandom(16)}
    half = b"POST /api/v2/keys HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer %s\r\nContent-Length: 9\r\n\r\n" % token
    deadline = time.monotonic() + 30
    # A request whose body does not come: the service has its head for as long as that.
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(half)
        while (found := found_in_memory(service.process.pid, needles)) == {"environment"}:
            assert time.monotonic() < deadline
    assert found == {"environment", "bearer"}


@pytest.mark.parametrize("oaep", [pytest.param(Oaep.SHA_1, marks=pytest.mark.slow), Oaep.SHA_256])
def test_no_key_is_left_in_memory(service: Service, client: httpx.Client, oaep: Oaep) -> None:
    """Neither the key nor the padded text around it, from which it can be computed; not even eight bytes of them."""
    assert client.post("/import_token").status_code == 200
    fetched = Fetched.of(client.get("/import_token").json())

    def bring(number: int) -> dict[str, bytes]:
        key = os.urandom(32)
        padded = encode(key, oaep, os.urandom(32))
        encrypted, iv = encrypt_nonce(key, fetched.nonce, oaep)
        members = {"payload": raw_rsa(fetched, padded), "encryptedNonce": encrypted, "iv": iv}
        texts = {name: base64.b64encode(value).decode() for name, value in members.items()}
        made = client.post("/keys", json=create_body("brought", encryptionAlgorithm=oaep.value, **texts))  # type: ignore[arg-type]
        assert made.status_code == 201, made.text
        key_id = made.json()["resources"][0]["id"]
        assert client.post(f"/keys/{key_id}/actions/wrap").status_code == 200
        return parts_of(f"key {number}", key) | parts_of(f"padded {number}", padded, every=128)

    with ThreadPoolExecutor(4) as threads:
        needles = {name: part for parts in threads.map(bring, range(KEYS)) for name, part in parts.items()}
    assert len(needles) == KEYS * (4 + 4)
    assert found_in_memory(service.process.pid, needles) == set()


def raw_rsa(fetched: Fetched, padded: bytes) -> bytes:
    """RSAEP (RFC 8017 section 5.1.1), so that the test knows what the padding is."""
    public = serialization.load_pem_public_key(fetched.public_pem)
    assert isinstance(public, rsa.RSAPublicKey)
    numbers = public.public_numbers()
    return pow(int.from_bytes(padded), numbers.e, numbers.n).to_bytes(public.key_size // 8)
