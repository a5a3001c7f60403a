"""A device whose objects take long to list is back as soon as it answers."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from hsmkms.domain.ids import new_id
from hsmkms.token.room import Token
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
