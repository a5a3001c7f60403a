"""The session pool: threads, forks, memory, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from hsmkms.domain.ids import new_id
from hsmkms.domain.keys import KeyVersion
from hsmkms.errors import PinRefused, TokenBusy, TokenRefused, TokenUnavailable
from hsmkms.token import selftest
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool
from tests.support.deployment import State
from tests.token.conftest import OpenPool

DEK = bytes(range(32))


def test_threads_share_few_sessions(token: Token, key: KeyVersion) -> None:
    """Eight threads on four sessions: without OS locking SoftHSM crashes within seconds."""

    def work(number: int) -> int:
        right = 0
        for turn in range(250):
            dek = number.to_bytes(4) + turn.to_bytes(4)
            right += token.open(key, key.id, token.seal(key, dek, ()), ()).reveal() == dek
        return right

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(work, range(8))) == 2_000


def test_busy_pool_says_so(open_pool: OpenPool) -> None:
    pool = open_pool(size=2, wait_s=0.05)
    lent = [pool.take(), pool.take()]
    with pytest.raises(TokenBusy):
        pool.take()
    for session in lent:
        pool.give(session)
    pool.give(pool.take())


def test_forked_child_opens_its_own(token: Token, key: KeyVersion) -> None:
    sealed = token.seal(key, DEK, ())
    child = os.fork()
    if child == 0:
        opened = False
        try:
            opened = token.open(key, key.id, sealed, ()).reveal() == DEK
        finally:
            os._exit(0 if opened else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert token.open(key, key.id, sealed, ()).reveal() == DEK


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


def test_wrong_pin_is_tried_once(open_pool: OpenPool) -> None:
    with pytest.raises(PinRefused):
        open_pool(pin="00000000")


def test_pin_changed_while_running(open_pool: OpenPool, state: State) -> None:
    """The second login is refused, and no third one is tried: that could lock the token."""
    pool = open_pool()
    environment = {**os.environ, "OLD": state.pin, "NEW": "another-pin"}
    subprocess.run(
        [
            "pkcs11-tool",
            "--module=/usr/lib/softhsm/libsofthsm2.so",
            "--token-label=hsmkms",
            "--login",
            "--pin=env:OLD",
            "--new-pin=env:NEW",
            "--change-pin",
        ],
        env=environment,
        check=True,
        capture_output=True,
    )
    with pytest.raises(PinRefused):
        pool.reopen(pool.generation)
    generation = pool.generation
    with pytest.raises(TokenUnavailable, match="PIN"):
        pool.take()
    assert pool.generation == generation


def test_no_such_token(open_pool: OpenPool) -> None:
    with pytest.raises(TokenRefused, match="No token with the label 'nobody'"):
        open_pool(label="nobody")


@pytest.mark.parametrize("module", ["/nonexistent.so", "/usr/lib/x86_64-linux-gnu/libz.so.1", "/etc/hostname"])
def test_not_a_pkcs11_library(open_pool: OpenPool, module: str) -> None:
    with pytest.raises(TokenRefused, match="cannot be loaded"):
        open_pool(module=module)


def test_missing_mechanisms_are_named(pool: SessionPool) -> None:
    """opencryptoki's soft token, for one, has no CKM_AES_KEY_WRAP."""
    offered = pool.mechanisms()
    selftest.require_mechanisms(offered, "good")
    with pytest.raises(TokenRefused, match="lacks CKM_AES_KEY_WRAP, CKM_ECDSA"):
        selftest.require_mechanisms(offered - {0x2109, 0x1041}, "poor")
