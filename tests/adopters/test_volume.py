"""A volume and `run` when something is wrong: with the volume, the key service, the file system or the wrapper."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hsmkms.adopters.client import CiphertextRefused, KeyRefused, KeyServiceAway
from hsmkms.adopters.core.dek_file import DekFileInvalid, WrappedDekFile
from hsmkms.adopters.volume import operations
from hsmkms.adopters.volume.choice import aes_driver, is_hardware
from hsmkms.adopters.volume.layout import Volume, VolumeRefused, is_locked
from hsmkms.adopters.volume.outside import DataOutside, require_inside
from hsmkms.adopters.volume.status import describe
from tests.support.adopter import Adopter
from tests.support.connections import write_connection
from tests.support.deployment import PROGRAM, Service, create_key
from tests.support.front import Front
from tests.support.ports import free_port
from tests.support.volumes import WAIT_S, Run, holds, make, opened, place, require_fuse, wait_for

SERVER = (
    "sh",
    "-c",
    'trap "echo hup >> told" HUP; trap "exit 7" USR1; trap "echo term >> told; exit 0" TERM;'
    "echo started >> told; while :; do sleep 0.05 & wait $!; done",
)
"""A server that writes down what it is told."""


@pytest.fixture
def directory() -> Iterator[Path]:
    require_fuse()
    with place() as directory:
        yield directory


@pytest.fixture
def front(service: Service) -> Iterator[Front]:
    with Front(service.port) as front:
        yield front


@pytest.fixture
def volume(
    admin: httpx.Client, service: Service, database: Adopter, front: Front, directory: Path, tmp_path: Path
) -> Volume:
    """A volume whose way to the key service can be cut."""
    file = write_connection(tmp_path, service, database.who.api_key, timeout_s=2)
    file.write_text(file.read_text().replace(str(service.port), str(front.port)))
    return make(directory / "one", file, create_key(admin), database.crn("one"))


def told(volume: Volume) -> list[str]:
    with contextlib.suppress(OSError):
        return (volume.mount / "told").read_text().split()
    return []


def condition(volume: Volume) -> str:
    with contextlib.suppress(OSError):
        return str(json.loads(volume.status_file.read_text())["condition"])
    return ""


def monitored(port: int, path: str) -> tuple[int, str]:
    answer = httpx.get(f"http://127.0.0.1:{port}{path}")
    return answer.status_code, answer.text


def processes(volume: Volume, name: str) -> list[int]:
    """Processes of a name whose command line has the volume's directory, or that work in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            here = str(volume.directory).encode() in (process / "cmdline").read_bytes()
            here = here or Path(os.readlink(process / "cwd")) == volume.mount
            if here and (process / "comm").read_text().strip() == name:
                found.append(int(process.name))
    return found


@pytest.mark.alone
def test_run_forwards_signals_survives_kills_and_takes_the_exit_code(volume: Volume, front: Front) -> None:
    with Run(volume, *SERVER) as run:
        run.wait_until("started", lambda: told(volume) == ["started"])
        _require_no_secret_in_sight(volume, run)
        with pytest.raises(VolumeRefused, match="Another process"):
            operations.open_(volume)
        with pytest.raises(VolumeRefused, match=rf"`run` \(process {run.process.pid}\) serves"):
            operations.close(volume)
        with Run(volume, *SERVER) as second:
            assert second.process.wait(WAIT_S) == 1
        assert "Another process" in second.log.read_text().splitlines()[-1]
        run.process.send_signal(signal.SIGHUP)
        run.wait_until("told", lambda: told(volume) == ["started", "hup"])
        (filesystem,) = processes(volume, "gocryptfs")
        os.kill(filesystem, signal.SIGKILL)
        run.wait_until("started anew", lambda: told(volume) == ["started", "hup", "started"])
        assert processes(volume, "gocryptfs") != [filesystem]
        assert run.end(signal.SIGUSR1) == 7
        assert not run.is_open
    with Run(volume, *SERVER) as run:
        run.wait_until("started", lambda: told(volume)[-1:] == ["started"])
        run.process.kill()
        run.process.wait()
        closed_s = wait_for("closed", lambda: not (run.is_open or processes(volume, "gocryptfs")), 30)
        assert closed_s < 10
        # What the server itself had started holds the lock too, a moment longer.
        wait_for("stopped", lambda: not is_locked(volume), 30)
        assert not processes(volume, "sh")
    with opened(volume):
        assert told(volume)[:3] == ["started", "hup", "started"]


def _require_no_secret_in_sight(volume: Volume, run: Run) -> None:
    """The DEK is in no argument, environment or file."""
    dek = WrappedDekFile.read(volume.dek_file)
    with operations.client_of(volume) as client:
        secret = client.unwrap(dek.key_id, dek.ciphertext, dek.aad).plaintext.reveal()
    needles = (secret, secret.hex().encode())
    pids = [run.process.pid, *processes(volume, "gocryptfs"), *processes(volume, "sh")]
    assert len(pids) == 3
    for pid in pids:
        for name in ("cmdline", "environ"):
            assert not any(needle in Path(f"/proc/{pid}/{name}").read_bytes() for needle in needles)
        assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
    assert not any(holds(volume.directory, needle) for needle in needles)
    assert not any(needle in run.log.read_bytes() for needle in needles)


@pytest.mark.slow
@pytest.mark.alone
def test_the_key_service_away_in_the_middle_and_at_the_start(volume: Volume, front: Front) -> None:
    port = free_port()
    with Run(volume, *SERVER, options=("--away-limit-s", "12", "--metrics-port", str(port))) as run:
        run.wait_until("open", lambda: condition(volume) == "open" and told(volume) == ["started"])
        assert monitored(port, "/healthz") == (200, "open\n")
        assert 'hsmkms_adopter_key_service_away{resource="crn:' in monitored(port, "/metrics")[1]
        front.cut()
        run.wait_until("away", lambda: condition(volume) == "open, key service away")
        assert run.is_open
        assert monitored(port, "/healthz") == (200, "open, key service away\n")
        run.wait_until("locked", lambda: condition(volume) == "locked, key service away")
        assert not run.is_open
        assert monitored(port, "/healthz") == (503, "locked, key service away\n")
        assert "does not answer" in str(describe(volume)["reason"])
        assert b"No word of the key service" in run.log.read_bytes()
        front.restore()
        run.wait_until("open again", lambda: told(volume) == ["started", "term", "started"])
        assert run.end(signal.SIGTERM) == 0
    front.cut()
    with Run(volume, *SERVER) as refused:
        assert refused.process.wait(WAIT_S) == 1
    assert "does not answer" in refused.log.read_text().splitlines()[-1]


def test_what_is_made_is_shown_and_removed(volume: Volume, admin: httpx.Client) -> None:
    dek = WrappedDekFile.read(volume.dek_file)
    assert describe(volume)["condition"] == "closed"
    with opened(volume) as data:
        (data / "row").write_text("a row of the bank")
        assert describe(volume)["condition"] == "open, key not followed"
        with pytest.raises(VolumeRefused, match="Another process"):
            operations.remove(volume)
    assert not any(volume.mount.iterdir())
    assert not holds(volume.cipher, b"a row of")
    assert len(admin.get(f"/keys/{dek.key_id}/registrations").json()["resources"]) == 1
    with pytest.raises(VolumeRefused, match="holds a volume already"):
        make(volume.directory, volume.connection_file, dek.key_id, dek.resource_crn)
    operations.remove(volume)
    assert admin.get(f"/keys/{dek.key_id}/registrations").json()["resources"] == []
    with pytest.raises(VolumeRefused, match="is no volume"):
        Volume.read(volume.directory)


def test_a_volume_is_ready_when_it_is_said_to_be_open(volume: Volume) -> None:
    """gocryptfs looks into its mount once it is there; who writes at that moment would wait for ever, and it too."""
    for turn in range(15):
        with opened(volume) as data:
            (data / str(turn)).touch()


def test_the_wrapped_dek_of_another_volume(
    volume: Volume, admin: httpx.Client, database: Adopter, directory: Path
) -> None:
    other = make(directory / "two", volume.connection_file, create_key(admin), database.crn("two"))
    shutil.copy(other.dek_file, volume.dek_file)
    with pytest.raises(VolumeRefused, match="of another volume"):
        operations.open_(volume)
    mixed = WrappedDekFile.read(other.dek_file).model_copy(update={"resource_crn": database.crn("one")})
    mixed.write(volume.dek_file)
    with pytest.raises(CiphertextRefused):
        operations.open_(volume)
    volume.dek_file.write_bytes(b"")
    with pytest.raises(DekFileInvalid, match="is empty"):
        operations.open_(volume)
    assert not any(volume.mount.iterdir())


def test_nothing_is_left_of_a_volume_that_cannot_be_made(
    volume: Volume, admin: httpx.Client, database: Adopter, directory: Path, front: Front
) -> None:
    key, refused = create_key(admin), directory / "refused"
    foreign = database.crn("x").replace(database.prefix.split(":")[7], "00000000-0000-4000-8000-000000000000")
    with pytest.raises(KeyRefused, match="RESOURCE_OWNER_ERR"):
        make(refused, volume.connection_file, key, foreign)
    elsewhere = "crn:v1:bluemix:public:kms:local:a/other:00000000-0000-4000-8000-000000000000:key:" + key
    with pytest.raises(KeyRefused, match="No authorization for this key"):
        make(refused, volume.connection_file, elsewhere, database.crn("x"))
    with pytest.raises(VolumeRefused, match="no user"):
        make(refused, volume.connection_file, key, database.crn("x"), "nobody-of-this-name")
    assert not refused.exists()
    refused.mkdir()
    (refused / "volume.json.new").mkdir()  # The last step cannot be done.
    with pytest.raises(OSError, match="directory"):
        make(refused, volume.connection_file, key, database.crn("x"))
    assert [path.name for path in refused.iterdir()] == ["volume.json.new"]
    assert admin.get(f"/keys/{key}/registrations").json()["resources"] == []
    shutil.rmtree(refused)
    front.cut()
    with pytest.raises(KeyServiceAway):
        make(refused, volume.connection_file, key, database.crn("x"))
    assert not refused.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["told to end", "killed"])
def test_an_end_while_it_unlocks_leaves_nothing_open(volume: Volume, number: int) -> None:
    with Run(volume, *SERVER) as run:
        run.wait_until("unlocking", lambda: bool(processes(volume, "gocryptfs")))
        assert run.end(number) in (0, -signal.SIGKILL)
        wait_for("closed", lambda: not (run.is_open or is_locked(volume) or processes(volume, "sh")))
    assert not processes(volume, "gocryptfs")
    with opened(volume):
        pass


def test_killed_while_it_mounts_leaves_nothing_open(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What gocryptfs has mount for it goes on after its end: on a busy host, so late that the guard had looked."""
    programs, asked, go_on = tmp_path / "bin", tmp_path / "asked", tmp_path / "go-on"
    programs.mkdir()
    slow = programs / "fusermount3"
    wait = f'[ "$1" = -u ] || {{ : > {asked}; until [ -e {go_on} ]; do sleep 0.02; done; }}'
    slow.write_text(f'#!/bin/sh\n{wait}\nexec {shutil.which("fusermount3")} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with Run(volume, *SERVER) as run:
        run.wait_until("mounting", asked.exists)
        run.process.kill()
        run.process.wait()
        wait_for("the guard has done what it can", lambda: not processes(volume, Path(sys.executable).name))
        go_on.touch()
        wait_for("closed", lambda: not (is_locked(volume) or processes(volume, slow.name)))
        assert not run.is_open


@pytest.mark.slow
def test_killed_at_any_moment_of_unlocking_it_leaves_nothing_open(volume: Volume) -> None:
    """gocryptfs is told of its wrapper's end before it can listen, or while it waits for its own mount's answer."""
    moments = random.Random(9)
    for _ in range(30):
        with Run(volume, *SERVER) as run:
            run.wait_until("unlocking", lambda: bool(processes(volume, "setpriv") or processes(volume, "gocryptfs")))
            time.sleep(moments.uniform(0, 0.06))
            run.process.kill()
            run.process.wait()
            wait_for("closed", lambda: not (run.is_open or is_locked(volume) or processes(volume, "sh")), 30)
        assert not processes(volume, "gocryptfs")


def test_status_of_what_died_and_of_what_is_damaged(volume: Volume, tmp_path: Path) -> None:
    with Run(volume, *SERVER) as run:
        run.wait_until("open", lambda: condition(volume) == "open")
        assert describe(volume)["condition"] == "open"
        run.process.kill()
        run.process.wait()
        wait_for("closed", lambda: not is_locked(volume))
    found = json.loads(volume.status_file.read_text())
    assert (found["condition"], describe(volume)["condition"]) == ("open", "closed")
    # Its number is another process's by now, which began at another time.
    volume.status_file.write_text(json.dumps({**found, "pid": os.getpid()}))
    assert describe(volume)["condition"] == "closed"
    with opened(volume):
        assert describe(volume)["condition"] == "open, key not followed"
    damaged = tmp_path / "dek.json"
    damaged.write_text("{")
    shown = subprocess.run(
        [str(PROGRAM), "adopt", "status", "--json", str(damaged), str(volume.dek_file), str(volume.directory)],
        capture_output=True,
        check=False,
    )
    rows = json.loads(shown.stdout)
    assert (shown.returncode, [row["condition"] for row in rows]) == (1, ["unreadable", "at rest", "closed"])
    assert "damaged" in rows[0]["reason"]


def test_a_mount_point_in_use_is_not_taken(volume: Volume, admin: httpx.Client, database: Adopter) -> None:
    key, mount = create_key(admin), volume.directory / "full"
    mount.mkdir()
    (mount / "something").touch()
    wanted = Volume(volume.directory.parent / "three", "auto", mount, volume.connection_file)
    with pytest.raises(VolumeRefused, match="is not empty"):
        operations.create(wanted, key, database.crn("three"))
    assert (mount / "something").exists()


def test_data_outside_is_named(tmp_path: Path) -> None:
    mount, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (mount / "pg_tblspc").mkdir(parents=True)
    elsewhere.mkdir()
    (mount / "inner").symlink_to(mount / "pg_tblspc")
    require_inside(mount, None, [mount / "pg_tblspc"])
    (mount / "pg_tblspc" / "16384").symlink_to(elsewhere)
    with pytest.raises(DataOutside, match=r"pg_tblspc/16384 leads to .*/elsewhere"):
        require_inside(mount, None)
    (mount / "pg_tblspc" / "16384").unlink()
    with pytest.raises(DataOutside, match="elsewhere is not on it"):
        require_inside(mount, None, [elsewhere])


@pytest.mark.parametrize(
    ("crypto", "driver", "hardware"),
    [
        ("name         : aes\ndriver       : aes-generic\npriority     : 100\n", "aes-generic", False),
        (
            "name         : xts(aes)\ndriver       : xts(ecb(aes-generic))\npriority     : 100\n\n"
            "name         : xts(aes)\ndriver       : xts-aes-aesni\npriority     : 401\n",
            "xts-aes-aesni",
            True,
        ),
        ("", None, False),
    ],
    ids=["software", "hardware", "none"],
)
def test_the_aes_driver_is_read(crypto: str, driver: str | None, hardware: bool) -> None:
    assert aes_driver(crypto) == driver
    assert is_hardware(driver) is hardware
