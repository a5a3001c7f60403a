"""Two actions on one key, the second whole between the first one's look at the key and its commit: what came of it is
what comes of one after the other, in one of the two orders. Every pair of actions that a key permits, jobs included."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from starlette.datastructures import QueryParams

from hsmkms.domain.access import EVERYTHING, Caller
from hsmkms.domain.key_policies import KeyPolicyKind, KeyPolicyWish
from hsmkms.domain.keys import Key
from hsmkms.domain.new_key import NewKey
from hsmkms.domain.query import parse_key_query
from hsmkms.errors import HsmkmsError, KeyRingNotFound
from hsmkms.store.keys import KeyStore
from hsmkms.store.tenants import TenantStore
from tests.support.deployment import State
from tests.support.in_process import START, InProcess, MovedClock

ROTATION, DUAL = KeyPolicyKind.ROTATION, KeyPolicyKind.DUAL_AUTH_DELETE
LOOKS = ("get", "expired", "due_for_rotation", "due_for_purge")
RING = "red"
Act = Callable[["Scene", Key], object]
Seen = tuple[object, ...] | str | None
EVERY_KEY = parse_key_query(QueryParams({"state": "0,1,2,3,5"}))


class Scene:
    """A service, two people, and what is done between a look and a commit."""

    def __init__(self, service: InProcess) -> None:
        self.service, self.services, self.clock = service, service.services, service.clock
        self.instance = service.state.instance_id
        account = self.services.snapshot.all_instances()[0].account
        ends = START + timedelta(days=36_500)
        self.one = Caller("IBMid-one", "one", account, EVERYTHING, frozenset(), ends)
        self.two = replace(self.one, iam_id="IBMid-two")
        self.between: Callable[[], object] | None = None
        self.between_rings: Callable[[], object] | None = None
        self.services.key_rings.create(self.one, self.instance, RING)

    def create(self) -> Key:
        """A root key that expires after 60 days, with an alias."""
        name = f"alias-{next(_numbers)}"
        wish = NewKey("raced", None, (), (name,), extractable=False, expires_at=self.clock() + timedelta(days=60))
        return self.services.keys.create(self.one, self.instance, None, wish, []).key

    def looked(self) -> None:
        """Somebody has read the key: now the other one acts."""
        between, self.between = self.between, None
        if between is not None:
            between()

    def looked_at_rings(self) -> None:
        """The same for who has read which rings there are."""
        between, self.between_rings = self.between_rings, None
        if between is not None:
            between()

    def seen(self, key: Key) -> Seen:
        """What is left of a key, but for ids and times."""
        try:
            found = self.services.keys.read_metadata(self.one, self.instance, key.id, None)
        except HsmkmsError as error:
            return error.code
        objects = {one.version_id for one in self.service.token.list_keys()}
        assert {version.id for version in found.versions} <= objects
        policies = sorted((one.kind.value, one.enabled, str(one.interval_month)) for one in found.policies)
        moments = (found.rotated_at, found.deleted_at, found.disabled_at, found.deletion_set_at)
        return (
            found.state,
            found.key_ring_id,
            len(found.aliases),
            len(found.versions),
            policies,
            [moment is not None for moment in moments],
            found.deletion_set_by,
            found.deleted_by,
        )


_numbers = itertools.count()


@dataclass(frozen=True)
class Lifecycle:
    """A method of the lifecycle service, by one of the two."""

    name: str
    second: bool = False

    def __call__(self, scene: Scene, key: Key) -> object:
        method = getattr(scene.services.lifecycle, self.name)
        return method(scene.two if self.second else scene.one, scene.instance, key.id, None)


@dataclass(frozen=True)
class Put:
    """A policy of the key."""

    wish: KeyPolicyWish

    def __call__(self, scene: Scene, key: Key) -> object:
        return scene.services.key_policies.put(scene.one, scene.instance, key.id, None, [self.wish])


@dataclass(frozen=True)
class Job:
    """A job, which leaves a key that was changed under it to its next run."""

    name: str

    def __call__(self, scene: Scene, key: Key) -> object:
        runs = [getattr(scene.services.jobs, self.name)(lambda: True) for _ in range(2)]
        assert all(done.failed == 0 for done in runs)
        return None


def rotate(scene: Scene, key: Key) -> object:
    return scene.services.keys.rotate(scene.one, scene.instance, key.id, None)


def move(scene: Scene, key: Key) -> object:
    return scene.services.keys.move(scene.one, scene.instance, key.id, None, RING)


def add_alias(scene: Scene, key: Key) -> object:
    return scene.services.aliases.create(scene.one, scene.instance, key.id, None, f"more-{next(_numbers)}")


def remove_alias(scene: Scene, key: Key) -> None:
    scene.services.aliases.delete(scene.one, scene.instance, key.id, None, key.aliases[0])


ACTIONS: dict[str, Act] = {
    "disable": Lifecycle("disable"),
    "enable": Lifecycle("enable"),
    "delete": Lifecycle("delete"),
    "delete by the other": Lifecycle("delete", second=True),
    "restore": Lifecycle("restore"),
    "purge": Lifecycle("purge"),
    "set for deletion": Lifecycle("set_for_deletion"),
    "set for deletion by the other": Lifecycle("set_for_deletion", second=True),
    "unset for deletion": Lifecycle("unset_for_deletion"),
    "rotate": rotate,
    "move": move,
    "add an alias": add_alias,
    "remove an alias": remove_alias,
    "dual authorization on": Put(KeyPolicyWish(DUAL, True, None)),
    "dual authorization off": Put(KeyPolicyWish(DUAL, False, None)),
    "rotation on": Put(KeyPolicyWish(ROTATION, True, 1)),
    "rotation off": Put(KeyPolicyWish(ROTATION, False, 2)),
    "the expiry job": Job("expire_due"),
    "the rotation job": Job("rotate_due"),
    "the purge job": Job("purge_due"),
}
# What was done to a key before, and how long ago the last of it is.
STARTS: dict[str, tuple[tuple[str, ...], timedelta]] = {
    "active and due for rotation": (("rotation on",), timedelta(days=60) - timedelta(microseconds=1)),
    "suspended": (("disable",), timedelta(hours=5)),
    "expired": ((), timedelta(days=60)),
    "deleted": (("delete",), timedelta(hours=5)),
    "deleted long ago": (("delete",), timedelta(days=90)),
    "one has spoken": (("dual authorization on", "set for deletion"), timedelta(hours=5)),
}
LONGEST = {"expired", "one has spoken"}
"""Most acts are possible there, and every pair of them is tried: a minute, so they are for `make test-slow`."""


@pytest.fixture
def scene(state: State, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    service = InProcess(state, MovedClock(START))
    scene = Scene(service)
    for name in LOOKS:
        monkeypatch.setattr(KeyStore, name, _telling(getattr(KeyStore, name), scene.looked))
    monkeypatch.setattr(TenantStore, "key_rings", _telling(TenantStore.key_rings, scene.looked_at_rings))
    yield scene
    service.end()


def _telling(look: Callable[..., Any], looked: Callable[[], None]) -> Callable[..., Any]:
    def told(*arguments: Any) -> Any:
        found = look(*arguments)
        looked()
        return found

    return told


def result(scene: Scene, act: str, key: Key) -> str:
    """What an action says."""
    try:
        ACTIONS[act](scene, key)
    except HsmkmsError as error:
        return str(error.code)
    return "done"


def begin(scene: Scene, start: str) -> Key:
    """A key in a state, with which nobody has to wait any more."""
    before, ago = STARTS[start]
    scene.clock.now = START
    key = scene.create()
    for act in before:
        assert result(scene, act, key) == "done"
    scene.clock.move(START + ago)
    return key


def end(scene: Scene, key: Key) -> Seen:
    """What is left of a key, which is then taken away: the jobs of the next run would see it too."""
    seen = scene.seen(key)
    found = scene.services.keys.list(scene.one, scene.instance, None, EVERY_KEY, total=False).keys
    for one in found:
        scene.services.lifecycle.purge_without_caller(one)
    return seen


def does_something(scene: Scene, start: str, act: str) -> bool:
    """Whether an action alone is permitted and changes the key."""
    key = begin(scene, start)
    before, said = scene.seen(key), result(scene, act, key)
    return end(scene, key) != before and said == "done"


def one_after_the_other(scene: Scene, start: str, first: str, second: str) -> tuple[str, str, Seen]:
    key = begin(scene, start)
    return result(scene, first, key), result(scene, second, key), end(scene, key)


@pytest.mark.parametrize(
    "start", [pytest.param(start, marks=pytest.mark.slow) if start in LONGEST else start for start in STARTS]
)
def test_what_comes_between_counts(scene: Scene, start: str) -> None:
    possible = [act for act in ACTIONS if does_something(scene, start, act)]
    assert len(possible) >= 3
    serial = {pair: one_after_the_other(scene, start, *pair) for pair in itertools.product(possible, repeat=2)}
    wrong: list[tuple[str, str, tuple[str, str, Seen]]] = []
    for first, second in serial:
        key = begin(scene, start)
        between: list[str] = []
        scene.between = partial(lambda key, act, said: said.append(result(scene, act, key)), key, second, between)
        said = result(scene, first, key)
        assert scene.between is None
        outcome = (said, between[0], end(scene, key))
        later, sooner, left = serial[second, first]
        if outcome not in (serial[first, second], (sooner, later, left)):
            wrong.append((first, second, outcome))
    assert wrong == [], "\n".join(map(str, wrong))


@pytest.mark.parametrize("act", ["create", "move"])
def test_no_key_gets_into_a_ring_that_is_gone(scene: Scene, act: str) -> None:
    """The ring is deleted after the one who puts a key into it has seen it there."""
    key, rings, objects = scene.create(), scene.services.key_rings, len(scene.service.token.list_keys())
    keys, blue = scene.services.keys, "blue"
    rings.create(scene.one, scene.instance, blue)
    wish = NewKey("raced", None, (), (), extractable=False, expires_at=None)
    put: dict[str, Callable[[], object]] = {
        "create": partial(keys.create, scene.one, scene.instance, blue, wish),
        "move": partial(keys.move, scene.one, scene.instance, key.id, None, blue),
    }
    scene.between_rings = partial(rings.delete, scene.two, scene.instance, blue, force=False)
    with pytest.raises(KeyRingNotFound):
        put[act]()
    assert scene.between_rings is None
    assert len(scene.service.token.list_keys()) == objects
