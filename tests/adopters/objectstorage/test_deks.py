"""DEKs in memory: one look-up however many ask, and none for longer than it may be."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from hsmkms.adopters.client import AdopterError, CiphertextRefused, ConnectionInvalid, KeyRefused, KeyServiceAway
from hsmkms.adopters.objectstorage.deks import DekCache
from hsmkms.domain.secrets import SecretBytes

DEK = SecretBytes(b"d" * 32)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Source:
    """Gives a DEK, or refuses; counts."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: AdopterError | None = None
        self.before: Callable[[], object] = lambda: None

    def __call__(self) -> SecretBytes:
        self.calls += 1
        self.before()
        if self.error is not None:
            raise self.error
        return DEK


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def cache(clock: Clock) -> DekCache:
    return DekCache(60, 600, lambda _: None, clock)


def test_one_look_up_for_all_who_ask(cache: DekCache, source: Source) -> None:
    waiting = threading.Barrier(20)
    source.before = lambda: time.sleep(0.05)
    got: list[SecretBytes] = []

    def ask() -> None:
        waiting.wait()
        got.append(cache.get("a", source))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [DEK] * 20
    assert source.calls == 1
    cache.get("b", source)
    assert source.calls == 2


def test_its_life_is_bounded_from_when_it_was_asked_for(cache: DekCache, source: Source, clock: Clock) -> None:
    def slow() -> None:
        clock.now += 5

    source.before = slow
    cache.get("a", source)
    source.before = lambda: None
    clock.now += 54
    cache.get("a", source)
    assert source.calls == 1
    clock.now += 1
    cache.get("a", source)
    assert source.calls == 2


@pytest.mark.parametrize("refusal", [KeyRefused("KEY_ACTION_INVALID_STATE_ERR", "disabled"), CiphertextRefused("bad")])
def test_a_refusal_drops_it_at_once(cache: DekCache, source: Source, clock: Clock, refusal: AdopterError) -> None:
    cache.get("a", source)
    source.error = refusal
    clock.now += 60
    for _ in range(3):
        with pytest.raises(type(refusal), match=refusal.message.replace("(", r"\(").replace(")", r"\)")):
            cache.get("a", source)
    assert source.calls == 2, "a refusal is believed for a moment"
    assert len(cache) == 0
    source.error = None
    clock.now += 1
    assert cache.get("a", source) is DEK


@pytest.mark.parametrize("away", [KeyServiceAway("gone"), ConnectionInvalid("no key file")])
def test_it_serves_on_for_a_while_without_the_key_service(
    cache: DekCache, source: Source, clock: Clock, away: AdopterError
) -> None:
    source.error = away
    with pytest.raises(KeyServiceAway):
        cache.get("a", source)
    source.error = None
    clock.now += 1
    cache.get("a", source)
    source.error, began = away, clock.now
    asked = source.calls
    while clock.now < began + 600:
        assert cache.get("a", source) is DEK
        clock.now += 1
    assert source.calls - asked <= 600 / 5, "asking is no flood"
    with pytest.raises(KeyServiceAway):
        cache.get("a", source)
    assert len(cache) == 0


def test_away_does_not_outlive_a_refusal(cache: DekCache, source: Source, clock: Clock) -> None:
    cache.get("a", source)
    source.error = KeyRefused("UNAUTHORIZED_ERR", "no")
    clock.now += 60
    with pytest.raises(KeyRefused):
        cache.get("a", source)
    source.error = KeyServiceAway("gone")
    clock.now += 1
    with pytest.raises(KeyServiceAway):
        cache.get("a", source)


def test_what_nobody_asks_for_is_forgotten(cache: DekCache, source: Source, clock: Clock) -> None:
    for number in range(100):
        cache.get(str(number), source)
    clock.now += 700
    cache.get("another", source)
    assert len(cache) == 1
