"""A running service, its administrator, and a database service that is authorized to use its keys."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from hsmkms.adopters.client import KeyServiceClient
from hsmkms.adopters.connection import Connection
from hsmkms.store.engine import Database
from tests.api.backstage import age
from tests.support.adopter import DATABASES, Adopter
from tests.support.connections import write_connection
from tests.support.deployment import Service, State
from tests.support.followed import Act, Protected, protect
from tests.support.iam import Iam

_MINUTE, _HOURS = timedelta(minutes=1), timedelta(hours=2)


@pytest.fixture(scope="session")
def service(seed_state: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service that all these tests add to."""
    state = seed_state.copy_to(tmp_path_factory.mktemp("adopters") / "state")
    with Service(state) as service:
        yield service


@pytest.fixture(scope="session")
def admin(service: Service) -> Iterator[httpx.Client]:
    """The administrator's client of the key API."""
    with service.client() as client:
        yield client


@pytest.fixture(scope="session")
def iam(service: Service) -> Iterator[Iam]:
    """The administrator, who grants."""
    with Iam(service) as iam:
        yield iam


@pytest.fixture
def database(iam: Iam) -> Iterator[Adopter]:
    """A source service with a Reader authorization."""
    adopter = Adopter(iam, DATABASES, "local")
    yield adopter
    adopter.http.close()


@pytest.fixture
def connection_file(database: Adopter, service: Service, tmp_path: Path) -> Path:
    """How that service reaches the key service."""
    return write_connection(tmp_path, service, database.who.api_key)


@pytest.fixture
def client(connection_file: Path) -> Iterator[KeyServiceClient]:
    """Its client."""
    with KeyServiceClient(Connection.read(connection_file)) as client:
        yield client


@pytest.fixture(scope="session")
def database_of(service: Service) -> Iterator[Database]:
    """The service's database, for moving moments into the past."""
    database = Database(service.database_url)
    yield database
    database.close()


@pytest.fixture
def act(admin: httpx.Client, database_of: Database) -> Act:
    """Do something to a key, which the waits of the contract would forbid so soon."""

    def act(key: str, action: str) -> None:
        if action == "enable":
            age(database_of, key, disabled_at=_MINUTE)
        elif action == "restore":
            age(database_of, key, deleted_at=_MINUTE)
        elif action == "rotate" and len(admin.get(f"/keys/{key}/versions").json()["resources"]) > 1:
            age(database_of, key, rotated_at=_HOURS)
        calls = {"delete": ("DELETE", "?force=true"), "restore": ("POST", "/restore")}
        method, path = calls.get(action, ("POST", f"/actions/{action}"))
        answer = admin.request(method, f"/keys/{key}{path}")
        assert answer.is_success, answer.text

    return act


@pytest.fixture
def one(admin: httpx.Client, client: KeyServiceClient, database: Adopter, tmp_path: Path) -> Protected:
    """A box under a key of its own, followed."""
    return protect(admin, client, database, tmp_path)
