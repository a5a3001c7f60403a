"""Two processes on one database and one token, several requests on one key at a time: what they answer, and what is
left of the key, is what comes of them in some order, one after the other.

The waits are shortened, so that restore may follow delete and purge may follow both.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from hsmkms.domain.access import Role
from tests.api.refusals import require_refused
from tests.support.deployment import Service, State, create_key
from tests.support.iam import Iam, key_client, log_in
from tests.support.postgresql import PostgresServer
from tests.token.conftest import object_id, pkcs11_tool

POLICY = "application/vnd.ibm.kms.policy+json"
ROUNDS = 60
WRONG_STATE, DELETED, GONE = (409, "KEY_ACTION_INVALID_STATE_ERR"), (410, "KEY_DELETED_ERR"), (404, "KEY_NOT_FOUND_ERR")
Said = tuple[int, str | None]


@dataclass(frozen=True)
class Life:
    """What the order of requests decides: state (0 is purged), versions, whether it takes two, whose word was given."""

    state: int = 1
    versions: int = 1
    two: bool = False
    word: int | None = None

    def after(self, what: str, who: int) -> tuple[Said, Life]:
        """What is said to person 0 or 1, and what is left. With no waits (contract section 3)."""
        if self.state == 0:
            return GONE, self
        if what in ("restore", "purge"):
            if self.state != 5:
                return WRONG_STATE, self
            return ((201, None), replace(self, state=1)) if what == "restore" else ((204, None), replace(self, state=0))
        if self.state == 5:
            return DELETED, self
        if what == "two":
            return (200, None), replace(self, two=True)
        if what == "one":
            return ((400, "INVALID_FIELD_ERR") if self.two else (200, None)), self
        if what == "delete":
            if self.two and self.word in (None, who):
                return (409, "AUTHORIZATIONS_NOT_MET"), self
            return (204, None), replace(self, state=5, word=None)
        if what in ("set", "unset") and not self.two:
            return (409, "NOT_DUAL_AUTH_ERR"), self
        if self.state != (2 if what == "enable" else 1):
            return WRONG_STATE, self
        changes: dict[str, dict[str, Any]] = {
            "disable": {"state": 2},
            "enable": {"state": 1},
            "rotate": {"versions": self.versions + 1},
            "set": {"word": who},
            "unset": {"word": None},
        }
        return (204, None), replace(self, **changes[what])


PATHS = {
    "restore": ("POST", "/restore"),
    "purge": ("DELETE", "/purge"),
    "delete": ("DELETE", ""),
    "two": ("PUT", "/policies"),
    "one": ("PUT", "/policies"),
    "set": ("POST", "/actions/setKeyForDeletion"),
    "unset": ("POST", "/actions/unsetKeyForDeletion"),
    **{name: ("POST", f"/actions/{name}") for name in ("disable", "enable", "rotate")},
}
# What was done before, and what then meets.
MEETINGS = [
    ((), ("delete", "delete", "rotate", "rotate")),
    ((), ("rotate", "delete", "restore", "rotate")),
    ((), ("disable", "enable", "rotate", "delete")),
    ((), ("two", "delete", "one", "rotate")),
    (("delete",), ("restore", "purge", "restore", "purge")),
    (("delete",), ("restore", "rotate", "purge", "delete")),
    (("two",), ("set", "delete", "delete", "unset")),
    (("two", "set"), ("delete", "unset", "delete", "set")),
]


class Nodes:
    """Two services; two Managers who may purge, each with a client of each node."""

    def __init__(self, first: Service, second: Service) -> None:
        self.services = (first, second)
        with Iam(first) as iam:
            people = [iam.somebody() for _ in range(2)]
            for somebody in people:
                iam.grant(somebody.iam_id, Role.MANAGER, Role.KEY_PURGE)
        self.clients = [
            [key_client(service, log_in(service, somebody.api_key)) for service in self.services] for somebody in people
        ]

    def ask(self, key: str, what: str, who: int, node: int) -> Said:
        """One request."""
        method, path = PATHS[what]
        body = None
        if what in ("two", "one"):
            resources = [{"dualAuthDelete": {"enabled": what == "two"}}]
            body = {"metadata": {"collectionType": POLICY, "collectionTotal": 1}, "resources": resources}
        answer = self.clients[who][node].request(method, f"/keys/{key}{path}", json=body)
        if answer.is_success:
            return answer.status_code, None
        return answer.status_code, answer.json()["resources"][0]["reasons"][0]["code"]

    def left(self, key: str, node: int) -> Life:
        """The key as a node shows it, but for whose word it is."""
        client = self.clients[0][node]
        answer = client.get(f"/keys/{key}/metadata")
        if answer.status_code == 404:
            return Life(state=0)
        shown = answer.json()["resources"][0]
        dual = shown["dualAuthDelete"]
        versions = client.get(f"/keys/{key}/versions?allKeyStates=true").json()["resources"]
        return Life(shown["state"], len(versions), dual["enabled"], 0 if dual.get("keySetForDeletion") else None)


@pytest.fixture(scope="module")
def nodes(
    database: str, seed_state: State, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Nodes]:
    state = seed_state.copy_to(tmp_path_factory.mktemp("races") / "state")
    extra = {"HSMKMS_SHORTEN_WAITS_FOR_TESTS": "true"}
    if database == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        extra["HSMKMS_DATABASE_URL"] = server.new_database("races")
        (state.path / "client.env").unlink()
        assert state.run("init", stdin=b"", **extra).returncode == 0
    with Service(state, workers=1, **extra) as first, Service(state, workers=1, **extra) as second:
        found = Nodes(first, second)
        yield found
        for client in itertools.chain(*found.clients):
            client.close()


def visible(life: Life) -> Life:
    """Without what nobody is shown."""
    return Life(state=0) if life.state == 0 else replace(life, word=None if life.word is None else 0)


def orders(start: Life, asked: list[tuple[str, int]]) -> set[tuple[tuple[Said, ...], Life]]:
    """What is said to each, and what is left, in every order."""
    found = set()
    for order in itertools.permutations(range(len(asked))):
        life, said = start, dict[int, Said]()
        for number in order:
            said[number], life = life.after(*asked[number])
        found.add((tuple(said[number] for number in range(len(asked))), visible(life)))
    return found


@pytest.mark.parametrize("meeting", MEETINGS, ids=lambda meeting: "-".join((*meeting[0], "then", *meeting[1])))
def test_some_order_explains_every_race(nodes: Nodes, meeting: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    chance, (before, asked) = random.Random(str(meeting)), meeting
    outcomes = set()
    with ThreadPoolExecutor(len(asked)) as threads:
        for _ in range(ROUNDS // len(MEETINGS)):
            key, start = create_key(nodes.clients[0][0]), Life()
            wrapped = nodes.clients[0][0].post(f"/keys/{key}/actions/wrap").json()
            for what in before:
                said, start = start.after(what, 0)
                assert nodes.ask(key, what, 0, 1) == said
            requests = [(what, chance.randrange(2)) for what in asked]
            together = threading.Barrier(len(asked))

            def ask(number: int, key: str = key, requests: Any = requests, together: Any = together) -> Said:
                together.wait()
                what, who = requests[number]
                return nodes.ask(key, what, who, number % 2)

            answers = tuple(threads.map(ask, range(len(asked))))
            left = nodes.left(key, 0)
            assert left == nodes.left(key, 1)
            assert (answers, left) in orders(start, requests), requests
            outcomes.add((answers, left))
            opened = nodes.clients[1][1].post(f"/keys/{key}/actions/unwrap", json={"ciphertext": wrapped["ciphertext"]})
            if left.state == 1:
                assert opened.json()["plaintext"] == wrapped["plaintext"]
            else:
                require_refused(opened, *{0: GONE, 2: WRONG_STATE, 5: DELETED}[left.state])


def test_nothing_is_left_over(nodes: Nodes) -> None:
    """After all the races: each object has a row, each row an object, and nothing is pending."""
    first = nodes.services[0]
    lines = first.state.run("doctor", stdin=b"", **first.extra).stdout.decode().splitlines()
    # The seed's own instance is in another database, and its sealing key still on the token.
    report = "\n".join(line for line in lines if " sealing)" not in line)
    for trouble in ("object without row", "row without object", "pending", "interrupted"):
        assert trouble not in report, report
    there = pkcs11_tool(first.state, "--list-objects", "--type", "secrkey")
    listed = nodes.clients[0][0].get("/keys?state=1,2,3,5&limit=5000").json()["resources"]
    assert all(object_id(key["keyVersion"]["id"]) in there for key in listed)
    assert listed


def test_nobody_wraps_after_a_key_was_disabled(nodes: Nodes) -> None:
    """Four clients wrap on the node on which the fifth disables: what was asked for after the 204 is refused."""
    for _ in range(5):
        client = nodes.clients[0][0]
        key, disabled = create_key(client), threading.Event()

        def wrap(http: httpx.Client, key: str = key, disabled: Any = disabled) -> int:
            """How many were allowed; what began after the end is not."""
            allowed = 0
            while True:
                late = disabled.is_set()
                status = http.post(f"/keys/{key}/actions/wrap").status_code
                if late:
                    assert status == 409
                    return allowed
                allowed += status == 200

        with ThreadPoolExecutor(4) as threads:
            wrapping = [threads.submit(wrap, nodes.clients[number % 2][0]) for number in range(4)]
            try:
                assert client.post(f"/keys/{key}/actions/disable").status_code == 204
            finally:
                disabled.set()
            assert [one.result() >= 0 for one in wrapping] == [True] * 4
