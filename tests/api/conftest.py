"""One running service per database: every test of this folder runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from hsmkms.store.engine import Database
from tests.support.deployment import Service, State
from tests.support.iam import Iam
from tests.support.postgresql import PostgresServer


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """Which database."""
    return str(request.param)


@pytest.fixture(scope="session")
def services(
    seed_state: State, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], Service]]:
    """The running service on a database, started when it is first asked for and kept to the end: tests may come in any
    order."""
    running: dict[str, Service] = {}
    with ExitStack() as stack:

        def on(database: str) -> Service:
            if database not in running:
                state = seed_state.copy_to(tmp_path_factory.mktemp(database) / "state")
                extra: dict[str, str] = {}
                if database == "postgresql":
                    server: PostgresServer = request.getfixturevalue("postgres")
                    extra["HSMKMS_DATABASE_URL"] = server.new_database("api")
                    (state.path / "client.env").unlink()
                    done = state.run("init", stdin=b"", **extra)
                    assert done.returncode == 0, done.stderr.decode()
                running[database] = stack.enter_context(Service(state, workers=1, **extra))
            return running[database]

        yield on


@pytest.fixture(scope="session")
def service(database: str, services: Callable[[str], Service]) -> Service:
    """A running service on that database."""
    return services(database)


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[httpx.Client]:
    """The administrator's HTTP client."""
    with service.client() as client:
        yield client


@pytest.fixture(scope="module")
def iam(service: Service) -> Iterator[Iam]:
    """The administrator, who grants."""
    with Iam(service) as iam:
        yield iam


@pytest.fixture(scope="module")
def database_of(service: Service) -> Iterator[Database]:
    """The service's database."""
    database = Database(service.database_url)
    yield database
    database.close()
