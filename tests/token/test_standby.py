"""A primary and a standby with the same keys, in one process: what is proved, and what is destroyed."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hsmkms.domain.ids import new_id
from hsmkms.domain.secrets import SecretBytes
from hsmkms.errors import KeyMaterialMissing, TokenRefused, TokenUnavailable
from hsmkms.token.integrity import LABEL as MAC_LABEL
from hsmkms.token.room import Token
from hsmkms.token.standby import PairedToken
from tests.support.deployment import State
from tests.support.injector import Injector, compile_injector
from tests.support.tokens import STANDBY_LABEL, Group, give_other_sentinel
from tests.token.conftest import OpenPool, pkcs11_tool

DEK = bytes(range(32))
OWNER = "hsmkms test"
SOON_S, LONG_S = 0.5, 30


@pytest.fixture
def group(state: State) -> Iterator[Group]:
    with Group(state) as group:
        yield group


@pytest.fixture
def standby(open_pool: OpenPool, group: Group) -> Token:
    return Token(open_pool(module=str(group.module), label=STANDBY_LABEL))


@pytest.fixture
def pair(open_pool: OpenPool, standby: Token) -> PairedToken:
    return PairedToken(open_pool(), standby, LONG_S)


def test_same_keys(pair: PairedToken) -> None:
    pair.require_same_keys()
    pair.check()
    assert set(pair.parts) == {"primary", "standby"}


def test_other_keys_are_noticed(open_pool: OpenPool, state: State, group: Group) -> None:
    group.pause()
    give_other_sentinel(state, STANDBY_LABEL)
    standby = Token(open_pool(module=str(group.module), label=STANDBY_LABEL))
    with pytest.raises(TokenRefused, match="other keys"):
        PairedToken(open_pool(), standby, LONG_S).require_same_keys()


def test_each_opens_what_the_other_sealed(pair: PairedToken, standby: Token) -> None:
    version = pair.generate_key(new_id(), OWNER, datetime.now(UTC))
    pair.prove_key(version)
    assert standby.open(version, version.id, pair.seal(version, DEK, ("a",)), ("a",)).reveal() == DEK
    assert pair.open(version, version.id, standby.seal(version, DEK, ("a",)), ("a",)).reveal() == DEK


def test_a_key_is_proved_as_soon_as_it_is_replicated(pair: PairedToken, group: Group) -> None:
    group.pause()
    version = pair.generate_key(new_id(), OWNER, datetime.now(UTC))
    late = threading.Timer(SOON_S, group.go_on)
    late.start()
    pair.prove_key(version)
    late.join()


USES: dict[str, Callable[[PairedToken], object]] = {
    "root key": lambda pair: pair.prove_key(pair.generate_key(new_id(), OWNER, datetime.now(UTC))),
    "signing key": lambda pair: pair.generate_signing_key(new_id()),
    "MAC key": lambda pair: pair.make_mac_key(),
}


@pytest.mark.parametrize("kind", USES)
def test_a_key_is_proved_as_soon_as_all_of_it_is_replicated(
    state: State, pair: PairedToken, group: Group, kind: str
) -> None:
    """A group may show an object whose value is still on its way."""
    if kind == "MAC key":
        pkcs11_tool(state, "--delete-object", "--type", "secrkey", "--label", MAC_LABEL)
        group.wait_until_same()
    before = group.objects()[1]
    group.go_on(whole=False)
    failures: list[Exception] = []

    def use() -> None:
        try:
            USES[kind](pair)
        except TokenUnavailable as error:
            failures.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    deadline = time.monotonic() + LONG_S
    while group.objects()[1] == before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    thread.join(SOON_S)
    assert thread.is_alive()
    group.go_on()
    thread.join(LONG_S)
    assert not thread.is_alive()
    assert not failures


def test_a_key_that_is_not_replicated_is_not_proved(open_pool: OpenPool, standby: Token, group: Group) -> None:
    pair = PairedToken(open_pool(), standby, SOON_S)
    group.pause()
    version = pair.generate_key(new_id(), OWNER, datetime.now(UTC))
    with pytest.raises(TokenUnavailable, match="standby"):
        pair.prove_key(version)
    with pytest.raises(TokenUnavailable, match="standby"):
        pair.generate_signing_key(new_id())


def test_another_key_under_the_same_id_is_not_proved(pair: PairedToken, standby: Token, group: Group) -> None:
    """A group that went out of step: the standby has made a key of its own under this id."""
    group.pause()
    theirs = standby.generate_key(new_id(), OWNER, datetime.now(UTC))
    version = pair.generate_key(theirs.id, OWNER, datetime.now(UTC))
    with pytest.raises(KeyMaterialMissing):
        pair.prove_key(version)


@pytest.fixture
def standby_faults(group: Group, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Injector:
    """Faults for the standby alone, in this process."""
    injector = Injector(compile_injector(tmp_path), tmp_path / "faults")
    injector.cure()
    for name, value in {**injector.environment, "INJECT_MODULE": str(group.module)}.items():
        monkeypatch.setenv(name, value)
    return injector


def test_nothing_is_made_while_the_standby_is_away(open_pool: OpenPool, group: Group, standby_faults: Injector) -> None:
    """What nobody could prove could not be destroyed either, and would stay on the primary for ever."""
    standby = Token(open_pool(module=str(standby_faults.library), label=STANDBY_LABEL))
    pair = PairedToken(open_pool(), standby, LONG_S)
    pair.check()
    before = group.objects()
    makes: list[Callable[[], object]] = [
        lambda: pair.generate_key(new_id(), OWNER, datetime.now(UTC)),
        lambda: pair.create_key(new_id(), OWNER, datetime.now(UTC), SecretBytes(DEK)),
        lambda: pair.generate_signing_key(new_id()),
        lambda: pair.generate_transport_key(new_id(), OWNER, by_process=True),
        pair.make_mac_key,
        pair.make_sentinel,
    ]
    standby_faults.fail("*", code=0x30)
    for make in makes:
        with pytest.raises(TokenUnavailable):
            make()
    assert group.objects() == before
    refused = new_id()
    with pytest.raises(TokenUnavailable):
        pair.generate_transport_key(refused, OWNER, by_process=True)
    # So that its pending row is settled at once: nothing was asked of either token.
    assert not pair.destroy_transport_key(refused)
    assert pair.random(8)
    standby_faults.cure()
    deadline = time.monotonic() + LONG_S
    while standby.breaker.is_open:
        assert time.monotonic() < deadline
        with contextlib.suppress(TokenUnavailable):
            standby.check()
        time.sleep(0.05)
    pair.prove_key(pair.generate_key(new_id(), OWNER, datetime.now(UTC)))


def test_signing_key_is_proved(pair: PairedToken, standby: Token) -> None:
    key_id = new_id()
    pem = pair.generate_signing_key(key_id)
    assert standby.signing_public_key(key_id) == pem
    pair.destroy_signing_key(key_id)
    assert not standby.has_signing_key(key_id)


def test_destroyed_on_both(pair: PairedToken, group: Group) -> None:
    """Also where the group does not replicate that an object is gone."""
    before = group.objects()
    version = pair.generate_key(new_id(), OWNER, datetime.now(UTC))
    pair.prove_key(version)
    group.pause()
    assert pair.destroy_key(version.id)
    assert group.objects() == before


def test_a_transport_key_is_destroyed_on_both(pair: PairedToken, group: Group) -> None:
    """A group that does not replicate that an object is gone would keep each of them on the standby for ever."""
    before, key_id = group.objects(), new_id()
    pair.generate_transport_key(key_id, OWNER, by_process=True)
    group.wait_until_same()
    group.pause()
    assert pair.destroy_transport_key(key_id)
    assert group.objects() == before
