"""The code that kube-apiserver runs (k8s.io/apiserver: EncryptionConfiguration, KMS v2 envelope, health checks) over a
real etcd and this plugin, by the program in `kubernetes/`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.adopters.kubernetes.conftest import Cluster, make_cluster
from tests.support.api_server import ApiServer, Refused
from tests.support.deployment import Service
from tests.support.etcd import Etcd
from tests.support.front import Front
from tests.support.golang import go
from tests.support.iam import Iam
from tests.support.kms_plugin import KmsPlugin, eventually

MODULE = Path(__file__).parent / "kubernetes"
MARKER = b"the password of the bank"
SECRETS = [f"/registry/secrets/default/{number}" for number in range(100)]
NOTICED_S = 60
"""The API server asks every 20 s when it is asked for its health."""


@dataclass
class Run:
    """A cluster with its plugin, and an API server that has written secrets."""

    cluster: Cluster
    plugin: KmsPlugin
    front: Front
    server: ApiServer
    configuration: Path
    etcd: Etcd

    def stored(self, path: str) -> bytes:
        return self.etcd.get(f"{self.cluster.key}{path}")

    def write(self, path: str, server: ApiServer | None = None) -> None:
        data = MARKER + path.encode()
        self.etcd.put(f"{self.cluster.key}{path}", (server or self.server).write(path, data))

    def read(self, server: ApiServer) -> set[bool]:
        """Read all secrets; whether they are stale."""
        found = {path: server.read(path, self.stored(path)) for path in SECRETS}
        assert all(read.data == MARKER + path.encode() for path, read in found.items())
        return {read.stale for read in found.values()}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program in `kubernetes/`. Built for the first time it takes two minutes of two cores."""
    built = tmp_path_factory.mktemp("kubernetes") / "api-server"
    go("build", "-o", built, ".", where=MODULE)
    return built


@pytest.fixture(scope="module")
def runs(program: Path, shared_service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """Three clusters, each of which something happens to, at once: what notices it takes its time."""
    with ExitStack() as stack:
        admin = stack.enter_context(shared_service.client())
        iam = stack.enter_context(Iam(shared_service))
        etcd = stack.enter_context(Etcd())

        def run(name: str) -> Run:
            directory = tmp_path_factory.mktemp(name)
            front = stack.enter_context(Front(shared_service.port))
            cluster = stack.enter_context(make_cluster(shared_service, admin, iam, directory))
            text = cluster.connection.read_text()
            cluster.connection.write_text(text.replace(shared_service.url, f"http://127.0.0.1:{front.port}"))
            plugin = cluster.start()
            configuration = _configuration(cluster, plugin, directory)
            server = stack.enter_context(ApiServer(program, configuration))
            made = Run(cluster, plugin, front, server, configuration, etcd)
            assert server.health() == ""
            for path in SECRETS:
                made.write(path)
            assert made.read(server) == {False}
            return made

        runs = {name: run(name) for name in ("rotated", "disabled", "away")}
        assert etcd.holds(b"k8s:enc:kms:v2:hsmkms:")
        assert not etcd.holds(MARKER)
        yield runs


def _configuration(cluster: Cluster, plugin: KmsPlugin, directory: Path) -> Path:
    """The EncryptionConfiguration that `install --print` prints."""
    options = (f"--key={cluster.key}", f"--crn={cluster.crn}", f"--connection={cluster.connection}")
    done = cluster.service.state.run("kubernetes-plugin", "install", "--print", *options, f"--socket={plugin.socket}")
    assert done.returncode == 0, done.stderr.decode()
    file = directory / "encryption.yaml"
    file.write_text(done.stdout.decode().split("\n# /etc/systemd")[0])
    return file


def test_what_the_api_server_does(runs: dict[str, Run], program: Path) -> None:
    rotated, disabled, away = runs["rotated"], runs["disabled"], runs["away"]
    rotated.cluster.act("rotate")
    disabled.cluster.act("disable")
    away.front.cut()

    # Rotated: old secrets are read and known to be stale; written anew they are not. A plugin that is killed meanwhile
    # and started again makes no difference, nor does an API server that starts.
    rotated.plugin.kill()
    rotated.plugin.start()
    eventually(lambda: rotated.server.health() == "" and rotated.read(rotated.server) == {True}, NOTICED_S)
    for path in SECRETS[1:]:
        rotated.write(path)
    with ApiServer(program, rotated.configuration) as another:
        assert another.health() == ""
        assert rotated.read(another) == {True, False}
        rotated.write(SECRETS[0], another)
        assert rotated.read(another) == {False}

    # Disabled: the API server says why, ends writes after three minutes, and reads what it holds DEKs for. One that
    # starts reads nothing.
    eventually(lambda: "The root key is disabled" in disabled.server.health(), NOTICED_S)
    disabled.server.pass_time(181)
    with pytest.raises(Refused, match="expired"):
        disabled.write(SECRETS[0])
    assert disabled.read(disabled.server) == {False}
    with ApiServer(program, disabled.configuration) as another:
        assert "The root key is disabled" in another.health()
        for path in SECRETS[:3]:
            with pytest.raises(Refused):
                another.read(path, disabled.stored(path))

    # Away: the API server says so, and goes on for as long as it takes.
    eventually(lambda: "does not answer" in away.server.health(), NOTICED_S)
    for _ in range(3):
        away.server.pass_time(120)
        eventually(lambda: _asked_anew(away), NOTICED_S)
        away.write(SECRETS[0])
    assert away.read(away.server) == {False}
    with ApiServer(program, away.configuration) as another, pytest.raises(Refused):
        another.read(SECRETS[0], away.stored(SECRETS[0]))

    # And back.
    away.front.restore()
    disabled.cluster.act("enable")
    for run in (away, disabled):
        eventually(lambda run=run: run.server.health() == "", NOTICED_S)  # type: ignore[misc]
        run.write(SECRETS[0])
        with ApiServer(program, run.configuration) as another:
            assert run.read(another) == {False}


def _asked_anew(run: Run) -> bool:
    """Whether the API server has heard a Status since its time passed: then it writes again."""
    assert run.server.health() != ""
    try:
        run.write(SECRETS[1])
    except Refused:
        return False
    return True


def test_another_clusters_secrets_do_not_open(runs: dict[str, Run]) -> None:
    one, other = runs["rotated"], runs["away"]
    with pytest.raises(Refused):
        other.server.read(SECRETS[0], one.stored(SECRETS[0]))
    with pytest.raises(Refused):
        one.server.read(SECRETS[1], one.stored(SECRETS[0]))
