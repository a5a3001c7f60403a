"""The follower of buckets' keys against the real key service; its buckets are a dictionary here, Swift's elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from hsmkms.adopters.client import Connection, KeyServiceAway, KeyServiceClient
from hsmkms.adopters.core.dek_file import DekFileInvalid, WrappedDekFile
from hsmkms.adopters.objectstorage.bucket import BucketDeks
from hsmkms.adopters.objectstorage.configuration import Account
from hsmkms.adopters.objectstorage.follower import AccountFollower, StorageAway
from hsmkms.adopters.objectstorage.monitor import FollowerMonitor
from hsmkms.adopters.objectstorage.provisioning import KeyNotFound, Provisioner
from hsmkms.store import engine
from tests.adopters.objectstorage.conftest import crn_of
from tests.adopters.objectstorage.test_deks import Clock
from tests.api.backstage import age
from tests.support.adopter import STORAGE, Adopter
from tests.support.connections import write_connection
from tests.support.deployment import Service, create_key
from tests.support.iam import Iam
from tests.support.volumes import act

CACHE_S = 60.0


class Shelf:
    """Buckets in memory; `away` is what Swift is when it does not answer."""

    def __init__(self) -> None:
        self.found: dict[str, BucketDeks | DekFileInvalid] = {}
        self.away = False

    def names(self) -> Iterable[str]:
        self._answer()
        return list(self.found)

    def deks(self, bucket: str) -> BucketDeks | None:
        self._answer()
        found = self.found.get(bucket)
        if isinstance(found, DekFileInvalid):
            raise found
        return found

    def store(self, bucket: str, dek: WrappedDekFile) -> None:
        self._answer()
        self.found[bucket] = BucketDeks((dek,))

    def _answer(self) -> None:
        if self.away:
            raise StorageAway("Swift answers 503.")


@pytest.fixture
def storage(iam: Iam) -> Iterator[Adopter]:
    adopter = Adopter(iam, STORAGE)
    yield adopter
    adopter.http.close()


@pytest.fixture
def account(storage: Adopter, service: Service, tmp_path: Path) -> Account:
    connection = Connection.read(write_connection(tmp_path, service, storage.who.api_key, timeout_s=3))
    return Account("AUTH_a", f"{storage.prefix}::", connection, None, {})


class Scene:
    """A follower, its clock, and buckets that are made as the keymaster makes them."""

    def __init__(self, account: Account) -> None:
        self.account, self.shelf, self.clock = account, Shelf(), Clock()
        self.today = datetime.now(UTC)
        self.provisioner = Provisioner(KeyServiceClient, lambda _: None)
        self.follower = self.another()

    def another(self) -> AccountFollower:
        """As after a start."""
        client = self.provisioner.client(self.account)
        return AccountFollower(client, self.account, self.shelf, CACHE_S, monotonic=self.clock, now=lambda: self.today)

    def bucket(self, name: str, key_crn: str) -> WrappedDekFile:
        dek, _ = self.provisioner.make(self.account, name, key_crn)
        self.shelf.found[name] = BucketDeks((dek,))
        return dek

    def dek(self, name: str) -> WrappedDekFile:
        found = self.shelf.deks(name)
        assert found is not None
        return found.active

    def hear(self) -> None:
        self.follower.listen(0)
        self.follower.answer()


@pytest.fixture
def scene(account: Account) -> Iterator[Scene]:
    scene = Scene(account)
    yield scene
    scene.provisioner.client(account).close()


def words(storage: Adopter) -> list[tuple[str, str, str | None]]:
    """Type, status and answer of all events."""
    events, _ = storage.events()
    return [(event["eventType"], event["status"], event.get("adopterKeyState")) for event in events]


def rotate(admin: httpx.Client, key: str) -> None:
    answer = admin.post(f"/keys/{key}/actions/rotate", json={})
    assert answer.status_code == 204, answer.text


def test_rotated_twice_while_it_was_away(admin: httpx.Client, service: Service, storage: Adopter, scene: Scene) -> None:
    key = create_key(admin)
    before = scene.bucket("b", crn_of(admin, key))
    secret = scene.provisioner.open(scene.account, before).reveal()
    rotate(admin, key)
    database = engine.Database(service.database_url)
    age(database, key, rotated_at=timedelta(hours=2))
    database.close()
    rotate(admin, key)
    scene.hear()
    after = scene.dek("b")
    monitor = FollowerMonitor([scene.follower], scene.clock)
    assert monitor.answer("/healthz")[0] == 503
    scene.follower.look_at_all()
    assert monitor.answer("/healthz")[0] == 200
    assert f'hsmkms_adopter_open{{resource="{after.resource_crn}"}} 1\n' in monitor.answer("/metrics")[1]
    assert 'hsmkms_adopter_events_pending{account="AUTH_a"} 0\n' in monitor.answer("/metrics")[1]
    scene.clock.now += 3601
    assert monitor.answer("/healthz")[0] == 503
    assert after.dek_id == before.dek_id
    assert after.key_version != before.key_version
    assert scene.provisioner.open(scene.account, after).reveal() == secret
    assert scene.provisioner.open(scene.account, before).reveal() == secret
    registered = admin.get(f"/keys/{key}/registrations").json()["resources"][0]
    assert registered["keyVersion"]["id"] == after.key_version
    assert words(storage) == [("rotate", "acknowledged", "DEK_ENABLED")] * 2
    row = scene.follower.rows[before.resource_crn]
    assert (row.condition, row.key_version) == ("open", after.key_version)


def test_killed_between_rewrap_and_word(admin: httpx.Client, storage: Adopter, scene: Scene) -> None:
    key = create_key(admin)
    dek = scene.bucket("b", crn_of(admin, key))
    rotate(admin, key)
    scene.shelf.away = True
    scene.follower.listen(0)
    with pytest.raises(StorageAway):
        scene.follower.answer()
    assert words(storage) == [("rotate", "pending", None)]
    scene.shelf.away = False
    # What was written before the kill is a rewrapped DEK that nobody was told about.
    client, key_id = scene.follower._client.at_key(dek.key_crn)
    scene.shelf.store("b", dek.moved(client.rewrap(key_id, dek.ciphertext, dek.aad)))
    scene.follower = scene.another()
    scene.follower.look_at_all()
    scene.hear()
    assert words(storage) == [("rotate", "acknowledged", "DEK_ENABLED")]


def test_disabling_is_acknowledged_when_no_cache_has_the_dek(
    admin: httpx.Client, storage: Adopter, scene: Scene
) -> None:
    key = create_key(admin)
    scene.bucket("b", crn_of(admin, key))
    act(admin, key, "disable")
    scene.hear()
    scene.clock.now += CACHE_S - 1
    scene.hear()
    assert words(storage) == [("disable", "pending", None)]
    assert scene.follower.pending
    scene.clock.now += 1
    scene.hear()
    assert words(storage) == [("disable", "acknowledged", "DEK_DISABLED")]
    assert not scene.follower.pending
    assert admin.delete(f"/keys/{key}", params={"force": "true"}).status_code == 204
    scene.hear()
    scene.clock.now += CACHE_S
    scene.hear()
    assert words(storage)[-1] == ("delete", "acknowledged", "DEK_DELETED")
    assert next(iter(scene.follower.rows.values())).condition == "locked"


def test_events_twice_and_late(admin: httpx.Client, storage: Adopter, scene: Scene) -> None:
    key = create_key(admin)
    scene.bucket("b", crn_of(admin, key))
    rotate(admin, key)
    act(admin, key, "disable")
    scene.follower.listen(0)
    scene.follower._cursors = dict.fromkeys(scene.follower._cursors, 0)
    scene.follower.listen(0)
    assert len(scene.follower._waiting) == 2
    scene.follower.answer()
    scene.clock.now += CACHE_S
    scene.follower.answer()
    told = words(storage)
    assert [event[0] for event in told] == ["rotate", "disable"]
    assert all(event[1] == "acknowledged" for event in told), told


def test_authorization_removed(admin: httpx.Client, iam: Iam, storage: Adopter, scene: Scene) -> None:
    key = create_key(admin)
    crn = crn_of(admin, key)
    dek = scene.bucket("b", crn)
    iam.revoke(storage.authorization)
    scene.follower.look_at_all()
    assert scene.follower.rows[dek.resource_crn].condition == "locked"
    with pytest.raises(KeyNotFound):
        scene.bucket("c", crn)


def test_registrations_are_mended(admin: httpx.Client, storage: Adopter, scene: Scene) -> None:
    key = create_key(admin)
    kept, lost = scene.bucket("kept", crn_of(admin, key)), scene.bucket("lost", crn_of(admin, key))
    retained = scene.bucket("retained", crn_of(admin, key))
    scene.shelf.found["retained"] = BucketDeks((retained,), keeps_key=True)
    del scene.shelf.found["lost"]
    # A bucket of the same name was made again under another key, and the first one's registration was left.
    again = create_key(admin)
    other = scene.bucket("kept", crn_of(admin, again))
    scene.shelf.found["kept"] = BucketDeks((kept,))
    scene.follower._client.deregister(key, kept.resource_crn)
    scene.follower._client.deregister(key, retained.resource_crn)
    scene.follower.look_at_all()

    def registered() -> dict[str, bool]:
        found = admin.get(f"/keys/{key}/registrations").json()["resources"]
        return {one["resourceCrn"]: one["preventKeyDeletion"] for one in found}

    wanted = {kept.resource_crn: False, retained.resource_crn: True}
    assert registered() == {**wanted, lost.resource_crn: False}, "its bucket may be about to be made"
    scene.today += timedelta(minutes=11)
    scene.follower.look_at_all()
    assert registered() == wanted
    assert other.resource_crn == kept.resource_crn
    assert not admin.get(f"/keys/{again}/registrations").json().get("resources")


def test_keys_of_another_instance(
    admin: httpx.Client, iam: Iam, service: Service, storage: Adopter, scene: Scene
) -> None:
    there = iam.instance()
    source = storage.prefix.rsplit(":", 1)[1]
    assert iam.authorize(STORAGE, there, serviceInstance=source).status_code == 201
    headers = {"Authorization": admin.headers["Authorization"], "Bluemix-Instance": there}
    with httpx.Client(base_url=admin.base_url, headers=headers) as elsewhere:
        key = create_key(elsewhere)
        before = scene.bucket("b", crn_of(elsewhere, key))
        rotate(elsewhere, key)
        scene.follower.look_at_all()
        assert scene.dek("b").key_version != before.key_version
        scene.hear()
        events = elsewhere.get(f"/keys/{key}/events").json()["resources"]
        assert [event["adopterKeyState"] for event in events] == ["DEK_ENABLED"]


def test_damage_and_absence(admin: httpx.Client, storage: Adopter, scene: Scene, account: Account) -> None:
    good = scene.bucket("good", crn_of(admin, create_key(admin)))
    scene.shelf.found["bad"] = DekFileInvalid("damaged")
    other = scene.bucket("other", crn_of(admin, (key := create_key(admin))))
    scene.shelf.store("other", other.model_copy(update={"ciphertext": good.ciphertext}))
    rotate(admin, key)
    scene.follower.look_at_all()
    conditions = {crn.rsplit(":", 1)[1]: row.condition for crn, row in scene.follower.rows.items()}
    assert conditions == {"good": "open", "bad": "damaged", "other": "damaged"}
    gone: Any = account.connection.model_copy(update={"url": "http://127.0.0.1:9", "timeout_s": 0.3})
    client = KeyServiceClient(gone)
    away = AccountFollower(client, account, scene.shelf, CACHE_S)
    away.look_at_all()
    assert {row.condition for row in away.rows.values()} == {"key service away", "damaged"}
    with pytest.raises(KeyServiceAway):
        away.listen(0)
    client.close()
