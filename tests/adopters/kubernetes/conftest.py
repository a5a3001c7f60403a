"""Clusters: each with a root key of its own, an authorization, and plugins on the nodes that a test asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from hsmkms.store.engine import Database
from tests.api.backstage import age
from tests.support.adopter import Adopter
from tests.support.connections import write_connection
from tests.support.deployment import Service, create_key
from tests.support.iam import Iam
from tests.support.kms_plugin import Kms, KmsPlugin, socket_directory

KUBERNETES = "containers-kubernetes"
MINUTE = timedelta(minutes=1)


@dataclass
class Cluster:
    """A cluster under a root key."""

    service: Service
    admin: httpx.Client
    source: Adopter
    key: str
    directory: Path
    stack: ExitStack
    connection: Path
    _nodes: int = field(default=0)

    @property
    def crn(self) -> str:
        return f"{self.source.prefix}::"

    @property
    def version(self) -> str:
        """The id of the root key's newest version."""
        return str(self.admin.get(f"/keys/{self.key}/metadata").json()["resources"][0]["keyVersion"]["id"])

    def plugin(self, *options: str, connection: Path | None = None, key: str | None = None) -> KmsPlugin:
        """A plugin on a node of its own, not started."""
        self._nodes += 1
        socket = self.directory / f"node{self._nodes}" / "kms.sock"
        socket.parent.mkdir(mode=0o700)
        return KmsPlugin(socket, key or self.key, self.crn, connection or self.connection, *options)

    def start(self, *options: str, connection: Path | None = None) -> KmsPlugin:
        """A plugin on a node of its own, which ends with the test."""
        return self.stack.enter_context(self.plugin(*options, connection=connection))

    def client(self, plugin: KmsPlugin) -> Kms:
        """A client of a plugin."""
        return self.stack.enter_context(plugin.client())

    def expire(self, key: str) -> None:
        """Let a key's expiration date be over."""
        database = Database(self.service.database_url)
        try:
            age(database, key, expires_at=timedelta(days=3650))
        finally:
            database.close()

    def deregister(self) -> None:
        """`hsmkms kubernetes-plugin deregister`."""
        arguments = (f"--key={self.key}", f"--crn={self.crn}", f"--connection={self.connection}")
        done = self.service.state.run("kubernetes-plugin", "deregister", *arguments)
        assert done.returncode == 0, done.stderr.decode()

    def act(self, action: str) -> None:
        """Do something to the root key, which the waits of the contract would forbid so soon."""
        database = Database(self.service.database_url)
        try:
            if action == "enable":
                age(database, self.key, disabled_at=MINUTE)
            elif action == "restore":
                age(database, self.key, deleted_at=MINUTE)
            elif action == "rotate" and len(self.admin.get(f"/keys/{self.key}/versions").json()["resources"]) > 1:
                age(database, self.key, rotated_at=timedelta(hours=2))
        finally:
            database.close()
        calls = {"delete": ("DELETE", "?force=true"), "restore": ("POST", "/restore")}
        method, path = calls.get(action, ("POST", f"/actions/{action}"))
        answer = self.admin.request(method, f"/keys/{self.key}{path}")
        assert answer.is_success, answer.text


@pytest.fixture
def cluster(service: Service, admin: httpx.Client, iam: Iam, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of its own."""
    with make_cluster(service, admin, iam, tmp_path) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def quiet_cluster(
    service: Service, admin: httpx.Client, iam: Iam, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A cluster whose root key nobody touches."""
    with make_cluster(service, admin, iam, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@contextmanager
def make_cluster(service: Service, admin: httpx.Client, iam: Iam, directory: Path) -> Iterator[Cluster]:
    """A cluster, for as long as the block takes."""
    with ExitStack() as stack:
        source = Adopter(iam, KUBERNETES, "local")
        stack.enter_context(source.http)
        sockets = stack.enter_context(socket_directory())
        connection = write_connection(directory, service, source.who.api_key)
        yield Cluster(service, admin, source, create_key(admin, "of a cluster"), sockets, stack, connection)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[Service], Cluster]]:
    """Make a cluster of another service."""
    with ExitStack() as stack:

        def make(service: Service) -> Cluster:
            admin = stack.enter_context(service.client())
            iam = stack.enter_context(Iam(service))
            return stack.enter_context(make_cluster(service, admin, iam, tmp_path))

        yield make
