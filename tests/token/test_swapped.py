"""A token in whose place another one is put is not used, however much it looks like the first."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hsmkms.domain.ids import new_id
from hsmkms.domain.keys import KeyVersion
from hsmkms.errors import KeyMaterialMissing, TokenRefused, TokenUnavailable
from hsmkms.token.room import Token
from hsmkms.token.sessions import SessionPool
from tests.support.deployment import State
from tests.support.tokens import copy_token, directory_of, give_other_sentinel
from tests.token.conftest import OpenPool
from tests.token.test_token_away import eventually, lose_all_sessions

DEK = bytes(range(32))
OTHER_SERIAL = b"0123456789abcdef"


def exchange(state: State, change: Callable[[], None]) -> Callable[[], None]:
    """Do something to the token's files and return how to undo it."""
    here, away = state.path / "tokens", state.path / "first"
    here.rename(away)
    here.mkdir()
    change()

    def undo() -> None:
        here.rename(state.path / "second")
        away.rename(here)

    return undo


def copy_under(state: State, serial: bytes | None) -> None:
    first = next((state.path / "first").glob("*/token.object")).parent
    name = first.name if serial is None else f"01234567-0000-0000-{serial[:4].decode()}-{serial[4:].decode()}"
    copy_token(first, state.path / "tokens" / name, serial=serial)


def test_other_serial_while_running(state: State, pool: SessionPool, token: Token, key: KeyVersion) -> None:
    """A copy holds all the keys, and is not the token that the operator chose."""
    sealed = token.seal(key, DEK, ())
    undo = exchange(state, lambda: copy_under(state, OTHER_SERIAL))
    for _ in range(2):
        with pytest.raises(TokenUnavailable):
            pool.reopen(pool.generation)
    with pytest.raises(TokenUnavailable):
        token.open(key, key.id, sealed, ())
    with pytest.raises(TokenUnavailable):
        token.check()
    undo()
    eventually(token.check)
    assert token.open(key, key.id, sealed, ()).reveal() == DEK


def test_other_keys_under_the_same_serial_while_running(
    state: State, pool: SessionPool, token: Token, key: KeyVersion
) -> None:
    """Label, serial, PIN and ids are the same; the check value of the sentinel is not."""
    token.check()
    sealed = token.seal(key, DEK, ())

    def other() -> None:
        copy_under(state, None)
        give_other_sentinel(state)

    undo = exchange(state, other)
    pool.reopen(pool.generation)
    for _ in range(2):
        with pytest.raises(TokenUnavailable):
            token.check()
    with pytest.raises(TokenUnavailable):
        token.seal(key, DEK, ())
    undo()
    eventually(token.check)
    assert token.open(key, key.id, sealed, ()).reveal() == DEK


@pytest.mark.parametrize("opened_by", ["a lost session", "recycling"])
def test_nothing_is_made_or_destroyed_on_a_swapped_token(state: State, open_pool: OpenPool, opened_by: str) -> None:
    """Nobody asked for a canary meanwhile: the first call after the opening finds it out, before it does anything."""
    pool = open_pool(recycle_after=200)
    token = Token(pool)
    key = token.generate_key(new_id(), "hsmkms test", datetime.now(UTC))

    def other() -> None:
        copy_under(state, None)
        give_other_sentinel(state)

    def objects() -> set[Path]:
        return set((state.path / "tokens").glob("*/*.object"))

    generation = pool.generation
    undo = exchange(state, other)
    there = objects()
    if opened_by == "recycling":
        with pool.session() as session:
            session.destroyed_objects = 200
        assert pool.generation > generation
    else:
        lose_all_sessions(pool)
    acts: tuple[Callable[[], object], ...] = (
        lambda: token.generate_key(new_id(), "hsmkms test", datetime.now(UTC)),
        lambda: token.generate_signing_key(new_id()),
        lambda: token.destroy_key(key.id),
        lambda: token.random(8),
    )
    for act in acts:
        with pytest.raises(TokenUnavailable):
            act()
    assert objects() == there
    undo()
    eventually(token.check)
    assert token.destroy_key(key.id)


def test_one_key_is_another(token: Token, make_key: Callable[[], KeyVersion]) -> None:
    """Another key under a version's id is not used; its check value tells."""
    first, second = make_key(), make_key()
    impostor = KeyVersion(second.id, second.created_at, first.check_value, second.owner)
    token.verify_key(second)
    with pytest.raises(KeyMaterialMissing):
        token.verify_key(impostor)


def test_unknown_serial_is_refused_before_and_after_it_is_open(open_pool: OpenPool) -> None:
    pool = open_pool()
    pool.expect(frozenset({pool.info.serial}))
    pool.reopen(pool.generation)
    with pytest.raises(TokenRefused, match="hsm accept"):
        pool.expect(frozenset({"another"}))
    with pytest.raises(TokenUnavailable):
        pool.reopen(pool.generation)


def test_a_copy_is_refused_at_start_until_it_is_accepted(state: State) -> None:
    """As after a device was replaced and its backup restored: the operator has to say so."""
    first = directory_of(state)
    second = first.with_name("01234567-0000-0000-0123-456789abcdef")
    copy_token(first, second, serial=OTHER_SERIAL)
    (first / "token.object").unlink()
    refused = state.run("keys", "list")
    assert (refused.returncode, b"hsm accept" in refused.stderr) == (1, True), refused.stderr
    assert OTHER_SERIAL in refused.stderr
    accepted = state.run("hsm", "accept")
    assert OTHER_SERIAL in accepted.stdout, accepted.stderr
    assert state.run("keys", "list").returncode == 0
