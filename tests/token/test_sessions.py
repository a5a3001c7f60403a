"""The session pool: threads, forks, memory, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from hsmkms.domain.ids import new_id
from hsmkms.domain.keys import KeyVersion
from hsmkms.errors import TokenBusy
from hsmkms.token import cryptoki as ck
from hsmkms.token.room import Token
from tests.support.deployment import State
from tests.token.conftest import OpenPool

DEK = bytes(range(32))


def test_threads_share_few_sessions(token: Token, key: KeyVersion) -> None:
    """Eight threads on four sessions: without OS locking SoftHSM crashes within seconds."""

    def work(number: int) -> int:
        right = 0
        for turn in range(500):
            dek = number.to_bytes(4) + turn.to_bytes(4)
            right += token.open(key, key.id, token.seal(key, dek, ()), ()).reveal() == dek
        return right

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(work, range(8))) == 4_000


def test_busy_pool_says_so(open_pool: OpenPool) -> None:
    pool = open_pool(size=2, wait_s=0.05)
    lent = [pool.take(), pool.take()]
    with pytest.raises(TokenBusy):
        pool.take()
    for session in lent:
        pool.give(session)
    pool.give(pool.take())


def test_busy_pool_is_not_opened_anew(open_pool: OpenPool) -> None:
    """A fresh start under somebody's running call would crash it: it waits, gives up, and spoils nothing."""
    pool = open_pool(size=2, wait_s=0.05)
    lent = pool.take()
    generation = pool.generation
    with pytest.raises(TokenBusy):
        pool.reopen(generation)
    assert pool.generation == generation
    assert len(lent.random(8)) == 8
    pool.give(lent)
    pool.reopen(generation)
    assert pool.generation == generation + 1
    # Who saw the older generation fail finds the work done.
    pool.reopen(generation)
    assert pool.generation == generation + 1


def test_waiting_caller_gets_the_next_session(open_pool: OpenPool) -> None:
    pool = open_pool(size=1)
    lent = pool.take()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.take)
        pool.give(lent)
        pool.give(waiting.result(timeout=5))


def test_forked_child_opens_its_own(token: Token, key: KeyVersion) -> None:
    """What the child seals the parent opens, and the parent's sessions are none the worse for it."""
    sealed = token.seal(key, DEK, ())
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if token.open(key, key.id, sealed, ()).reveal() == DEK:
                os.write(writing, token.seal(key, DEK, ("by the child",)))
                status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        by_child = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert token.open(key, key.id, by_child, ("by the child",)).reveal() == DEK
    assert token.seal(key, DEK, ()) == sealed


def test_recycling_works_under_threads(open_pool: OpenPool) -> None:
    """The module is started anew in the middle of other threads' calls, and nobody notices."""
    pool = open_pool(recycle_after=1_000)
    token = Token(pool)
    key = token.generate_key(new_id(), "hsmkms test", datetime.now(UTC))
    before = pool.generation

    def work(_: int) -> None:
        for _ in range(500):
            assert token.open(key, key.id, token.seal(key, DEK, ()), ()).reveal() == DEK

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert pool.generation >= before + 3


def test_recycling_is_by_destroyed_objects(open_pool: OpenPool) -> None:
    """5,000 seals destroy 5,000 session objects: five fresh starts, neither more nor fewer."""
    pool = open_pool(recycle_after=1_000)
    token = Token(pool)
    key = token.generate_key(new_id(), "hsmkms test", datetime.now(UTC))
    before = pool.generation
    for _ in range(5_000):
        token.seal(key, DEK, ())
    assert pool.generation - before == 5


def test_recycling_waits_for_nobody(open_pool: OpenPool) -> None:
    """While somebody has a session for long, such as for an RSA pair, the others go on; it is done when he is back."""
    pool = open_pool(size=2, wait_s=60, recycle_after=1_000)
    lent, generation, began = pool.take(), pool.generation, time.monotonic()
    for _ in range(3):
        with pool.session() as session:
            session.destroyed_objects = 1_000
    assert time.monotonic() - began < 30
    assert pool.generation == generation
    pool.give(lent)
    with pool.session() as session:
        session.destroyed_objects = 2_000
    assert pool.generation == generation + 1


def test_a_library_is_loaded_once(open_pool: OpenPool) -> None:
    """Whoever waits for a token tries to open it every second, and what cffi loads it never gives back."""
    assert open_pool()._functions is open_pool()._functions


MEMORY = """
import sys
from datetime import UTC, datetime
from hsmkms.domain.ids import new_id
from hsmkms.domain.secrets import SecretText
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool, TokenAddress

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

pin = SecretText(sys.stdin.read())
address = TokenAddress("/usr/lib/softhsm/libsofthsm2.so", "hsmkms", None)
pool = SessionPool(address, pin, size=2, wait_s=5, recycle_after=int(sys.argv[1]))
token = Token(pool)
key = token.generate_key(new_id(), "hsmkms test", datetime.now(UTC))
for _ in range(3_000):
    token.seal(key, bytes(32), ())
before = resident()
for _ in range(40_000):
    token.seal(key, bytes(32), ())
print(resident() - before)
"""


def test_recycling_keeps_memory_flat(state: State) -> None:
    """SoftHSM 2.6.1 keeps 240 bytes of each destroyed object; the run without recycling shows that this can fail."""

    def growth(recycle_after: int) -> int:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(recycle_after)],
            input=state.pin,
            capture_output=True,
            text=True,
            check=True,
            env=state.environment(SOFTHSM2_CONF=str(state.path / "softhsm2.conf")),
        )
        return int(done.stdout)

    assert growth(2_000) < 2_000_000 < growth(10_000_000)


def test_how_long_a_call_lasts(open_pool: OpenPool) -> None:
    """What the watch of hung calls asks: nobody, somebody, somebody with patience, and after another call."""
    pool = open_pool(size=2)
    assert pool.longest_call_s() < 0
    with pool.session() as session:
        session.call_began -= 10
        assert 10 <= pool.longest_call_s() < 60
        session.patience_s = 120
        assert pool.longest_call_s() < 0
        session.patience_s = 0
        assert pool.longest_call_s() >= 10
        session.random(8)
        assert pool.longest_call_s() >= 10
        session.find({ck.CKA_CLASS: ck.CKO_SECRET_KEY})
        assert pool.longest_call_s() < 5
    assert pool.longest_call_s() < 0
    with pool.session():
        assert 0 <= pool.longest_call_s() < 5
