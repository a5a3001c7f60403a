"""What all tests stand on: throw-away SoftHSM tokens, a PostgreSQL server, a running service."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.deployment import Service, State, make_state
from tests.support.postgresql import PostgresServer

LONGEST_FIRST = ("properties", "operations", "adopters", "faults", "interop", "ceremony", "api", "token", "unit")
"""Directories of tests in the order in which their files take long, so that no process ends with a long one alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hand out files that take long first; those of a directory that is not named come after the named ones."""
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.relative_to(Path(__file__).parent).parts[0], len(order)))


@pytest.fixture(scope="session")
def seed_state(tmp_path_factory: pytest.TempPathFactory) -> State:
    """An initialised deployment that others are copied from: making a token takes a second."""
    return make_state(tmp_path_factory.mktemp("seed"))


@pytest.fixture
def state(seed_state: State, tmp_path: Path) -> State:
    """A deployment of its own: token, database, instance, administrator."""
    return seed_state.copy_to(tmp_path / "state")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this test run, on a free port of the loopback interface."""
    server = PostgresServer.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def shared_service(seed_state: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service for tests that only add to it."""
    with Service(seed_state.copy_to(tmp_path_factory.mktemp("shared") / "state")) as service:
        yield service


@pytest.fixture
def run_service() -> Iterator[Callable[..., Service]]:
    """Start services that are stopped when the test ends."""
    started: list[Service] = []

    def run(state: State, *, workers: int = 1, **extra: str) -> Service:
        service = Service(state, workers=workers, **extra)
        started.append(service)
        return service.__enter__()

    yield run
    for service in started:
        service.__exit__(None, None, None)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's HSMKMS_* variables must not reach a test."""
    for name in os.environ:
        if name.startswith(("HSMKMS_", "IBM_")):
            monkeypatch.delenv(name)
