"""A token that goes away and comes back: nobody is told that a key is lost, and nothing has to be restarted.

SoftHSM answers as if every object had been deleted while its directory is away, and goes on answering so after it is
back, until the module is opened anew.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hsmkms.domain.ids import new_id
from hsmkms.domain.keys import KeyVersion
from hsmkms.errors import TokenBusy, TokenUnavailable, UnprocessableCiphertext
from hsmkms.token import cryptoki as ck
from hsmkms.token.pin_guard import PinGuard
from hsmkms.token.returned import CryptokiError
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool
from tests.support.deployment import State
from tests.support.injector import Injector
from tests.token.conftest import Cable, OpenPool, object_id, pkcs11_tool

pytestmark = pytest.mark.alone

DEK = bytes(range(32))
WITHIN_S = 10

empty_or_none = pytest.mark.parametrize("empty", [True, False], ids=["empty directory", "no directory"])


def eventually(act: Callable[[], object]) -> None:
    """Return as soon as `act` no longer says that the token is away."""
    deadline = time.monotonic() + WITHIN_S
    while True:
        try:
            act()
        except TokenUnavailable:
            assert time.monotonic() < deadline, f"the token did not come back within {WITHIN_S} s"
            time.sleep(0.05)
        else:
            return


@empty_or_none
@pytest.mark.parametrize("use", ["seal", "open", "check", "sign", "generate_key"])
def test_away_and_back(token: Token, key: KeyVersion, cable: Cable, use: str, empty: bool) -> None:
    """Each call says TokenUnavailable while the token is away, also the second time, and works when it is back."""
    sealed = token.seal(key, DEK, ())
    signing_id = new_id()
    token.generate_signing_key(signing_id)
    uses: dict[str, Callable[[], object]] = {
        "seal": lambda: token.seal(key, DEK, ()),
        "open": lambda: token.open(key, key.id, sealed, ()),
        "check": token.check,
        "sign": lambda: token.sign(signing_id, b"message"),
        "generate_key": lambda: token.generate_key(new_id(), "hsmkms test", datetime.now(UTC)),
    }
    cable.pull(leave_empty_directory=empty)
    for _ in range(2):
        with pytest.raises(TokenUnavailable):
            uses[use]()
    cable.plug()
    eventually(uses[use])
    assert token.open(key, key.id, sealed, ()).reveal() == DEK


@empty_or_none
def test_corrupt_input_while_away_is_not_judged(token: Token, key: KeyVersion, cable: Cable, empty: bool) -> None:
    """Nobody can say 422 without having asked the token."""
    sealed = bytearray(token.seal(key, DEK, ()))
    sealed[-1] ^= 1
    cable.pull(leave_empty_directory=empty)
    with pytest.raises(TokenUnavailable):
        token.open(key, key.id, bytes(sealed), ())
    cable.plug()
    with pytest.raises(UnprocessableCiphertext):
        eventually(lambda: token.open(key, key.id, bytes(sealed), ()))


def test_missing_is_not_believed_without_a_fresh_start(
    token: Token, pool: SessionPool, key: KeyVersion, cable: Cable
) -> None:
    """Somebody's search made the module notice the outage, so it finds nothing now that the token is back."""
    sealed = token.seal(key, DEK, ())
    cable.pull()
    with pool.session() as session:
        assert session.find({ck.CKA_CLASS: ck.CKO_SECRET_KEY}) == []
    cable.plug()
    with pool.session() as session:
        assert session.find({ck.CKA_CLASS: ck.CKO_SECRET_KEY}) == []
    eventually(lambda: token.open(key, key.id, sealed, ()))


@empty_or_none
def test_destroy_while_away_does_not_say_done(token: Token, key: KeyVersion, cable: Cable, empty: bool) -> None:
    """ "There was none" makes the service forget a pending object that is still on the token."""
    sealed = token.seal(key, DEK, ())
    cable.pull(leave_empty_directory=empty)
    with pytest.raises(TokenUnavailable):
        token.destroy_key(key.id)
    cable.plug()
    eventually(lambda: token.open(key, key.id, sealed, ()))
    assert token.destroy_key(key.id)


@dataclass(frozen=True)
class Kind:
    """A kind of key: how one is made, destroyed and looked for. `destroy` is None where it does not tell."""

    make: Callable[[Token, str], object]
    destroy: Callable[[Token, str], bool | None]
    listed_as: str


KINDS = {
    "root": Kind(
        lambda token, key_id: token.generate_key(key_id, "hsmkms test", datetime.now(UTC)), Token.destroy_key, "secrkey"
    ),
    "signing": Kind(Token.generate_signing_key, Token.destroy_signing_key, "privkey"),
    "transport": Kind(
        lambda token, key_id: token.generate_transport_key(key_id, "hsmkms test", by_process=True),
        Token.destroy_transport_key,
        "privkey",
    ),
}

of_each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def is_on_token(state: State, kind: Kind, key_id: str) -> bool:
    """As an outside program sees it."""
    return object_id(key_id) in pkcs11_tool(state, "--list-objects", "--type", kind.listed_as)


def is_destroyed_only_now(state: State, token: Token, kind: Kind, key_id: str) -> None:
    assert is_on_token(state, kind, key_id)
    eventually(lambda: kind.destroy(token, key_id))
    assert not is_on_token(state, kind, key_id)


@of_each_kind
def test_destroyed_is_said_only_with_the_sentinel_beside(state: State, token: Token, cable: Cable, kind: Kind) -> None:
    """The rows that name a key go when the token says that there was none."""
    key_id = new_id()
    kind.make(token, key_id)
    cable.pull()
    with pytest.raises(TokenUnavailable):
        kind.destroy(token, key_id)
    cable.plug()
    is_destroyed_only_now(state, token, kind, key_id)
    assert not kind.destroy(token, key_id)


@of_each_kind
def test_a_token_that_is_back_for_the_opening_alone(
    state: State, token: Token, cable: Cable, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away in the first search, back until the sentinel was compared, away in the second."""
    key_id = new_id()
    kind.make(token, key_id)
    reopen, compare = token._pool.reopen, token._compare_sentinel

    def back(generation: int) -> None:
        cable.plug()
        reopen(generation)

    def away(session: ck.Session, generation: int) -> None:
        compare(session, generation)
        cable.pull()

    cable.pull()
    with monkeypatch.context() as patch:
        patch.setattr(token._pool, "reopen", back)
        patch.setattr(token, "_compare_sentinel", away)
        with pytest.raises(TokenUnavailable):
            kind.destroy(token, key_id)
    cable.plug()
    is_destroyed_only_now(state, token, kind, key_id)


@of_each_kind
def test_a_module_that_read_some_objects_is_not_believed(
    state: State, token: Token, pool: SessionPool, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that went away while it was opened has the sentinel and not the key, until the next opening."""
    before = set(state.path.glob("tokens/*/*.object"))
    key_id = new_id()
    kind.make(token, key_id)
    made = set(state.path.glob("tokens/*/*.object")) - before
    reopen = pool.reopen

    def whole(generation: int) -> None:
        for file in made:
            if not file.exists():
                file.with_suffix(".away").rename(file)
        reopen(generation)

    for file in made:
        file.rename(file.with_suffix(".away"))
    reopen(pool.generation)
    monkeypatch.setattr(pool, "reopen", whole)
    kind.destroy(token, key_id)
    assert not is_on_token(state, kind, key_id)


def test_readiness_comes_back_by_itself(token: Token, pool: SessionPool, cable: Cable) -> None:
    """A load balancer sends nothing but readiness probes to a node that is red: they alone have to bring it back."""
    pool.reopen(pool.generation)
    cable.pull()
    with pytest.raises(TokenUnavailable):
        token.check()
    cable.plug()
    eventually(token.check)


def test_readiness_survives_lost_sessions(token: Token, pool: SessionPool) -> None:
    token.check()
    lose_all_sessions(pool)
    eventually(token.check)


@pytest.mark.parametrize("lost", [1, 4])
def test_lost_sessions_are_not_noticed(token: Token, pool: SessionPool, key: KeyVersion, lost: int) -> None:
    """A device that closed sessions, with the last of them the login, costs no caller an error."""
    sealed = token.seal(key, DEK, ())
    corrupt = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for _ in range(4):
        lose_all_sessions(pool, lost)
        assert token.open(key, key.id, token.seal(key, DEK, ()), ()).reveal() == DEK
        lose_all_sessions(pool, lost)
        with pytest.raises(UnprocessableCiphertext):
            token.open(key, key.id, corrupt, ())
        lose_all_sessions(pool, lost)
        assert token.open(key, key.id, sealed, ()).reveal() == DEK
        lose_all_sessions(pool, lost)
        assert len(token.random(8)) == 8


def test_a_mark_that_cannot_be_read_ends_no_wait_for_the_token(
    injector_on_token: Injector, open_pool: OpenPool, tmp_path: Path
) -> None:
    """The state directory fails while the token is away: when both are back, the breaker's thread is still there."""
    guard = PinGuard(tmp_path / "guard", "a token")
    pool = open_pool(module=str(injector_on_token.library), guard=guard)
    token = Token(pool)
    assert token.has_sentinel()
    injector_on_token.fail("*", code=0x30)
    with pytest.raises(TokenUnavailable):
        token.check()
    (lock,) = (tmp_path / "guard").glob("*.lock")
    mark = lock.with_suffix("")
    mark.symlink_to(mark.name)
    opened_twice_more = pool.generation + 2
    deadline = time.monotonic() + WITHIN_S
    while pool.generation < opened_twice_more:
        assert time.monotonic() < deadline, "nobody tries the token any more"
        time.sleep(0.05)
    mark.unlink()
    injector_on_token.cure()
    eventually(token.breaker.require_closed)


def test_a_proof_that_broke_off_starts_anew(injector_on_token: Injector, open_pool: OpenPool) -> None:
    """The connection dropped after the log-in: what is proved the next time are not the sessions that it took along."""
    pool = open_pool(module=str(injector_on_token.library), opened=False)
    token = Token(pool)
    injector_on_token.fail("C_GetMechanismList", code=0x30)
    with pytest.raises(TokenUnavailable):
        token.prove()
    pool._functions.C_CloseAllSessions(pool.info.slot)
    injector_on_token.cure()
    token.prove()
    assert token.is_proved
    assert len(token.random(8)) == 8


def test_flapping_under_load(token: Token, key: KeyVersion, cable: Cable) -> None:
    """Four threads and three outages: every answer is right, or says that the token is away."""
    sealed = token.seal(key, DEK, ())
    corrupt = sealed[:-1] + bytes([sealed[-1] ^ 1])
    done = threading.Event()
    away, right = threading.Semaphore(0), threading.Semaphore(0)

    def work(_: int) -> None:
        while not done.is_set():
            try:
                assert token.open(key, key.id, token.seal(key, DEK, ()), ()).reveal() == DEK
                with pytest.raises(UnprocessableCiphertext):
                    token.open(key, key.id, corrupt, ())
                right.release()
            except (TokenUnavailable, TokenBusy):
                away.release()
                done.wait(0.001)

    with ThreadPoolExecutor(4) as threads:
        results = [threads.submit(work, number) for number in range(4)]
        try:
            for outage in range(3):
                wait_for_new(right)
                cable.pull(leave_empty_directory=outage % 2 == 0)
                wait_for_new(away)
                cable.plug()
            wait_for_new(right)
        finally:
            done.set()
        for result in results:
            result.result()


def wait_for_new(event: threading.Semaphore) -> None:
    """Wait until it happens again."""
    while event.acquire(blocking=False):
        pass
    assert event.acquire(timeout=WITHIN_S)


def lose_all_sessions(pool: SessionPool, count: int = 4) -> None:
    """Close sessions under the pool, as a device does that was restarted."""
    sessions = [pool.take() for _ in range(count)]
    for session in sessions:
        # NSS gives random bytes also in a session that was closed, so that nobody may have noticed the last time.
        with contextlib.suppress(CryptokiError):
            session.close()
    for session in sessions:
        pool.give(session)
