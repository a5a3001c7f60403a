"""Events: every service with a registration hears of its key, in order, once it asks; and what it says is kept."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import jwt
import pytest
import sqlalchemy

from hsmkms.domain.access import Role
from hsmkms.service.bell import MAX_WAITING
from hsmkms.service.snapshot import MAX_AGE_S
from hsmkms.store.engine import Database
from hsmkms.store.tables import key_event
from tests.api.backstage import age, sign_tokens
from tests.api.refusals import require_refused
from tests.support.adopter import ACKNOWLEDGE, DATABASES, RESOURCE_CRN, Adopter
from tests.support.deployment import Service, create_key
from tests.support.iam import Iam, key_client, log_in

MINUTE, HOURS = timedelta(minutes=1), timedelta(hours=1)


@pytest.fixture
def storage(iam: Iam) -> Iterator[Adopter]:
    adopter = Adopter(iam)
    yield adopter
    adopter.http.close()


@pytest.fixture(scope="module")
def other(service: Service) -> Iterator[httpx.Client]:
    """A client of a second node beside `service`."""
    with Service(service.state, workers=1, **service.extra) as second, second.client() as client:
        yield client


def act(client: httpx.Client, key: str, action: str, correlation_id: str | None = None) -> None:
    calls = {"delete": ("DELETE", "?force=true"), "restore": ("POST", "/restore")}
    method, path = calls.get(action, ("POST", f"/actions/{action}"))
    headers = {} if correlation_id is None else {"Correlation-Id": correlation_id}
    answer = client.request(method, f"/keys/{key}{path}", headers=headers)
    assert answer.status_code in (201, 204), answer.text


def current(client: httpx.Client, key: str) -> str:
    return str(client.get(f"/keys/{key}/metadata").json()["resources"][0]["keyVersion"]["id"])


def test_each_turn_of_a_key_reaches_its_services_in_order(
    client: httpx.Client, iam: Iam, storage: Adopter, database_of: Database
) -> None:
    key, plain = create_key(client), create_key(client)
    storage.register(key, "one")
    bystander = Adopter(iam, DATABASES, "local")
    bystander.register(plain, "elsewhere")
    first, calls = current(client, key), {}
    for action in ("rotate", "disable", "enable", "delete", "restore"):
        calls[action] = str(uuid.uuid4())
        if action == "enable":
            age(database_of, key, disabled_at=MINUTE)
        if action == "restore":
            age(database_of, key, deleted_at=MINUTE)
        act(client, key, action, calls[action])
    second = current(client, key)
    events, cursor = storage.events()
    assert [event["eventType"] for event in events] == ["rotate", "disable", "enable", "delete", "restore"]
    assert [event["keyState"] for event in events] == [1, 2, 1, 5, 1]
    wanted = ["enabled", "disabled", "enabled", "disabled", "enabled"]
    assert [event["requestedKeyState"] for event in events] == wanted
    assert [event["correlationId"] for event in events] == list(calls.values())
    assert first != second
    assert {event["keyVersion"]["id"] for event in events} == {second}
    assert {event["resourceCrn"] for event in events} == {storage.crn("one")}
    assert {event["keyCrn"].rsplit(":", 1)[1] for event in events} == {key}
    assert {event["status"] for event in events} == {"pending"}
    assert storage.events(cursor) == ([], cursor)
    page, middle = storage.events(limit=2)
    assert page == events[:2]
    assert storage.events(middle) == (events[2:], cursor)
    assert bystander.events()[0] == []
    bystander.http.close()


def test_what_is_not_done_is_not_told(client: httpx.Client, storage: Adopter) -> None:
    key = create_key(client)
    storage.register(key, "quiet", preventKeyDeletion=True)
    assert client.post(f"/keys/{key}/actions/enable").status_code == 409
    assert client.delete(f"/keys/{key}?force=true").status_code == 409
    act(client, key, "rotate")
    assert client.post(f"/keys/{key}/actions/rotate").status_code == 409
    assert [event["eventType"] for event in storage.events()[0]] == ["rotate"]


def test_each_registration_has_an_event_of_its_own(client: httpx.Client, iam: Iam, storage: Adopter) -> None:
    key, databases = create_key(client), Adopter(iam, DATABASES, "local")
    names = [f"bucket-{number:04}" for number in range(120)]
    for name in names:
        storage.register(key, name)
    databases.register(key, "node")
    act(client, key, "disable")
    events = storage.events(limit=1000)[0]
    assert sorted(event["resourceCrn"] for event in events) == [storage.crn(name) for name in names]
    assert len({event["eventId"] for event in events}) == len(names)
    assert [event["resourceCrn"] for event in databases.events()[0]] == [databases.crn("node")]
    databases.http.close()


def test_events_are_for_services(client: httpx.Client, iam: Iam, storage: Adopter) -> None:
    require_refused(client.get("/events"), 403, "SERVICE_ONLY_ERR")
    require_refused(client.post("/event_ack"), 403, "SERVICE_ONLY_ERR")
    with iam.client(iam.somebody(iam.source("cloud-object-storage", str(uuid.uuid4())))) as http:
        require_refused(http.get("/events"), 401, None)
    for name, value in (("after", "-1"), ("after", "x"), ("wait", "61"), ("limit", "1001")):
        require_refused(storage.http.get("/events", params={name: value}), 400, "INVALID_QUERY_PARAM_ERR", name)


def until_admitted(http: httpx.Client, cursor: int) -> None:
    """Asks until this node has heard of a service id that another node made: a node may not know for MAX_AGE_S."""
    ends = time.monotonic() + MAX_AGE_S
    while (answer := http.get("/events", params={"after": cursor})).status_code == 401 and time.monotonic() < ends:
        time.sleep(0.05)
    assert answer.status_code == 200, answer.text


def test_who_waits_is_told_at_once(client: httpx.Client, storage: Adopter, other: httpx.Client, iam: Iam) -> None:
    """Whichever node he waits at, and whichever node it happens at."""
    for near, far in ((client, other), (other, client)):
        key = create_key(client)
        storage.register(key, "waited-for")
        _, cursor = storage.events()
        waiting = httpx.Client(base_url=near.base_url, headers=storage.http.headers, timeout=60)
        with waiting, ThreadPoolExecutor(1) as pool:
            until_admitted(waiting, cursor)
            began = time.monotonic()
            asked = pool.submit(waiting.get, "/events", params={"after": cursor, "wait": 60})
            act(far, key, "rotate")
            (event,) = asked.result().json()["resources"]
        assert (event["keyId"], event["eventType"]) == (key, "rotate")
        assert time.monotonic() - began < 30


def test_waiting_ends_empty(storage: Adopter) -> None:
    _, cursor = storage.events()
    began = time.monotonic()
    assert storage.events(cursor, wait=1) == ([], cursor)
    assert time.monotonic() - began >= 1


def test_waiting_ends_with_the_right(client: httpx.Client, iam: Iam, storage: Adopter) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(storage.http.get, "/events", params={"wait": 60})
        assert storage.events() == ([], 0)
        answer = iam.http.delete(f"/v2/policies/{storage.authorization}")
        assert answer.status_code == 204
        require_refused(asked.result(timeout=30), 401, None)


def test_a_server_that_stops_answers_who_waits(service: Service, storage: Adopter) -> None:
    with ThreadPoolExecutor(1) as pool:
        with Service(service.state, workers=1, **service.extra) as second:
            waiting = httpx.Client(base_url=f"{second.url}/api/v2", headers=storage.http.headers, timeout=60)
            asked = pool.submit(waiting.get, "/events", params={"wait": 60})
            # Until the other node holds the request: it is the second one that the node has to answer.
            assert waiting.get("/events").status_code == 200
        assert (asked.result().status_code, second.process.returncode) == (200, 0)
        waiting.close()


def test_waiting_ends_before_the_token_does(service: Service, storage: Adopter) -> None:
    """A waiting request whose token ends is answered, not refused."""
    token = log_in(service, storage.who.api_key)
    header, claims = jwt.get_unverified_header(token), jwt.decode(token, options={"verify_signature": False})
    # Who signs is a process of its own, which may take long to start: the first that then has three seconds left.
    ends = [int(time.time()) + lives_s for lives_s in (6, 12, 24, 48)]
    signed = sign_tokens(service, [(header, claims | {"exp": end - 60}) for end in ends])
    short = next(token for end, token in zip(ends, signed, strict=True) if end - time.time() > 3)
    with key_client(service, short) as http:
        answer = http.get("/events", params={"wait": 60})
        assert (answer.status_code, answer.json()["resources"]) == (200, [])


def test_an_identity_cannot_hold_every_connection(client: httpx.Client, iam: Iam, storage: Adopter) -> None:
    key = create_key(client)
    storage.register(key, "crowd")
    with ThreadPoolExecutor(MAX_WAITING + 1) as pool:
        asked: list[Future[httpx.Response]] = [
            pool.submit(storage.http.get, "/events", params={"wait": 60}) for _ in range(MAX_WAITING + 1)
        ]
        while not any(one.done() for one in asked):
            time.sleep(0.01)
        # Others are not kept from waiting by it.
        another = Adopter(iam)
        assert another.events(wait=1) == ([], 0)
        another.http.close()
        act(client, key, "rotate")
        answers = [one.result() for one in asked]
    assert sorted(answer.status_code for answer in answers) == [200] * MAX_WAITING + [429]
    (refused,) = (answer for answer in answers if answer.status_code == 429)
    assert refused.headers["Retry-After"] == "1"


def test_a_reader_with_a_cursor_misses_nothing(client: httpx.Client, other: httpx.Client, storage: Adopter) -> None:
    """Two nodes write at the same time; numbers become visible in their order, so no event appears behind a cursor."""
    keys = [create_key(client) for _ in range(24)]
    for number, key in enumerate(keys):
        storage.register(key, f"bucket-{number}")

    def turn(number: int) -> None:
        node = (client, other)[number % 2]
        act(node, keys[number], "rotate")
        act(node, keys[number], "disable")

    seen: list[dict[str, Any]] = []
    cursor = 0
    with ThreadPoolExecutor(6) as pool:
        turns = [pool.submit(turn, number) for number in range(len(keys))]
        while len(seen) < 2 * len(keys):
            found, cursor = storage.events(cursor, wait=20, limit=7)
            assert found, [one.exception() for one in turns if one.done()]
            seen += found
    assert storage.events(cursor) == ([], cursor)
    assert len({event["eventId"] for event in seen}) == 2 * len(keys)
    for key in keys:
        assert [event["eventType"] for event in seen if event["keyId"] == key] == ["rotate", "disable"]


def test_acknowledgements(client: httpx.Client, storage: Adopter, database_of: Database) -> None:
    key, elsewhere = create_key(client), create_key(client)
    storage.register(key, "acknowledged")
    first = current(client, key)
    act(client, key, "rotate")
    second = current(client, key)
    (rotated,), cursor = storage.events()
    invalid = (400, "INVALID_FIELD_ERR")
    for answer, refusal in (
        (storage.acknowledge(rotated["eventId"], "DEK_ENABLED"), (*invalid, "rewrappedKeyVersion")),
        (storage.acknowledge(rotated["eventId"], "DONE", second), (*invalid, "adopterKeyState")),
        (storage.acknowledge("nothing", "DEK_ENABLED", second), (*invalid, "eventId")),
        (storage.acknowledge(str(uuid.uuid4()), "DEK_ENABLED", second), (*invalid, "eventId")),
        (storage.acknowledge(rotated["eventId"], "DEK_ENABLED", second, timestamp="now"), (*invalid, "timestamp")),
        (storage.acknowledge(rotated["eventId"], "DEK_ENABLED", first), (422, "KEY_VERSION_INVALID", None)),
        (
            storage.acknowledge(rotated["eventId"], "DEK_ENABLED", current(client, elsewhere)),
            (422, "KEY_VERSION_INVALID", None),
        ),
        (storage.acknowledge(rotated["eventId"], "DEK_DISABLED"), (409, "KEY_ACTION_INVALID_STATE_ERR", None)),
    ):
        require_refused(answer, *refusal)
    assert storage.events()[0][0]["status"] == "pending"
    assert storage.acknowledge(rotated["eventId"], "DEK_ENABLED", second).status_code == 204
    (kept,) = client.get(f"/keys/{key}/events").json()["resources"]
    assert (kept["status"], kept["adopterKeyState"]) == ("acknowledged", "DEK_ENABLED")
    # A second word, perhaps after a lost answer, changes nothing.
    assert storage.acknowledge(rotated["eventId"], "DEK_ENABLED", second).status_code == 204
    assert client.get(f"/keys/{key}/events").json()["resources"] == [kept]

    act(client, key, "disable")
    age(database_of, key, disabled_at=MINUTE)
    act(client, key, "enable")
    disabled, enabled = storage.events(cursor)[0]
    # The service looks at the key, which is active again: both events are answered with what it finds.
    assert storage.acknowledge(disabled["eventId"], "DEK_ENABLED", second).status_code == 204
    assert storage.acknowledge(enabled["eventId"], "DEK_ENABLED", second).status_code == 204
    require_refused(storage.http.post("/event_ack"), 400, "NO_BODY_ERR")
    none = {"metadata": {"collectionType": ACKNOWLEDGE, "collectionTotal": 0}, "resources": []}
    require_refused(storage.http.post("/event_ack", json=none), 400, "BAD_BODY_ERR")


def test_somebody_elses_event_does_not_exist(client: httpx.Client, iam: Iam, storage: Adopter) -> None:
    key, thief = create_key(client), Adopter(iam)
    storage.register(key, "victim")
    act(client, key, "disable")
    (event,) = storage.events()[0]
    stolen = thief.acknowledge(event["eventId"], "DEK_DISABLED")
    unknown = thief.acknowledge(str(uuid.uuid4()), "DEK_DISABLED")
    require_refused(stolen, 400, "INVALID_FIELD_ERR", "eventId")
    assert stolen.json() == unknown.json()
    assert storage.events()[0][0]["status"] == "pending"
    thief.http.close()


def test_not_acknowledged_within_four_hours_is_failed(
    client: httpx.Client, storage: Adopter, database_of: Database
) -> None:
    key = create_key(client)
    storage.register(key, "late")
    act(client, key, "disable")
    (event,) = storage.events()[0]
    with database_of.write() as connection:
        here = key_event.c.id == event["eventId"]
        due_at = connection.execute(sqlalchemy.select(key_event.c.due_at).where(here)).scalar_one()
        moved = sqlalchemy.update(key_event).where(here).values(due_at=due_at - 4 * HOURS)
        connection.execute(moved)
    assert storage.events()[0][0]["status"] == "failed"
    assert client.get(f"/keys/{key}/events").json()["resources"][0]["status"] == "failed"
    # Late is better than never.
    assert storage.acknowledge(event["eventId"], "DEK_DISABLED").status_code == 204
    assert storage.events()[0][0]["status"] == "acknowledged"


def test_the_end_of_a_registration_ends_what_is_awaited_of_it(client: httpx.Client, storage: Adopter) -> None:
    key = create_key(client)
    storage.register(key, "erased")
    storage.register(key, "ended")
    act(client, key, "delete")
    events = {event["resourceCrn"]: event for event in storage.events()[0]}
    erased, ended = events[storage.crn("erased")], events[storage.crn("ended")]
    done = storage.acknowledge(erased["eventId"], "DEK_DELETED", deleteRegistration=True)
    assert done.status_code == 204
    assert storage.write("DELETE", key, ended["resourceCrn"]).status_code == 204
    assert client.get(f"/keys/{key}/registrations").json()["resources"] == []
    assert [event["eventId"] for event in storage.events()[0]] == [erased["eventId"]]


def test_the_older_way_to_confirm_a_deletion(client: httpx.Client, storage: Adopter) -> None:
    key, crn = create_key(client), storage.crn("older")
    storage.register(key, "older")
    act(client, key, "delete")
    body = {
        "metadata": {"collectionType": RESOURCE_CRN, "collectionTotal": 1},
        "resources": [{"resourceCrn": crn}],
    }
    path = f"/keys/{key}/registrations?action=deactivate"
    require_refused(client.post(path, json=body), 403, "SERVICE_ONLY_ERR")
    answer = storage.http.post(path, json=body)
    assert (answer.status_code, answer.json()["resources"][0]["resourceCrn"]) == (200, crn)
    assert storage.events()[0][0]["adopterKeyState"] == "DEK_DELETED"


def test_sync_tells_again(client: httpx.Client, storage: Adopter, database_of: Database) -> None:
    key, standard = create_key(client), create_key(client, extractable=True)
    storage.register(key, "synced")
    act(client, key, "sync")
    refused = client.post(f"/keys/{key}/actions/sync")
    require_refused(refused, 409, "REQ_TOO_EARLY_ERR")
    assert "Sync cannot be performed until at least" in refused.text
    require_refused(client.post(f"/keys/{standard}/actions/sync"), 400, "KEY_ROOT_REQ_ERR")
    told = ["enable"]
    for action in ("rotate", "disable", "delete"):
        act(client, key, action)
        require_refused(client.post(f"/keys/{key}/actions/sync"), 409, "REQ_TOO_EARLY_ERR")
        age(database_of, key, noticed_at=HOURS)
        act(client, key, "sync")
        told += [action, action]
    events = storage.events()[0]
    assert [event["eventType"] for event in events] == told
    assert len({event["eventId"] for event in events}) == len(told)


def test_events_of_keys_out_of_reach_are_passed_over(client: httpx.Client, iam: Iam, service: Service) -> None:
    """An authorization on one key shows the events of that key alone; the cursor goes on all the same."""
    wide = Adopter(iam)
    seen, unseen = create_key(client), create_key(client)
    for number, key in enumerate((unseen, seen, unseen)):
        wide.register(key, f"bucket-{number}")
    act(client, unseen, "disable")
    act(client, seen, "disable")
    assert len(wide.events()[0]) == 3
    iam.revoke(wide.authorization)
    narrow = {"serviceInstance": service.state.instance_id, "resourceType": "key", "resource": seen}
    subject = {"serviceName": "cloud-object-storage", "serviceInstance": wide.prefix.rsplit(":", 1)[1]}
    body = {
        "type": "authorization",
        "subjects": [{"attributes": _attributes({**subject, "accountId": iam.account})}],
        "roles": [{"role_id": "crn:v1:bluemix:public:iam::::serviceRole:Reader"}],
        "resources": [{"attributes": _attributes({"serviceName": "kms", "accountId": iam.account, **narrow})}],
    }
    answer = iam.http.post("/v1/policies", json=body)
    assert answer.status_code == 201, answer.text
    events, cursor = wide.events()
    assert [event["keyId"] for event in events] == [seen]
    assert wide.events(cursor) == ([], cursor)
    wide.http.close()


def _attributes(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def test_a_purge_takes_everything_along(
    client: httpx.Client, iam: Iam, storage: Adopter, database_of: Database
) -> None:
    key = create_key(client)
    storage.register(key, "purged")
    act(client, key, "delete")
    age(database_of, key, deleted_at=5 * HOURS)
    purger = iam.somebody()
    iam.grant(purger.iam_id, Role.KEY_PURGE)
    with iam.client(purger) as http:
        assert http.delete(f"/keys/{key}/purge").status_code == 204
    assert storage.events()[0] == []
    require_refused(client.get(f"/keys/{key}/events"), 404, "KEY_NOT_FOUND_ERR")
