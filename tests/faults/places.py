"""Services under load, each with what its faults take hold of."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from hsmkms.domain.access import Role
from tests.support.deployment import Service, State
from tests.support.disks import FailingDisk, SmallDisk, failing_disk, small_disk
from tests.support.iam import Iam
from tests.support.injector import Injector
from tests.support.load import Load, seed_of_today
from tests.support.postgresql import PostgresServer

CLIENTS: Final = 8
WORKERS: Final = 2
CALL_TIMEOUT_S: Final = 2.0
"""How long a call of the token may take; a worker that hangs is noticed after that and a tenth."""
FAKETIME: Final = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


@dataclass
class Place:
    """A running service, its clients, and what its faults take hold of: None where no fault of the place does."""

    service: Service
    load: Load
    audit: Path
    injector: Injector | None = None
    audit_full: SmallDisk | None = None
    audit_fails: FailingDisk | None = None
    database_full: SmallDisk | None = None
    database_fails: FailingDisk | None = None
    clock: Path | None = None
    primary: PostgresServer | None = None
    standby: PostgresServer | None = None


@contextlib.contextmanager
def _serve(
    state: State, settings: dict[str, str], *, clients: int = CLIENTS, seed: int | None = None, purges: bool = False
) -> Iterator[Place]:
    """The service with settings, and clients that begin to call it."""
    if seed is None:
        seed = seed_of_today()
        print("seed", seed)
    settings = {
        "HSMKMS_SHORTEN_WAITS_FOR_TESTS": "true",
        "HSMKMS_TOKEN_CALL_TIMEOUT_S": str(CALL_TIMEOUT_S),
        "HSMKMS_AUDIT_CHECKPOINT_S": "1",
        **settings,
    }
    with Service(state, workers=WORKERS, tls_ca="", **settings) as service:
        if purges:
            with Iam(service) as iam:
                iam.grant(iam.iam_id, Role.KEY_PURGE)
        load = Load(lambda: [service.url], state.api_key, state.instance_id, clients=clients, seed=seed, purges=purges)
        audit = Path(settings.get("HSMKMS_AUDIT_DIR", state.path / "audit"))
        service.wait_until_all_serve()
        with load:
            yield Place(service, load, audit)
            load.stop()


@contextlib.contextmanager
def token_place(state: State, injector: Injector, **settings: str) -> Iterator[Place]:
    """Two workers whose token has faults."""
    environment = {"HSMKMS_PKCS11_MODULE": str(injector.library), **injector.environment, **settings}
    injector.count_calls()
    with _serve(state, environment) as place:
        place.injector = injector
        yield place


@contextlib.contextmanager
def network_token_place(state: State, injector: Injector) -> Iterator[Place]:
    """The same with a token as slow as one in the network, which is called from threads."""
    injector.fail("C_WrapKey", "C_UnwrapKey", "C_CreateObject", wait_ms=3)
    with token_place(state, injector, HSMKMS_TOKEN_CALL_TIMEOUT_S="2") as place:
        yield place


@contextlib.contextmanager
def audit_place(state: State, directory: Path, *, fails: bool) -> Iterator[Place]:
    """A disk for the audit logs alone, which becomes full, or fails."""
    mount = directory / "audit"
    with contextlib.ExitStack() as stack:
        full = None if fails else stack.enter_context(small_disk(mount, 16))
        failing = stack.enter_context(failing_disk(mount, directory / "audit.img")) if fails else None
        place = stack.enter_context(_serve(state, {"HSMKMS_AUDIT_DIR": str(mount / "logs")}))
        place.audit_full, place.audit_fails = full, failing
        yield place


@contextlib.contextmanager
def sqlite_place(state: State, directory: Path, *, fails: bool) -> Iterator[Place]:
    """A disk for the SQLite database alone."""
    mount = directory / "database"
    with contextlib.ExitStack() as stack:
        full = None if fails else stack.enter_context(small_disk(mount, 8))
        failing = stack.enter_context(failing_disk(mount, directory / "database.img")) if fails else None
        url = f"sqlite:///{mount / 'hsmkms.db'}"
        _init_again(state, url)
        place = stack.enter_context(_serve(state, {"HSMKMS_DATABASE_URL": url}))
        place.database_full, place.database_fails = full, failing
        yield place


@contextlib.contextmanager
def clock_place(state: State, directory: Path) -> Iterator[Place]:
    """A service whose clock shows what a file says; its monotonic clock goes on, as with a host that is set."""
    if not FAKETIME.exists():
        pytest.skip("libfaketime is not installed")
    clock = directory / "clock"
    clock.write_text("+0")
    faked = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with _serve(state, faked) as place:
        place.clock = clock
        place.load.clock_moves = True
        yield place


@contextlib.contextmanager
def postgresql_place(state: State) -> Iterator[Place]:
    """Two servers, of which one follows the other."""
    with contextlib.ExitStack() as stack:
        primary = PostgresServer.start()
        stack.callback(primary.stop)
        name = primary.new_database("faults").rpartition("/")[2]
        standby = primary.standby()
        stack.callback(standby.stop)
        both = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        url = f"postgresql://hsmkms@{both}/{name}?target_session_attrs=read-write"
        _init_again(state, url)
        place = stack.enter_context(_serve(state, {"HSMKMS_DATABASE_URL": url}))
        place.primary, place.standby = primary, standby
        yield place


@contextlib.contextmanager
def postgresql_disk_place(state: State) -> Iterator[Place]:
    """A server on a disk that becomes full."""
    with contextlib.ExitStack() as stack:
        # Where the server's user gets to; pytest's directories are its own user's.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hsmkms-full-")))
        directory.chmod(0o755)
        full = stack.enter_context(small_disk(directory / "disk", 160))
        primary = PostgresServer.start(full.mount, "--wal-segsize=1")
        stack.callback(lambda: primary.halt() if primary.runs else None)
        url = primary.new_database("faults")
        _init_again(state, url)
        place = stack.enter_context(_serve(state, {"HSMKMS_DATABASE_URL": url}))
        place.primary, place.database_full = primary, full
        yield place


@contextlib.contextmanager
def soak_place(state: State, directory: Path, injector: Injector, *, clients: int, seed: int) -> Iterator[Place]:
    """Everything at once: token, PostgreSQL, a disk for the audit logs. What cannot be had here is None."""
    with contextlib.ExitStack() as stack:
        primary = PostgresServer.start()
        stack.callback(primary.stop)
        url = primary.new_database("soak")
        _init_again(state, url)
        audit = directory / "audit"
        full = None
        with contextlib.suppress(pytest.skip.Exception):
            full = stack.enter_context(small_disk(audit, 2_048))
        injector.count_calls()
        settings = {
            "HSMKMS_DATABASE_URL": url,
            "HSMKMS_AUDIT_DIR": str(audit / "logs"),
            "HSMKMS_PKCS11_MODULE": str(injector.library),
            # SoftHSM keeps 240 bytes of each object until the module is opened anew: often, so that it does not show.
            "HSMKMS_RECYCLE_AFTER_OBJECTS": "5000",
            "HSMKMS_TOKEN_CALL_TIMEOUT_S": "5",
            **injector.environment,
        }
        place = stack.enter_context(_serve(state, settings, clients=clients, seed=seed, purges=True))
        place.injector, place.primary, place.audit_full = injector, primary, full
        yield place


def _init_again(state: State, url: str) -> None:
    """The deployment in another database."""
    (state.path / "client.env").unlink()
    done = state.run("init", HSMKMS_DATABASE_URL=url)
    assert done.returncode == 0, done.stderr.decode()
