"""A running service, its administrator, and a database service that is authorized to use its keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hsmkms.adopters.client import KeyServiceClient
from hsmkms.adopters.connection import Connection
from tests.support.adopter import DATABASES, Adopter
from tests.support.connections import write_connection
from tests.support.deployment import Service, State
from tests.support.iam import Iam


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
