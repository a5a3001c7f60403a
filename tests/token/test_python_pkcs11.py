"""Our direct calls and python-pkcs11 on one token: the same bytes, and the same return value for every bad input."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from hsmkms.domain import frame
from hsmkms.domain.ids import new_id
from hsmkms.domain.keys import KeyVersion
from hsmkms.token import cryptoki as ck
from hsmkms.token.returned import CryptokiError
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool
from tests.support.deployment import ROOT, State
from tests.support.injector import MODULE
from tests.token.conftest import LABEL

DEK = bytes(range(32))
AAD = ("volume-1", "région")

Foreign = Callable[[str, KeyVersion, bytes], tuple[bytes | None, str | None]]


@pytest.fixture
def foreign(state: State, token: Token, key: KeyVersion) -> Iterator[Foreign]:
    """python-pkcs11, once the keys are there."""
    environment = {**os.environ, "SOFTHSM2_CONF": str(state.path / "softhsm2.conf"), "TOKEN_PIN": state.pin}
    command = [sys.executable, "-m", "tests.support.foreign_pkcs11", MODULE, LABEL]
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process, process.stdin as asked, process.stdout as answered:

        def call(what: str, version: KeyVersion, data: bytes) -> tuple[bytes | None, str | None]:
            print(json.dumps([what, uuid.UUID(version.id).hex, data.hex()]), file=asked, flush=True)
            found, error = json.loads(answered.readline())
            return None if found is None else bytes.fromhex(found), error

        yield call


def ours(pool: SessionPool, handle: int, sealed: bytes) -> tuple[bytes | None, str | None]:
    """What our binding gives for a blob."""
    with pool.session() as session:
        try:
            return session.open(handle, sealed), None
        except CryptokiError as error:
            return None, error.name


def handle_of(pool: SessionPool, version: KeyVersion) -> int:
    with pool.session() as session:
        (handle,) = session.find({ck.CKA_CLASS: ck.CKO_SECRET_KEY, ck.CKA_ID: uuid.UUID(version.id).bytes})
    return handle


def test_the_same_bytes_both_ways(token: Token, key: KeyVersion, foreign: Foreign) -> None:
    """What one sealed the other opens, and both seal a frame into the same bytes."""
    for length in [*range(1, 33), 255, 256, 4_095, 4_096, 7_680]:
        dek = os.urandom(length)
        framed = frame.pack(dek, frame.context_digest(key.id, AAD))
        sealed = token.seal(key, dek, AAD)
        assert foreign("seal", key, framed) == (sealed, None)
        assert foreign("open", key, sealed) == (framed, None)
        assert token.open(key, key.id, sealed, AAD).reveal() == dek


def bad_inputs(sealed: bytes, of_another_key: bytes) -> dict[str, bytes]:
    """Every way in which a ciphertext's bytes can be bad."""
    bad = {f"byte {place} changed": _changed(sealed, place) for place in range(len(sealed))}
    bad |= {f"cut to {length}": sealed[:length] for length in range(len(sealed))}
    bad |= {f"without its first {count}": sealed[count:] for count in (1, 7, 8, 16)}
    bad |= {f"{count} bytes longer": sealed + os.urandom(count) for count in (1, 8, 16)}
    bad |= {"random": os.urandom(len(sealed)), "zeros": bytes(len(sealed)), "twice": sealed * 2}
    bad |= {"of another key": of_another_key, "halves swapped": sealed[40:] + sealed[:40]}
    return bad


def _changed(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :]


def test_the_same_return_value_for_every_bad_input(
    token: Token, pool: SessionPool, key: KeyVersion, foreign: Foreign
) -> None:
    """And afterwards both work as before."""
    other = token.generate_key(new_id(), "someone", datetime(2026, 1, 1, tzinfo=UTC))
    handle = handle_of(pool, key)
    sealed = token.seal(key, DEK, AAD)
    seen = set()
    for name, blob in bad_inputs(sealed, token.seal(other, DEK, AAD)).items():
        mine = ours(pool, handle, blob)
        assert mine == foreign("open", key, blob), name
        assert mine[0] is None, name
        seen.add(mine[1])
    assert len(seen) > 1
    assert ours(pool, handle, sealed) == foreign("open", key, sealed)


def test_the_same_return_value_for_frames_that_cannot_be_sealed(
    pool: SessionPool, key: KeyVersion, foreign: Foreign
) -> None:
    """Lengths that CKM_AES_KEY_WRAP does not take, which `frame` never makes; what SoftHSM pads it pads for both."""
    handle = handle_of(pool, key)
    for length in itertools.chain(range(1, 26), (71, 72)):
        data = os.urandom(length)
        with pool.session() as session:
            try:
                mine: tuple[bytes | None, str | None] = (session.seal(handle, data), None)
            except CryptokiError as error:
                mine = (None, error.name)
        assert mine == foreign("seal", key, data), length
