"""A resource is as its key is: whatever comes of the key, its events, the service and the authorization."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from hsmkms.adopters.client import (
    UNAUTHORIZED,
    CiphertextRefused,
    KeyRefused,
    KeyServiceAway,
    KeyServiceClient,
    KeyState,
)
from hsmkms.adopters.connection import Connection
from hsmkms.adopters.core.dek_file import WrappedDekFile
from hsmkms.adopters.core.follower import Condition, Follower
from tests.support.adopter import Adopter
from tests.support.connections import write_connection
from tests.support.deployment import Service
from tests.support.followed import Act, Protected, protect
from tests.support.iam import Iam


def statuses(admin: httpx.Client, key: str) -> list[tuple[str, str | None]]:
    found = admin.get(f"/keys/{key}/events").json()["resources"]
    return [(event["status"], event.get("adopterKeyState")) for event in reversed(found)]


def test_a_life(one: Protected, admin: httpx.Client, act: Act) -> None:
    started = one.follower.start()
    assert (started.condition, one.box.dek) == (Condition.OPEN, one.plaintext)
    said = []
    for action, wanted in (
        ("rotate", Condition.OPEN),
        ("disable", Condition.LOCKED),
        ("enable", Condition.OPEN),
        ("delete", Condition.LOCKED),
        ("restore", Condition.OPEN),
    ):
        act(one.key, action)
        assert one.follower.take(one.news())
        report = one.follower.reconcile()
        assert (report.condition, one.box.is_open) == (wanted, wanted is Condition.OPEN), action
        said.append(report.reason)
    assert one.box.dek == one.plaintext
    assert "disabled" in said[1]
    assert "deleted" in said[3]
    states = ["DEK_ENABLED", "DEK_DISABLED", "DEK_ENABLED", "DEK_DELETED", "DEK_ENABLED"]
    assert statuses(admin, one.key) == [("acknowledged", state) for state in states]


def test_a_rotation_moves_the_file_and_the_registration(one: Protected, admin: httpx.Client, act: Act) -> None:
    one.follower.start()
    before = WrappedDekFile.read(one.file)
    act(one.key, "rotate")
    one.follower.take(one.news())
    report = one.follower.reconcile()
    after = WrappedDekFile.read(one.file)
    newest = one.client.key(one.key).version
    assert (before.key_version, after.key_version, report.key_version) == (started_with(one, admin), newest, newest)
    assert before.dek_id == after.dek_id
    registered = admin.get(f"/keys/{one.key}/registrations").json()["resources"][0]
    assert registered["keyVersion"]["id"] == newest
    assert one.client.unwrap(one.key, after.ciphertext, after.aad).plaintext.reveal() == one.plaintext
    # An older copy still opens: rotating shreds nothing.
    assert one.client.unwrap(one.key, before.ciphertext, before.aad).plaintext.reveal() == one.plaintext


def started_with(one: Protected, admin: httpx.Client) -> str:
    return str(admin.get(f"/keys/{one.key}/versions").json()["resources"][-1]["id"])


def test_two_rotations_and_a_disable_that_nobody_was_told_of(one: Protected, act: Act) -> None:
    act(one.key, "rotate")
    act(one.key, "rotate")
    one.follower.start()
    assert WrappedDekFile.read(one.file).key_version == one.client.key(one.key).version
    act(one.key, "disable")
    assert one.follower.reconcile().condition is Condition.LOCKED
    act(one.key, "enable")
    assert one.follower.reconcile().condition is Condition.OPEN
    # Their events come later, all at once, twice and from the last to the first.
    late = one.news()
    assert [event.type for event in late] == ["rotate", "rotate", "disable", "enable"]
    for events in (late[::-1], late, late[1::-1]):
        one.follower.take(events)
        assert one.follower.reconcile().condition is Condition.OPEN
    assert all(event.acknowledged for event in one.news())
    assert not one.follower.take(one.news())


def test_events_of_others_are_not_answered(
    one: Protected, admin: httpx.Client, database: Adopter, tmp_path: Path, act: Act
) -> None:
    two = protect(admin, one.client, database, tmp_path)
    act(two.key, "disable")
    assert len(two.news()) == 1
    assert not one.follower.take(two.news())
    assert two.follower.take(two.news())


def test_a_start_is_refused_in_words(one: Protected, act: Act) -> None:
    act(one.key, "disable")
    with pytest.raises(KeyRefused, match="disabled"):
        one.follower.start()
    act(one.key, "enable")
    act(one.key, "delete")
    with pytest.raises(KeyRefused, match="deleted"):
        one.follower.start()
    assert not one.box.is_open


def test_a_removed_authorization_locks(one: Protected, iam: Iam, database: Adopter) -> None:
    one.follower.start()
    iam.revoke(database.authorization)
    for _ in range(10_000):
        report = one.follower.reconcile()
        if report.condition is Condition.LOCKED:
            break
    assert UNAUTHORIZED in report.reason
    with pytest.raises(KeyRefused, match="authorization"):
        one.follower.start()


def test_the_dek_of_another_resource_does_not_open_this_one(
    one: Protected, admin: httpx.Client, database: Adopter, tmp_path: Path
) -> None:
    """Another's ciphertext under the same key: the AAD is not its."""
    two = protect(admin, one.client, database, tmp_path)
    foreign = WrappedDekFile.read(two.file)
    mixed = WrappedDekFile.read(one.file).model_copy(
        update={"key_id": foreign.key_id, "ciphertext": foreign.ciphertext}
    )
    mixed.write(one.file)
    with pytest.raises(CiphertextRefused):
        Follower(one.client, one.file, one.box).start()
    assert not one.box.is_open


def test_the_service_away_is_survived_for_a_while(
    one: Protected, service: Service, database: Adopter, tmp_path: Path
) -> None:
    file = write_connection(tmp_path, service, database.who.api_key, timeout_s=0.3)
    now = [0.0]
    with KeyServiceClient(Connection.read(file)) as client:
        follower = Follower(client, one.file, one.box, away_limit_s=100, monotonic=lambda: now[0])
        follower.start()
        _cut_off(client)
        now[0] = 99
        assert (follower.reconcile().condition, one.box.is_open) == (Condition.AWAY, True)
        now[0] = 100
        report = follower.reconcile()
        assert (report.condition, one.box.is_open) == (Condition.LOCKED_AWAY, False)
        assert "No word" in report.reason
        with pytest.raises(KeyServiceAway):
            follower.start()
    # It comes back by itself once the service does.
    follower = Follower(one.client, one.file, one.box)
    assert (follower.reconcile().condition, one.box.is_open) == (Condition.OPEN, True)


def _cut_off(client: KeyServiceClient) -> None:
    """Close its connections for good: nothing is sent from now on."""
    client.close()


def test_what_cannot_be_locked_is_said_and_tried_again(one: Protected, act: Act) -> None:
    one.follower.start()
    act(one.key, "disable")
    one.box.stuck = True
    one.follower.take(one.news())
    assert one.follower.reconcile().condition is Condition.LOCK_FAILED
    assert not one.news()[-1].acknowledged
    one.box.stuck = False
    report = one.follower.reconcile()
    assert (report.condition, report.key_state) == (Condition.LOCKED, KeyState.SUSPENDED)
    assert one.news()[-1].acknowledged
