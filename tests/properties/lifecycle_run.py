"""One run of the lifecycle's test: a service with a clock of its own, the keys as the model knows them, and how the two
are compared."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from hypothesis.stateful import RuleBasedStateMachine, invariant

from tests.properties import lifecycle_model as m
from tests.properties.lifecycle_model import ModelKey
from tests.support.deployment import State, create_body
from tests.support.iam import Somebody
from tests.support.in_process import START, InProcess, MovedClock

REPRESENTATION = {"Prefer": "return=representation"}
MOST_KEYS = 4
ALL = "0,1,2,3,5"
CONSTANT = {"type", "crn", "imported", "algorithmType", "algorithmMetadata", "algorithmBitSize", "algorithmMode"}
# None is no time; a pair is a boundary of the key, by number, and how far from it.
Wait = timedelta | tuple[int, timedelta] | None
# Which key, the one that was touched last being 0; whether by alias; after how long.
Target = tuple[int, bool, Wait]
_numbers = itertools.count()


@dataclass(frozen=True)
class World:
    """A deployment to be copied, and who is in it."""

    state: State
    people: dict[str, Somebody]
    directory: Path


class LifecycleRun(RuleBasedStateMachine):
    """Each run has a deployment of its own, in which time begins at START."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.directory = self.world.directory / f"run-{next(_numbers)}"
        self.clock = MovedClock(START)
        self.service = InProcess(self.world.state.copy_to(self.directory), self.clock)
        self.keys: list[ModelKey] = []
        self.touched: ModelKey | None = None
        self.inherited: dict[str, Any] = {"rotation": None, "two_people": None}
        self.other_objects = self.objects()

    def teardown(self) -> None:
        self.service.end()
        shutil.rmtree(self.directory)

    @invariant()
    def every_key_is_seen_as_it_is(self) -> None:
        answer = self.call("first", "GET", f"/keys?state={ALL}&limit=5000")
        assert answer.status_code == 200, answer.text
        seen = {one["id"]: varying(one) for one in answer.json()["resources"]}
        assert seen == {key.id: key.shown(self.now) for key in self.there()}

    @invariant()
    def the_token_holds_what_was_not_purged(self) -> None:
        versions = [version for key in self.there() for version, _ in key.versions]
        assert self.objects() == sorted([*self.other_objects, *versions])

    @property
    def now(self) -> datetime:
        return self.clock.now

    def there(self) -> list[ModelKey]:
        return [key for key in self.keys if not key.purged]

    def iam_id(self, who: str) -> str:
        return self.world.people[who].iam_id

    def objects(self) -> list[str]:
        """The ids of the token's wrapping keys, twice what is there twice."""
        return sorted(one.version_id for one in self.service.token.list_keys())

    def call(self, who: str, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return self.service.call(self.world.people[who].api_key, method, path, body, **headers)

    def let_pass(self, length: timedelta) -> None:
        self.clock.move(self.now + length)

    def found(self, at: Target) -> tuple[ModelKey, str]:
        """A key and a path to it, when the time has come. The last that was purged is among those to be found."""
        number, by_alias, wait = at
        candidates = self.there() + [key for key in self.keys if key.purged][-1:]
        key = sorted(candidates, key=lambda one: (one.purged, one is not self.touched))[number % len(candidates)]
        self.touched = key
        if isinstance(wait, timedelta):
            self.let_pass(wait)
        elif wait is not None:
            moments = self.moments(key, wait[1])
            if moments:
                self.clock.move(moments[wait[0] % len(moments)][0])
        by_name = by_alias and key.aliases and not key.purged
        return key, f"/keys/{min(key.aliases) if by_name else key.id}"

    def moments(self, key: ModelKey, side: timedelta) -> list[tuple[datetime, str]]:
        """The boundaries that are ahead, and what they are about."""
        return [(end + side, about) for end, about in key.boundaries() if end + side > self.now]

    def accepted(self, answer: httpx.Response, key: ModelKey, refusal: m.Refusal | None, status: int) -> bool:
        """Whether it was, as predicted."""
        refusal = m.GONE if key.purged else refusal
        if refusal is None:
            assert answer.status_code == status, answer.text
            return True
        assert (answer.status_code, code_of(answer)) == refusal
        return False

    def turn(
        self,
        key: ModelKey,
        who: str,
        method: str,
        path: str,
        refusal: m.Refusal | None,
        happen: Callable[[Any], None],
        *,
        shown: int = 0,
    ) -> None:
        """An action that answers 204, or, with the status `shown`, the key as it is afterwards."""
        answer = self.call(who, method, path, **(REPRESENTATION if shown else {}))
        if self.accepted(answer, key, refusal, shown or 204):
            happen(self.now)
            assert resource_of(answer) == key.shown(self.now) if shown else answer.content == b""

    def made(
        self,
        path: str,
        root: bool,
        expires: timedelta | None,
        ring: str,
        aliases: list[str],
        policies: dict[str, Any],
        members: dict[str, Any],
        refusal: m.Refusal | None,
    ) -> None:
        """A new key, unless it is refused or there are enough."""
        if len(self.there()) >= MOST_KEYS:
            return
        expires_at = None if expires is None else self.now + expires
        if expires_at is not None:
            members = {**members, "expirationDate": expires_at.isoformat()}
        body = create_body("model", extractable=not root, aliases=aliases, **members)
        answer = self.call("first", "POST", path, body, **{"X-Kms-Key-Ring": ring})
        if expires_at is not None and expires_at <= self.now:
            refusal = m.BAD_FIELD
        elif refusal is None and any(set(aliases) & other.aliases for other in self.there()):
            refusal = (409, "KEY_ALIAS_NOT_UNIQUE_ERR")
        if refusal is not None:
            assert (answer.status_code, code_of(answer)) == refusal
            return
        assert answer.status_code == 201, answer.text
        resource = answer.json()["resources"][0]
        key = ModelKey(
            id=resource["id"],
            name="model",
            root=root,
            ring=ring,
            aliases=set(aliases),
            created=self.now,
            created_by=self.iam_id("first"),
            expires=expires_at,
            payload=resource.get("payload"),
            versions=[(resource["keyVersion"]["id"], self.now)] if root else [],
            **policies,
        )
        assert root == (key.payload is None)
        assert varying(resource) == key.shown(self.now, fresh=True, payload=True)
        self.keys.append(key)

    def rotated(self, key: ModelKey) -> None:
        """Note the version that came."""
        answer = self.call("first", "GET", f"/keys/{key.id}/versions?allKeyStates=true")
        newest, *before = (one["id"] for one in answer.json()["resources"])
        assert before == [version for version, _ in key.versions]
        key.rotate(self.now, newest)

    def expired(self) -> list[ModelKey]:
        return [key for key in self.there() if key.stored == m.ACTIVE and key.state(self.now) == m.DEACTIVATED]

    def due(self) -> list[ModelKey]:
        """choice: only Active keys rotate by themselves."""
        found = []
        for key in self.there():
            due = key.rotation_due()
            if due is not None and due <= self.now and key.state(self.now) == m.ACTIVE:
                found.append(key)
        return found

    def overdue(self) -> list[ModelKey]:
        return [key for key in self.there() if key.deleted and key.deleted + m.PURGE_BY_ITSELF <= self.now]


def varying(resource: dict[str, Any]) -> dict[str, Any]:
    """A key without the members that are the same for all."""
    assert resource.keys() >= CONSTANT
    shown = {name: value for name, value in resource.items() if name not in CONSTANT}
    # In the order in which they were asked for in the answer to a creation, and by name later.
    return shown | ({"aliases": sorted(shown["aliases"])} if "aliases" in shown else {})


def resource_of(answer: httpx.Response) -> dict[str, Any]:
    """The one key in an answer."""
    (resource,) = answer.json()["resources"]
    return varying(resource)


def code_of(answer: httpx.Response) -> str | None:
    """The reason of a refusal."""
    if answer.status_code < 400:
        return None
    (resource,) = answer.json()["resources"]
    return str(resource["reasons"][0]["code"]) if "reasons" in resource else None
