"""A rotation that is cut short at each step, and what else stands between a key and its resource."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hsmkms.adopters.client import Connection, KeyServiceClient
from hsmkms.adopters.core.dek_file import WrappedDekFile
from hsmkms.adopters.core.follower import Condition, Follower
from hsmkms.domain.secrets import SecretBytes
from tests.support.adopter import Adopter
from tests.support.connections import write_connection
from tests.support.deployment import Service
from tests.support.followed import Act, Box, Protected, protect
from tests.support.front import Front
from tests.support.small_disk import fill, small_file_system

DIES = """
import os, signal, sys
from pathlib import Path
from hsmkms.adopters.client import Connection, KeyServiceClient
from hsmkms.adopters.core.follower import Follower
from hsmkms.adopters.core import atomic

class Box:
    is_open = False
    def unlock(self, dek): self.is_open = True
    def lock(self): self.is_open = False

def die(*_): os.kill(os.getpid(), signal.SIGKILL)

moment, replace = sys.argv[3], Path.replace
if moment == "rewrapped":
    atomic.replace = die
elif moment == "written":
    Path.replace = die
else:
    KeyServiceClient.registered_version = die
Follower(KeyServiceClient(Connection.read(Path(sys.argv[1]))), Path(sys.argv[2]), Box()).start()
"""


def registered(admin: httpx.Client, key: str) -> str:
    (found,) = admin.get(f"/keys/{key}/registrations").json()["resources"]
    return str(found["keyVersion"]["id"])


@pytest.mark.parametrize("moment", ["rewrapped", "written", "replaced"])
def test_killed_in_the_middle_of_a_rewrap(
    moment: str, one: Protected, admin: httpx.Client, connection_file: Path, act: Act
) -> None:
    before = WrappedDekFile.read(one.file)
    act(one.key, "rotate")
    script = [sys.executable, "-c", DIES, str(connection_file), str(one.file), moment]
    assert subprocess.run(script, check=False).returncode == -signal.SIGKILL
    left, newest = WrappedDekFile.read(one.file), one.client.key(one.key).version
    assert left.key_version == (newest if moment == "replaced" else before.key_version)
    assert one.client.unwrap(one.key, left.ciphertext, left.aad).plaintext.reveal() == one.plaintext
    assert registered(admin, one.key) == before.key_version
    follower = Follower(one.client, one.file, one.box)
    follower.take(one.news())
    follower.start()
    assert one.box.dek == one.plaintext
    assert WrappedDekFile.read(one.file).key_version == registered(admin, one.key) == newest
    assert follower.reconcile().condition is Condition.OPEN
    assert all(event.acknowledged for event in one.news())


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path, "64k") as place:
        yield place


def test_a_full_disk_delays_the_rewrap_and_its_acknowledgement(
    admin: httpx.Client, client: KeyServiceClient, database: Adopter, small: Path, act: Act
) -> None:
    one = protect(admin, client, database, small)
    one.follower.start()
    before = WrappedDekFile.read(one.file)
    filler = fill(small)
    act(one.key, "rotate")
    one.follower.take(one.news())
    for _ in range(2):
        report = one.follower.reconcile()
        assert (report.condition, report.behind, one.box.dek) == (Condition.OPEN, True, one.plaintext)
        assert "No space left" in report.reason
        assert WrappedDekFile.read(one.file) == before
        assert registered(admin, one.key) == before.key_version
        assert not one.news()[-1].acknowledged
    filler.unlink()
    report = one.follower.reconcile()
    assert (report.condition, report.behind, report.reason) == (Condition.OPEN, False, "")
    assert WrappedDekFile.read(one.file).key_version == registered(admin, one.key) != before.key_version
    assert one.news()[-1].acknowledged


def test_a_service_that_goes_away_between_opening_and_rewrapping(
    one: Protected, service: Service, database: Adopter, tmp_path: Path, act: Act
) -> None:
    """The DEK opened, so the resource stays open; what was due is done once the service is back."""
    act(one.key, "rotate")
    with Front(service.port) as front:
        file = write_connection(tmp_path, service, database.who.api_key, timeout_s=0.5)
        file.write_text(file.read_text().replace(str(service.port), str(front.port)))

        class Cuts(Box):
            def unlock(self, dek: SecretBytes) -> None:
                super().unlock(dek)
                front.cut()

        box = Cuts()
        with KeyServiceClient(Connection.read(file)) as client:
            follower = Follower(client, one.file, box)
            report = follower.start()
            assert (report.condition, report.behind, box.dek) == (Condition.OPEN, True, one.plaintext)
            assert "does not answer" in report.reason
            assert follower.reconcile().condition is Condition.AWAY
            front.restore()
            report = follower.reconcile()
            assert (report.condition, report.behind) == (Condition.OPEN, False)
    assert WrappedDekFile.read(one.file).key_version == one.client.key(one.key).version


def test_a_key_disabled_while_it_is_opened_is_locked_and_acknowledged_once_that_is_seen(
    one: Protected, act: Act
) -> None:
    """Between the look at the key and the rewrap: the version has moved, and the key refuses."""
    act(one.key, "rotate")

    class Disables(Box):
        def unlock(self, dek: SecretBytes) -> None:
            super().unlock(dek)
            act(one.key, "disable")

    box = Disables()
    follower = Follower(one.client, one.file, box)
    follower.take(one.news())
    report = follower.reconcile()
    assert (report.condition, box.is_open) == (Condition.LOCKED, False)
    follower.take(one.news())
    assert follower.reconcile().condition is Condition.LOCKED
    assert one.news()[-1].acknowledged
    with pytest.raises(Exception, match="disabled"):
        follower.start()
    assert not box.is_open


def test_a_registration_that_somebody_took_away_is_made_again(
    one: Protected, admin: httpx.Client, act: Act, database: Adopter
) -> None:
    one.follower.start()
    one.client.deregister(one.key, one.crn)
    assert one.follower.reconcile().condition is Condition.OPEN
    act(one.key, "rotate")
    assert one.follower.reconcile().condition is Condition.OPEN
    assert registered(admin, one.key) == WrappedDekFile.read(one.file).key_version


def test_a_lock_that_failed_is_no_lock_when_the_service_goes_away(one: Protected, act: Act) -> None:
    one.follower.start()
    act(one.key, "disable")
    one.box.stuck = True
    assert one.follower.reconcile().condition is Condition.LOCK_FAILED
    one.client.close()
    assert one.follower.reconcile().condition is Condition.LOCK_FAILED
    one.box.stuck = False
    report = one.follower.reconcile()
    assert (report.condition, one.box.is_open) == (Condition.LOCKED_AWAY, False)
    assert "disabled" in report.reason


def test_events_that_come_while_it_is_looked_are_answered_by_the_next_look(one: Protected, act: Act) -> None:
    one.follower.start()
    conditions = []

    def look() -> None:
        for _ in range(30):
            conditions.append(one.follower.reconcile().condition)

    thread = threading.Thread(target=look)
    thread.start()
    for action in ("rotate", "disable", "enable"):
        act(one.key, action)
    thread.join()
    assert len(conditions) == 30
    assert set(conditions) <= {Condition.OPEN, Condition.LOCKED}
    one.follower.take(one.news()[::-1])
    assert one.follower.reconcile().condition is Condition.OPEN
    assert all(event.acknowledged for event in one.news())
    assert WrappedDekFile.read(one.file).key_version == one.client.key(one.key).version
