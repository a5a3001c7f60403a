"""A service over TLS, for clients that are programs of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.certificates import Authority
from tests.support.deployment import Service, State
from tests.support.foreign_clients import place_for


@pytest.fixture(scope="session")
def tls_service(seed_state: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service under a certificate of the tests' authority, which makes nobody wait before a restore or a purge."""
    directory = tmp_path_factory.mktemp("tls")
    authority = Authority(directory, "authority")
    server = authority.server()
    settings = {
        "HSMKMS_TLS_CERT": str(server.certificate),
        "HSMKMS_TLS_KEY": str(server.key),
        "HSMKMS_SHORTEN_WAITS_FOR_TESTS": "true",
    }
    state = seed_state.copy_to(directory / "state")
    with Service(state, workers=1, tls_ca=str(authority.file), **settings) as service:
        yield service


@pytest.fixture
def place(tls_service: Service) -> dict[str, str]:
    """Variables that lead a program to an instance of its own."""
    return place_for(tls_service)
