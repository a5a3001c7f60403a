"""What the plugin tells of a key service whose nodes lag, refuse and go away, at moments that no running service shows
on demand. What running ones show is in tests/adopters/kubernetes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from hsmkms.adopters.client import (
    AdopterError,
    Key,
    KeyRefused,
    KeyServiceAway,
    KeyServiceClient,
    KeyState,
    Unwrapped,
    WrappedDek,
)
from hsmkms.adopters.kubernetes.cache import DekCache
from hsmkms.adopters.kubernetes.health import LAG_S, STALE_S, Condition, Health
from hsmkms.adopters.kubernetes.key_id import KeyId
from hsmkms.adopters.kubernetes.last_key_id import LastKeyId
from hsmkms.domain.secrets import SecretBytes

KEY = "11111111-1111-4111-8111-111111111111"
OLD, NEW = "22222222-2222-4222-8222-222222222222", "33333333-3333-4333-8333-333333333333"
CRN = "crn:v1:bluemix:public:containers-kubernetes:local:a/1:2::"


@dataclass
class Node:
    """A key service that wraps under `version`, or fails."""

    version: str = OLD
    fails: AdopterError | None = None
    state: KeyState = KeyState.ACTIVE
    spoils: bool = False
    asked: int = 0
    _wrapped: dict[str, SecretBytes] = field(default_factory=dict)

    def within(self, timeout_s: float, correlation_id: str | None = None) -> Node:
        assert 0 < timeout_s <= 2.5
        return self

    def wrap(self, key_id: str, plaintext: SecretBytes, aad: Any) -> WrappedDek:
        self.asked += 1
        if self.fails is not None:
            raise self.fails
        self._wrapped["canary"] = plaintext
        return WrappedDek(plaintext, "canary", self.version)

    def unwrap(self, key_id: str, ciphertext: str, aad: Any) -> Unwrapped:
        opened = SecretBytes(bytes(32)) if self.spoils else self._wrapped[ciphertext]
        return Unwrapped(opened, self.version, None)

    def key(self, key_id: str) -> Key:
        return Key(key_id, f"crn of {key_id}", "", self.state, self.version)


@dataclass
class Watched:
    node: Node
    health: Health
    file: Path
    now: list[float]

    def look(self) -> tuple[Condition, str | None]:
        found = self.health.look()
        return found.condition, None if found.key_id is None else found.key_id.version


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return watch(tmp_path)


def watch(directory: Path, node: Node | None = None) -> Watched:
    node, now, file = node or Node(), [1000.0], directory / "key-id"
    health = Health(cast(KeyServiceClient, node), KEY, CRN, LastKeyId(file), monotonic=lambda: now[0])
    return Watched(node, health, file, now)


def test_a_node_that_lags_behind_a_rotation_is_not_believed(watched: Watched) -> None:
    assert watched.look() == (Condition.HEALTHY, OLD)
    watched.node.version = NEW
    assert watched.health.confirms(NEW)
    watched.node.version = OLD
    assert watched.look() == (Condition.HEALTHY, NEW)
    assert not watched.health.confirms(OLD)
    # A database that was restored from a backup really goes back.
    watched.now[0] += LAG_S
    assert watched.look() == (Condition.HEALTHY, OLD)
    assert watched.health.confirms(OLD)


def test_what_status_names_already_is_confirmed_without_a_look(watched: Watched) -> None:
    watched.look()
    before = watched.node.asked
    assert watched.health.confirms(OLD)
    assert watched.node.asked == before


def test_a_version_that_is_new_but_refused_by_now_is_not_confirmed(watched: Watched) -> None:
    watched.look()
    watched.node.fails = KeyRefused("X", "no")
    assert not watched.health.confirms(NEW)


def test_an_absence_keeps_the_key_id_and_takes_back_no_refusal(watched: Watched, tmp_path: Path) -> None:
    watched.look()
    watched.node.fails = KeyServiceAway("gone fishing")
    assert watched.look() == (Condition.AWAY, OLD)
    assert watch(tmp_path, watched.node).look() == (Condition.AWAY, OLD)
    watched.node.fails, watched.node.state = KeyRefused("X", "no"), KeyState.SUSPENDED
    assert watched.look() == (Condition.REFUSED, OLD)
    watched.node.fails = KeyServiceAway("gone fishing")
    assert watched.look() == (Condition.REFUSED, OLD)
    assert "disabled" in watched.health.verdict.reason
    assert watch(tmp_path, watched.node).look() == (Condition.AWAY, None)


def test_a_key_id_of_another_key_or_no_key_id_is_not_gone_on_with(tmp_path: Path) -> None:
    for text in (str(KeyId(NEW, OLD)), "rubbish", "", "\xff" * 9):
        (tmp_path / "key-id").write_text(text, encoding="latin-1")
        watched = watch(tmp_path, Node(fails=KeyServiceAway("away")))
        assert watched.look() == (Condition.AWAY, None)


def test_a_canary_that_comes_back_changed_is_a_refusal(watched: Watched) -> None:
    watched.node.spoils = True
    assert watched.look()[0] is Condition.REFUSED
    assert "came back changed" in watched.health.verdict.reason


def test_a_verdict_that_nobody_renews_is_not_told_for_long(watched: Watched) -> None:
    watched.look()
    watched.now[0] += STALE_S + 1
    found = watched.health.verdict
    assert (found.condition, found.key_id) == (Condition.AWAY, KeyId(KEY, OLD))


def test_the_cache_keeps_for_its_time_and_no_more_than_it_may() -> None:
    now = [0.0]
    cache = DekCache(10, most=2, monotonic=lambda: now[0])
    for name in (b"a", b"b", b"c"):
        cache.put(name, ("x",), SecretBytes(name))
    assert [cache.get(name, ("x",)) is not None for name in (b"a", b"b", b"c")] == [False, True, True]
    assert cache.get(b"b", ("y",)) is cache.get(b"bx", ()) is None
    now[0] = 9
    cache.put(b"c", ("x",), SecretBytes(b"c"))
    now[0] = 10
    assert (cache.get(b"b", ("x",)), len(cache)) == (None, 1)
    cache.clear()
    assert cache.get(b"c", ("x",)) is None
    off = DekCache(0)
    off.put(b"a", (), SecretBytes(b"a"))
    assert (off.get(b"a", ()), len(off)) == (None, 0)
