"""No request that an identity can make goes beyond its grants: random grants and random calls against a plain model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from hsmkms.domain.access import Role
from tests.support.deployment import Service, State, create_body
from tests.support.iam import Iam, Somebody

RINGS = ("default", "red", "blue")
SOURCE = "cloud-object-storage"
LETTERS = {"R": Role.READER, "P": Role.READER_PLUS, "W": Role.WRITER, "M": Role.MANAGER, "K": Role.KEY_PURGE}
# What each call on a key needs, by the letters of the roles that give it (additions section 6.1).
KEY_CALLS: dict[tuple[str, str], tuple[str, Any]] = {
    ("GET", ""): ("PWM", None),
    ("GET", "/metadata"): ("RPWM", None),
    ("GET", "/versions"): ("RPWM", None),
    ("POST", "/actions/wrap"): ("RPWM", {}),
    ("POST", "?action=wrap"): ("RPWM", {}),
    ("POST", "/actions/unwrap"): ("RPWM", {"ciphertext": "AAAA"}),
    ("POST", "/actions/rewrap"): ("RPWM", {"ciphertext": "AAAA"}),
    ("POST", "/actions/rotate"): ("WM", {}),
    ("POST", "?action=rotate"): ("WM", {}),
}


Wish = tuple[str, set[str], int | None, str | None, int | None]
Call = tuple[int, int, tuple[str, str], bool, str | None]


@dataclass(frozen=True)
class Key:
    """Where a key is, as the model knows it."""

    id: str
    alias: str
    instance: str
    ring: str


@dataclass(frozen=True)
class Grant:
    """One policy: letters of its roles, and its scope with None for any."""

    policy_id: str
    subject: str
    letters: frozenset[str]
    instance: str | None
    ring: str | None
    key: str | None

    def covers(self, instance: str, ring: str | None, key: str | None) -> bool:
        """Whether a target lies in the scope."""
        pairs = ((self.instance, instance), (self.ring, ring), (self.key, key))
        return all(wanted is None or wanted == found for wanted, found in pairs)


class World:
    """A service with two instances of two rings each, three identities, one of them of object storage, one group."""

    def __init__(self, iam: Iam) -> None:
        self.iam = iam
        self.instances = (iam.service.state.instance_id, iam.instance())
        self.source = iam.somebody(iam.source(SOURCE, "storage-1"))
        self.people = (iam.somebody(), iam.somebody(), self.source)
        self.group = str(iam.http.post("/v2/groups", json={"name": "model"}).json()["id"])
        self.http = {somebody.iam_id: iam.client(somebody) for somebody in self.people}
        self.keys: list[Key] = []
        with iam.service.client() as admin:
            for instance in self.instances:
                headers = {"Bluemix-Instance": instance}
                for ring in RINGS:
                    if ring != "default":
                        assert admin.post(f"/key_rings/{ring}", headers=headers).status_code == 201
                    alias = f"{ring}-alias"
                    body = create_body("model", extractable=False, aliases=[alias])
                    made = admin.post("/keys", json=body, headers={**headers, "X-Kms-Key-Ring": ring})
                    assert made.status_code == 201, made.text
                    self.keys.append(Key(made.json()["resources"][0]["id"], alias, instance, ring))


GRANTS = st.tuples(
    st.sampled_from(["first", "second", "group", "source"]),
    st.sets(st.sampled_from(sorted(LETTERS)), min_size=1, max_size=2),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([None, *RINGS]),
    st.sampled_from([None, None, *range(6)]),
)
CALLS = st.tuples(
    st.integers(0, 2),
    st.integers(0, 5),
    st.sampled_from(sorted(KEY_CALLS)),
    st.booleans(),
    st.sampled_from([None, None, None, *RINGS]),
)


class Machine(RuleBasedStateMachine):
    """Grants come and go; every answer is what the model says."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[str, Grant] = {}
        self.members: set[str] = set()

    @initialize(first=st.lists(GRANTS, min_size=1, max_size=8))
    def some_grants(self, first: list[Wish]) -> None:
        """Each run starts from an account without grants, whatever the last one left."""
        iam = self.world.iam
        for policy in iam.http.get("/v1/policies", params={"account_id": iam.account}).json()["policies"]:
            if policy["subjects"][0]["attributes"][0]["value"] != iam.iam_id:
                iam.revoke(policy["id"])
        for somebody in self.world.people[:2]:
            iam.http.delete(f"/v2/groups/{self.world.group}/members/{somebody.iam_id}")
        for wish in first:
            self.grant(wish)

    @rule(wish=GRANTS)
    def grant_more(self, wish: Wish) -> None:
        self.grant(wish)

    def grant(self, wish: Wish) -> None:
        """Grant, unless the same is granted already."""
        subject, letters, instance, ring, key = wish
        world, iam = self.world, self.world.iam
        guid = None if instance is None else world.instances[instance]
        if subject == "source":
            letters, ring, key, who = {min(letters)}, None, None, "source"
            answer = iam.authorize(SOURCE, guid, LETTERS[min(letters)])
        else:
            who = {"first": world.people[0].iam_id, "second": world.people[1].iam_id, "group": world.group}[subject]
            key_id = None if key is None else world.keys[key].id
            scope = {"serviceInstance": guid, "keyRing": ring, "resource": key_id}
            named = {name: value for name, value in scope.items() if value is not None}
            body = iam.policy(who, *(LETTERS[letter] for letter in sorted(letters)), **named)
            answer = iam.http.post("/v1/policies", json=body)
        if answer.status_code == 409:
            return
        assert answer.status_code == 201, answer.text
        policy_id = str(answer.json()["id"])
        key_id = None if key is None else world.keys[key].id
        self.live[policy_id] = Grant(policy_id, who, frozenset(letters), guid, ring, key_id)

    @rule(number=st.integers(0, 20))
    def revoke(self, number: int) -> None:
        if self.live:
            policy_id = sorted(self.live)[number % len(self.live)]
            self.world.iam.revoke(policy_id)
            del self.live[policy_id]

    @rule(who=st.integers(0, 1), joins=st.booleans())
    def membership(self, who: int, joins: bool) -> None:
        """Join or leave the group."""
        iam_id, place = self.world.people[who].iam_id, f"/v2/groups/{self.world.group}/members"
        if joins:
            body = {"members": [{"iam_id": iam_id, "type": "service"}]}
            assert self.world.iam.http.put(place, json=body).status_code == 207
            self.members.add(iam_id)
        elif iam_id in self.members:
            assert self.world.iam.http.delete(f"{place}/{iam_id}").status_code == 204
            self.members.discard(iam_id)

    @rule(calls=st.lists(CALLS, min_size=8, max_size=16))
    def call_on_keys(self, calls: list[Call]) -> None:
        for call in calls:
            self.call_on_a_key(*call)

    def call_on_a_key(self, who: int, key: int, call: tuple[str, str], by_alias: bool, ring: str | None) -> None:
        """401 without the right on the key; with it, or with one on what was named, anything else."""
        somebody, found = self.world.people[who], self.world.keys[key]
        letters, body = KEY_CALLS[call]
        headers = {"Bluemix-Instance": found.instance} | ({} if ring is None else {"X-Kms-Key-Ring": ring})
        place = f"/keys/{found.alias if by_alias else found.id}{call[1]}"
        answer = self.world.http[somebody.iam_id].request(call[0], place, json=body, headers=headers)
        if ring in (None, found.ring):
            allowed = self._allowed(somebody, letters, found.instance, found.ring, found.id)
        else:
            # A key is not in another ring; who has a right there hears that, nobody else.
            allowed = self._allowed(somebody, letters, found.instance, ring, None)
            assert answer.status_code in (401, 404)
        assert (answer.status_code != 401) is allowed, (call, answer.status_code)

    @rule(who=st.integers(0, 2), instance=st.integers(0, 1), method=st.sampled_from(["GET", "HEAD"]))
    def list_keys(self, who: int, instance: int, method: str) -> None:
        """Exactly the keys of the rings that grants of whole rings reach."""
        somebody, guid = self.world.people[who], self.world.instances[instance]
        http = self.world.http[somebody.iam_id]
        answer = http.request(method, "/keys?limit=5000", headers={"Bluemix-Instance": guid})
        visible = {
            key.id
            for key in self.world.keys
            if key.instance == guid and self._allowed(somebody, "RPWM", guid, key.ring, None)
        }
        if not visible:
            assert answer.status_code == 401
        elif method == "HEAD":
            assert answer.headers["Key-Total"] == str(len(visible))
        else:
            assert {resource["id"] for resource in answer.json()["resources"]} == visible

    @rule(who=st.integers(0, 2), instance=st.integers(0, 1), ring=st.sampled_from([None, *RINGS]))
    def create_nothing(self, who: int, instance: int, ring: str | None) -> None:
        """A create that would fail for another reason; only who may create hears which."""
        somebody, guid = self.world.people[who], self.world.instances[instance]
        headers = {"Bluemix-Instance": guid} | ({} if ring is None else {"X-Kms-Key-Ring": ring})
        body = create_body("x" * 100)
        answer = self.world.http[somebody.iam_id].post("/keys", json=body, headers=headers)
        allowed = self._allowed(somebody, "WM", guid, ring or "default", None)
        assert answer.status_code == (400 if allowed else 401)

    @rule(who=st.integers(0, 2), instance=st.integers(0, 1))
    def rings(self, who: int, instance: int) -> None:
        """Ring calls need a right on the whole instance."""
        somebody, guid = self.world.people[who], self.world.instances[instance]
        http, headers = self.world.http[somebody.iam_id], {"Bluemix-Instance": guid}
        listed = http.get("/key_rings", headers=headers).status_code
        assert (listed == 200) is self._allowed(somebody, "RPWM", guid, None, None)
        deleted = http.delete("/key_rings/default", headers=headers).status_code
        assert deleted == (400 if self._allowed(somebody, "M", guid, None, None) else 401)

    @rule(who=st.integers(0, 2), path=st.sampled_from(["/v1/policies?account_id=x", "/v1/apikeys", "/v2/groups"]))
    def administer(self, who: int, path: str) -> None:
        """No role on keys lets anybody into IAM."""
        headers = {"Authorization": self.world.http[self.world.people[who].iam_id].headers["Authorization"]}
        assert httpx.get(self.world.iam.service.url + path, headers=headers).status_code == 403

    def _allowed(self, somebody: Somebody, letters: str, instance: str, ring: str | None, key: str | None) -> bool:
        if somebody is self.world.source:
            subjects = {"source"}
        else:
            subjects = {somebody.iam_id} | ({self.world.group} if somebody.iam_id in self.members else set())
        return any(
            grant.subject in subjects and grant.letters & set(letters) and grant.covers(instance, ring, key)
            for grant in self.live.values()
        )


@pytest.fixture(scope="module")
def world(seed_state: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    state = seed_state.copy_to(tmp_path_factory.mktemp("model") / "state")
    with Service(state, workers=1) as service, Iam(service) as iam:
        found = World(iam)
        yield found
        for http in found.http.values():
            http.close()


def test_nobody_goes_beyond_the_grants(world: World) -> None:
    Machine.world = world
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
