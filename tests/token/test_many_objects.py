"""A device whose objects take long to list is back as soon as it answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from hsmkms.domain.ids import new_id
from hsmkms.domain.keys import KeyVersion
from hsmkms.errors import KeyMaterialMissing
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool
from tests.support.injector import Injector
from tests.token.conftest import OpenPool

pytestmark = pytest.mark.alone

KEYS = 30
WAIT_MS = 20


def test_a_list_that_took_long_is_not_read_first(open_pool: OpenPool, injector_on_token: Injector) -> None:
    """Not before searches took as long; then every key is found by it."""
    pool = open_pool(module=str(injector_on_token.library))
    token = Token(pool)
    keys = [token.generate_key(new_id(), "hsmkms test", datetime.now(UTC)) for _ in range(KEYS)]

    def canary_after_a_fresh_start_s() -> float:
        pool.reopen(pool.generation)
        began = time.monotonic()
        token.check()
        return time.monotonic() - began

    injector_on_token.fail("C_GetAttributeValue", wait_ms=WAIT_MS)
    listing_s = canary_after_a_fresh_start_s()
    assert listing_s > KEYS * WAIT_MS / 1_000
    assert canary_after_a_fresh_start_s() < listing_s / 3
    search_ms = int(listing_s * 250)
    injector_on_token.fail("C_FindObjectsInit", wait_ms=search_ms)
    began = time.monotonic()
    for key in keys:
        token.seal(key, bytes(32), ())
    assert time.monotonic() - began < KEYS * search_ms / 1_000 / 2


@contextmanager
def longest_calls(pool: SessionPool) -> Iterator[list[float]]:
    """What the watch of hung calls would have seen during the block."""
    seen: list[float] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.005):
            seen.append(pool.longest_call_s())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def test_many_calls_do_not_hang(open_pool: OpenPool, injector_on_token: Injector) -> None:
    """Each is slow, and so is their sum: a list of all keys, the first look-up of all, and a key that is lost."""
    pool = open_pool(module=str(injector_on_token.library))
    token = Token(pool)
    if not token.has_sentinel():
        token.make_sentinel()
    key = token.generate_key(new_id(), "hsmkms test", datetime.now(UTC))
    for _ in range(KEYS):
        token.generate_key(new_id(), "hsmkms test", datetime.now(UTC))
    lost = KeyVersion(new_id(), key.created_at, key.check_value, key.owner)
    listing_s = KEYS * 2 * WAIT_MS / 1_000
    pool.reopen(pool.generation)
    injector_on_token.fail("C_GetAttributeValue", wait_ms=2 * WAIT_MS)
    with longest_calls(pool) as seen:
        began = time.monotonic()
        token.list_keys()
        assert time.monotonic() - began > listing_s
        with pytest.raises(KeyMaterialMissing):
            token.seal(lost, bytes(32), ())
    assert max(seen) < listing_s / 2
