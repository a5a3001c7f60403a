"""Keys are generated while other threads of the process search the token.

SoftHSM 2.6.1 answers C_GenerateKey with CKR_GENERAL_ERROR or CKR_FUNCTION_FAILED, or gives an object whose attributes
read back wrong, when C_FindObjects runs in another thread at that moment. A caller must not be told because of that
that the HSM is away: the token room has to keep the two apart.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from hsmkms.domain.ids import new_id
from hsmkms.domain.secrets import SecretText
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool, TokenAddress
from tests.support.deployment import State

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
GENERATORS = 4
SEARCHERS = 4
KEYS = 400
"""Enough that about every other run failed when nothing kept the threads apart: one run is no proof, a history is."""


@contextmanager
def searching(token: Token) -> Iterator[None]:
    """Threads that list the keys of the token, each time by a search through all it has."""
    stop = threading.Event()

    def search() -> None:
        while not stop.is_set():
            token.list_keys()

    with ThreadPoolExecutor(SEARCHERS) as threads:
        running = [threads.submit(search) for _ in range(SEARCHERS)]
        try:
            yield
        finally:
            stop.set()
        for done in running:
            done.result()


def test_every_key_is_made(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTHSM2_CONF", str(state.path / "softhsm2.conf"))
    address = TokenAddress(MODULE, "hsmkms", None)
    pool = SessionPool(address, SecretText(state.pin), size=8, wait_s=30, recycle_after=100_000)
    try:
        token = Token(pool)
        with searching(token), ThreadPoolExecutor(GENERATORS) as threads:
            making = [threads.submit(token.generate_key, new_id(), "hsmkms x", datetime.now(UTC)) for _ in range(KEYS)]
            versions = [made.result() for made in making]
        for version in versions:
            token.verify_key(version)
        assert {version.id for version in versions} <= {found.version_id for found in token.list_keys()}
    finally:
        pool.close()
