"""Transitions: random actions at random times, at and around every boundary, never disagree with a plain model.

The whole service but its socket, a real token and database; the test moves the clock, runs the jobs and restarts.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from hsmkms.domain.access import Role
from tests.api.refusals import require_refused
from tests.properties import lifecycle_model as m
from tests.properties.lifecycle_model import Ciphertext
from tests.properties.lifecycle_run import ALL, REPRESENTATION, LifecycleRun, Target, Wait, World, resource_of
from tests.support.deployment import Service, State
from tests.support.iam import Iam

POLICY = "application/vnd.ibm.kms.policy+json"
RINGS = ("default", "red")
ALIASES = tuple(f"alias-{number}" for number in range(7))
TICK = timedelta(microseconds=1)
LENGTHS = [
    TICK,
    timedelta(seconds=1),
    timedelta(seconds=29),
    *(m.REVERSAL, m.ROTATED_AGAIN, m.PURGE_BY_HAND, m.SECOND_WORD),
    *(m.RESTORE, m.PURGE_BY_ITSELF, timedelta(days=100)),
]
# How far from a boundary.
SIDES = st.sampled_from([-TICK, timedelta(0), TICK])
# Before an action no time passes, or some, or what is missing to a boundary of the key it is about, or to its sides.
WAITS = st.one_of(
    st.none(), st.none(), st.none(), st.none(), st.sampled_from(LENGTHS), st.tuples(st.integers(0, 7), SIDES)
)
NUMBERS = st.sampled_from([0, 0, 0, 1, 2, 3])
TARGETS = st.tuples(NUMBERS, st.booleans(), WAITS)
ROTATIONS = st.sampled_from([None, (None, 1), (True, None), (True, 1), (True, 2), (False, None), (False, 3)])
Rotation = tuple[bool | None, int | None] | None
EXPIRATIONS = st.sampled_from([None, None, None, -TICK, timedelta(0), *LENGTHS])
MANAGERS = st.sampled_from(["first", "second"])
WRITERS = st.sampled_from(["first", "second", "writer"])


MOVES: list[st.SearchStrategy[tuple[str, dict[str, Any]]]] = []
Method = TypeVar("Method", bound=Callable[..., None])


def played(*, times: int = 1, **arguments: st.SearchStrategy[Any]) -> Callable[[Method], Method]:
    """Mark a method as one of the moves; `times` is how often it is among them."""

    def note(method: Method) -> Method:
        move = st.tuples(st.just(method.__name__), st.fixed_dictionaries(arguments))
        MOVES.extend([move] * times)
        return method

    return note


class Machine(LifecycleRun):
    """Every request and job of a key's life."""

    @initialize(instance=st.sampled_from([False, False, False, True]))
    def a_key(self, instance: bool) -> None:
        assert self.call("first", "POST", "/key_rings/red").status_code == 201
        if instance:
            self.instance_policies(2, True)
        self.create(True, None, None, "default", [ALIASES[0]])

    @played(
        root=st.sampled_from([True, True, False]),
        wait=st.sampled_from([None, *LENGTHS]),
        expires=EXPIRATIONS,
        ring=st.sampled_from(RINGS),
        aliases=st.lists(st.sampled_from(ALIASES), max_size=2, unique=True),
    )
    def create(
        self, root: bool, wait: timedelta | None, expires: timedelta | None, ring: str, aliases: list[str]
    ) -> None:
        """With what the instance's policies say at that time."""
        self.let_pass(wait or timedelta(0))
        policies = dict(self.inherited) if root else {**self.inherited, "rotation": None}
        self.made("/keys", root, expires, ring, aliases, policies, {}, None)

    @played(
        root=st.booleans(), expires=EXPIRATIONS, rotation=ROTATIONS, two_people=st.sampled_from([None, False, True])
    )
    def create_with_policies(
        self, root: bool, expires: timedelta | None, rotation: Rotation, two_people: bool | None
    ) -> None:
        """With its own, whatever those of the instance."""
        wanted = None if rotation is None else (rotation[0] is not False, rotation[1])
        refusal = None
        if wanted is not None and not root:
            refusal = m.NOT_ROOT
        elif wanted is not None and wanted == (True, None):
            refusal = m.BAD_FIELD
        policies = {"rotation": wanted, "two_people": two_people}
        members = wire_policies(rotation, two_people)
        self.made("/keys_with_policy_overrides", root, expires, "default", [], policies, members, refusal)

    @played(times=3, at=TARGETS, who=MANAGERS, older=st.booleans())
    def disable(self, at: Target, who: str, older: bool) -> None:
        key, place = self.found(at)
        self.turn(key, who, "POST", action(place, "disable", older), key.refuses("disable", self.now), key.disable)

    @played(times=2, at=TARGETS, who=MANAGERS, older=st.booleans())
    def enable(self, at: Target, who: str, older: bool) -> None:
        key, place = self.found(at)
        self.turn(key, who, "POST", action(place, "enable", older), key.refuses("enable", self.now), key.activate)

    @played(times=3, at=TARGETS, who=WRITERS, older=st.booleans())
    def rotate(self, at: Target, who: str, older: bool) -> None:
        key, place = self.found(at)
        refusal = key.refuses("rotate", self.now)
        self.turn(key, who, "POST", action(place, "rotate", older), refusal, lambda _: self.rotated(key))

    @played(times=4, at=TARGETS, who=MANAGERS, shown=st.booleans())
    def delete(self, at: Target, who: str, shown: bool) -> None:
        key, place = self.found(at)
        refusal = key.refuses_deletion(self.now, self.iam_id(who))
        self.turn(
            key, who, "DELETE", place, refusal, lambda now: key.delete(now, self.iam_id(who)), shown=shown and 200
        )

    @played(times=2, at=TARGETS, who=MANAGERS, older=st.booleans())
    def restore(self, at: Target, who: str, older: bool) -> None:
        key, place = self.found(at)
        path = f"{place}?action=restore" if older else f"{place}/restore"
        self.turn(key, who, "POST", path, key.refuses_restore(self.now), key.activate, shown=201)

    @played(at=TARGETS, shown=st.booleans())
    def purge(self, at: Target, shown: bool) -> None:
        """No Manager may, nor hears whether there is a key; who may hears what it was."""
        key, place = self.found(at)
        require_refused(self.call("first", "DELETE", f"{place}/purge"), 401, None)
        refusal, before = key.refuses_purge(self.now), key.shown(self.now)
        answer = self.call("purger", "DELETE", f"{place}/purge", **(REPRESENTATION if shown else {}))
        if self.accepted(answer, key, refusal, 200 if shown else 204):
            if shown:
                assert resource_of(answer) == before
            key.purged = True

    @played(times=2, at=TARGETS, who=WRITERS, older=st.booleans())
    def set_for_deletion(self, at: Target, who: str, older: bool) -> None:
        key, place = self.found(at)
        path = action(place, "setKeyForDeletion", older)

        def speak(_: Any) -> None:
            key.word = (self.now, self.iam_id(who))

        self.turn(key, who, "POST", path, key.refuses_word(self.now), speak)

    @played(at=TARGETS, who=WRITERS, older=st.booleans())
    def unset_for_deletion(self, at: Target, who: str, older: bool) -> None:
        """choice: anybody may take a word back."""
        key, place = self.found(at)
        path = action(place, "unsetKeyForDeletion", older)

        def take_back(_: Any) -> None:
            key.word = None

        self.turn(key, who, "POST", path, key.refuses_word(self.now), take_back)

    @played(times=2, at=TARGETS, rotation=ROTATIONS, two_people=st.sampled_from([None, None, None, False, True]))
    def put_policies(self, at: Target, rotation: Rotation, two_people: bool | None) -> None:
        wanted = wire_policies(rotation, two_people)
        if not wanted:
            return
        key, place = self.found(at)
        rule_of = None if rotation is None else (rotation[0] is not False, rotation[1])
        refusal = key.refuses_policies(rule_of, two_people)
        body = {
            "metadata": {"collectionType": POLICY, "collectionTotal": len(wanted)},
            "resources": [{name: value} for name, value in wanted.items()],
        }
        answer = self.call("first", "PUT", f"{place}/policies", body)
        if self.accepted(answer, key, refusal, 200):
            if rule_of is not None:
                key.rotation = (rule_of[0], key.interval_after(rule_of))
            if two_people is not None:
                key.two_people = two_people
            held = self.call("second", "GET", f"{place}/policies").json()
            assert held == answer.json()
            kinds = {name for one in held["resources"] for name in one if name in ("rotation", "dualAuthDelete")}
            set_before = {"rotation": key.rotation, "dualAuthDelete": key.two_people}
            assert kinds == {kind for kind, policy in set_before.items() if policy is not None}

    @played(interval=st.sampled_from([None, 1, 12]), two_people=st.sampled_from([False, False, True]))
    def instance_policies(self, interval: int | None, two_people: bool) -> None:
        """For keys that are made from now on."""
        rotation: dict[str, Any] = {"enabled": interval is not None}
        if interval is not None:
            rotation["attributes"] = {"interval_month": interval}
        resources = [
            {"policy_type": "rotation", "policy_data": rotation},
            {"policy_type": "dualAuthDelete", "policy_data": {"enabled": two_people}},
        ]
        body = {"metadata": {"collectionType": POLICY, "collectionTotal": 2}, "resources": resources}
        assert self.call("second", "PUT", "/instance/policies", body).status_code == 204
        self.inherited = {
            "rotation": None if interval is None else (True, interval),
            "two_people": True if two_people else None,
        }

    @played(at=TARGETS, who=WRITERS, alias=st.sampled_from(ALIASES))
    def add_alias(self, at: Target, who: str, alias: str) -> None:
        """choice: 410 before 409, and the fifth before one that is taken, also by a deleted key."""
        key, place = self.found(at)
        refusal = None
        if key.stored == m.DESTROYED:
            refusal = m.DELETED
        elif len(key.aliases) >= m.MOST_ALIASES:
            refusal = (409, "KEY_ALIAS_QUOTA_ERR")
        elif any(alias in other.aliases for other in self.keys if not other.purged):
            refusal = (409, "KEY_ALIAS_NOT_UNIQUE_ERR")
        if self.accepted(self.call(who, "POST", f"{place}/aliases/{alias}"), key, refusal, 201):
            key.aliases.add(alias)

    @played(at=TARGETS, who=WRITERS, alias=st.sampled_from(ALIASES))
    def remove_alias(self, at: Target, who: str, alias: str) -> None:
        """choice: from a deleted key too."""
        key, place = self.found(at)
        refusal = None if alias in key.aliases else (404, "KEY_ALIAS_NOT_FOUND_ERR")
        if self.accepted(self.call(who, "DELETE", f"{place}/aliases/{alias}"), key, refusal, 204):
            key.aliases.remove(alias)

    @played(at=TARGETS, who=MANAGERS, ring=st.sampled_from(RINGS))
    def move(self, at: Target, who: str, ring: str) -> None:
        key, place = self.found(at)
        answer = self.call(who, "PATCH", place, {"keyRingID": ring})
        if self.accepted(answer, key, None, 200):
            key.move(self.now, ring)
            assert resource_of(answer) == key.shown(self.now)

    @played(times=2, at=TARGETS, who=WRITERS, older=st.booleans(), given_by_caller=st.booleans())
    def wrap(self, at: Target, who: str, older: bool, given_by_caller: bool) -> None:
        key, place = self.found(at)
        given = base64.b64encode(bytes(18)).decode() if given_by_caller else None
        answer = self.call(who, "POST", action(place, "wrap", older), {"plaintext": given} if given else {})
        if self.accepted(answer, key, key.refuses("wrap", self.now), 200):
            said = answer.json()
            assert said["keyVersion"] == {"id": key.versions[0][0]}
            assert ("plaintext" in said) != given_by_caller
            key.ciphertexts.append(Ciphertext(said["ciphertext"], given or said["plaintext"], key.versions[0][0]))

    @played(times=2, at=TARGETS, who=WRITERS, older=st.booleans())
    def unwrap_everything(self, at: Target, who: str, older: bool) -> None:
        """Each version opens what it made; what an older one made comes back renewed."""
        key, place = self.found(at)
        renewed = []
        for held in key.ciphertexts:
            answer = self.call(who, "POST", action(place, "unwrap", older), {"ciphertext": held.text})
            if self.accepted(answer, key, key.refuses("unwrap", self.now), 200):
                said, newest = answer.json(), key.versions[0][0]
                assert (said["plaintext"], said["keyVersion"]) == (held.plaintext, {"id": held.version})
                assert said.get("rewrappedKeyVersion") == (None if held.version == newest else {"id": newest})
                assert ("ciphertext" in said) == (held.version != newest)
                if held.version != newest:
                    renewed.append(Ciphertext(said["ciphertext"], held.plaintext, newest))
        key.ciphertexts += renewed[:1]

    @played(at=TARGETS, number=st.integers(0, 20), older=st.booleans())
    def rewrap(self, at: Target, number: int, older: bool) -> None:
        key, place = self.found(at)
        if not key.ciphertexts:
            return
        held, newest = key.ciphertexts[number % len(key.ciphertexts)], key.versions[0][0]
        answer = self.call("second", "POST", action(place, "rewrap", older), {"ciphertext": held.text})
        if self.accepted(answer, key, key.refuses("rewrap", self.now), 200):
            said = answer.json()
            assert (said["keyVersion"], said["rewrappedKeyVersion"]) == ({"id": held.version}, {"id": newest})
            assert "plaintext" not in said
            key.ciphertexts.append(Ciphertext(said["ciphertext"], held.plaintext, newest))

    @played(at=TARGETS, who=WRITERS, whole=st.booleans())
    def read(self, at: Target, who: str, whole: bool) -> None:
        key, place = self.found(at)
        answer = self.call(who, "GET", place if whole else f"{place}/metadata")
        if self.accepted(answer, key, None, 200):
            assert resource_of(answer) == key.shown(self.now, payload=whole)

    @played(at=TARGETS, who=WRITERS, all_states=st.booleans())
    def versions(self, at: Target, who: str, all_states: bool) -> None:
        key, place = self.found(at)
        answer = self.call(who, "GET", f"{place}/versions?allKeyStates={str(all_states).lower()}")
        if self.accepted(answer, key, key.refuses_versions(self.now, all_states), 200):
            assert answer.json()["resources"] == [{"id": one, "creationDate": m.text(at)} for one, at in key.versions]

    @played(wait=WAITS, number=NUMBERS, states=st.sets(st.sampled_from(ALL.split(","))))
    def list_by_state(self, wait: Wait, number: int, states: set[str]) -> None:
        """choice: Destroyed is listed only when it is asked for."""
        self.found((number, False, wait))
        query = f"?state={','.join(sorted(states))}" if states else ""
        wanted = {int(state) for state in states} or {m.ACTIVE, m.SUSPENDED, m.DEACTIVATED}
        expected = {key.id for key in self.there() if key.state(self.now) in wanted}
        found = self.call("writer", "GET", f"/keys{query}").json()["resources"]
        assert {one["id"] for one in found} == expected
        assert self.call("writer", "HEAD", f"/keys{query}").headers["Key-Total"] == str(len(expected))

    @played(wait=WAITS, number=NUMBERS, jobs=st.permutations(["expiry", "rotation", "purge"]))
    def run_jobs(self, wait: Wait, number: int, jobs: list[str]) -> None:
        """Each twice: what was due is done once."""
        self.found((number, False, wait))
        for job in jobs:
            due = {"expiry": self.expired, "rotation": self.due, "purge": self.overdue}[job]()
            assert self.service.services.jobs.due()[job] == len(due)
            run = getattr(
                self.service.services.jobs, {"expiry": "expire_due", "rotation": "rotate_due"}.get(job, "purge_due")
            )
            for wanted in (len(due), 0):
                done = run(lambda: True)
                assert (done.changed, done.failed) == (wanted, 0)
            for key in due:
                if job == "expiry":
                    key.expire(self.now)
                elif job == "rotation":
                    self.rotated(key)
                else:
                    key.purged = True

    @played(times=12, number=NUMBERS, which=st.integers(0, 7), side=SIDES, who=MANAGERS)
    def at_a_boundary(self, number: int, which: int, side: timedelta, who: str) -> None:
        """What a boundary is about, there or one tick beside it."""
        key, _ = self.found((number, False, None))
        moments = [] if key.purged else self.moments(key, side)
        if not moments:
            return
        moment, about = moments[which % len(moments)]
        self.clock.move(moment)
        here: Target = (0, False, None)
        if about == "run_jobs":
            self.run_jobs(None, 0, ["expiry", "rotation", "purge"])
        elif about == "wrap":
            self.wrap(here, who, older=False, given_by_caller=False)
        elif about == "purge":
            self.purge(here, shown=True)
        elif about == "delete":
            self.delete(here, who, shown=False)
        else:
            getattr(self, about)(here, who, older=False)

    @played(times=3, at=TARGETS, first=WRITERS, second=MANAGERS, side=st.one_of(st.none(), SIDES))
    def delete_by_two(self, at: Target, first: str, second: str, side: timedelta | None) -> None:
        """Or by one who speaks twice; at once, or about when the first word ends."""
        here: Target = (0, False, None)
        self.put_policies(at, None, True)
        self.set_for_deletion(here, first, older=False)
        key, _ = self.found(here)
        if key.word is not None and side is not None:
            self.clock.move(max(self.now, key.word[0] + m.SECOND_WORD + side))
        self.delete(here, second, shown=False)

    @played(times=3, root=st.booleans(), length=st.sampled_from(LENGTHS), side=SIDES, who=MANAGERS)
    def expire(self, root: bool, length: timedelta, side: timedelta, who: str) -> None:
        """A new key, about when its time ends."""
        before = len(self.keys)
        self.create(root, None, length, "default", [])
        if len(self.keys) > before:
            self.touched = self.keys[-1]
            self.let_pass(length + side)
            self.read((0, False, None), who, whole=True)
            self.wrap((0, False, None), who, older=False, given_by_caller=False)

    @played()
    def restart(self) -> None:
        self.service.restart()

    @rule(moves=st.lists(st.one_of(MOVES), min_size=4, max_size=10))
    def play(self, moves: list[tuple[str, dict[str, Any]]]) -> None:
        """One rule for all: Hypothesis leaves rules out of a run at random, and a life needs most of them."""
        for name, arguments in moves:
            getattr(self, name)(**arguments)


def action(place: str, name: str, older: bool) -> str:
    """Both spellings."""
    return f"{place}?action={name}" if older else f"{place}/actions/{name}"


def wire_policies(rotation: Rotation, two_people: bool | None) -> dict[str, Any]:
    """As members of a body, without what is left out."""
    wanted: dict[str, Any] = {}
    if rotation is not None:
        pairs = zip(("enabled", "interval_month"), rotation, strict=True)
        wanted["rotation"] = {name: value for name, value in pairs if value is not None}
    if two_people is not None:
        wanted["dualAuthDelete"] = {"enabled": two_people}
    return wanted


@pytest.fixture(scope="module")
def world(seed_state: State, tmp_path_factory: pytest.TempPathFactory) -> World:
    directory = tmp_path_factory.mktemp("lifecycle")
    state = seed_state.copy_to(directory / "state")
    roles = {"first": Role.MANAGER, "second": Role.MANAGER, "writer": Role.WRITER, "purger": Role.KEY_PURGE}
    with Service(state) as service, Iam(service) as iam:
        people = {name: iam.somebody() for name in roles}
        for name, role in roles.items():
            iam.grant(people[name].iam_id, role)
    return World(state, people, directory)


def test_no_transition_disagrees_with_the_contract(world: World) -> None:
    Machine.world = world
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
