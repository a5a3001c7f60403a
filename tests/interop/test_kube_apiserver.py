"""A real kube-apiserver, old but whole (1.20.2, of Debian's source package), over etcd and this plugin's v1beta1.

`make test-kube-apiserver` builds it, which takes minutes, and says in KUBE_APISERVER where it is.
"""

from __future__ import annotations

import base64
import os
import secrets
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.adopters.kubernetes.conftest import Cluster, make_cluster
from tests.support.deployment import Service
from tests.support.etcd import Etcd
from tests.support.iam import Iam
from tests.support.kms_plugin import KmsPlugin, eventually
from tests.support.ports import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("KUBE_APISERVER" not in os.environ, reason="make test-kube-apiserver"),
]

MARKER = "the password of the bank"
SECRETS = [f"secret-{number}" for number in range(50)]
READY_S = 120
PREFIX = b"k8s:enc:kms:v1:hsmkms:"


class KubeApiServer:
    """A process of it, on loopback; a context manager that waits until it serves."""

    def __init__(self, directory: Path, etcd: Etcd, encryption: Path) -> None:
        self._directory, self._port, self._token = directory, free_port(), secrets.token_hex(16)
        key, tokens, self._log = directory / "service-accounts.pem", directory / "tokens.csv", directory / "log"
        if not key.exists():
            made = rsa.generate_private_key(65537, 2048)
            form = (serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL)
            key.write_bytes(made.private_bytes(*form, serialization.NoEncryption()))
        tokens.write_text(f"{self._token},tester,1,system:masters\n")
        self._command = [
            os.environ["KUBE_APISERVER"],
            f"--etcd-servers={etcd.url}",
            f"--encryption-provider-config={encryption}",
            f"--cert-dir={directory}",
            f"--secure-port={self._port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            "--insecure-port=0",
            "--authorization-mode=RBAC",
            f"--token-auth-file={tokens}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--disable-admission-plugins=ServiceAccount",
        ]

    def __enter__(self) -> KubeApiServer:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        certificate, deadline = self._directory / "apiserver.crt", time.monotonic() + READY_S
        while not self._serves(certificate):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                self._process.wait()
                raise AssertionError(self._log.read_text()[-4000:])
            time.sleep(0.2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.http.close()
        self._process.kill()
        self._process.wait()

    def write(self, name: str) -> httpx.Response:
        """Create or replace a secret."""
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            # What did not change is not written: KMS v1 does not tell which secrets are old.
            "metadata": {"name": name, "annotations": {"written": str(time.time())}},
            "data": {"password": base64.b64encode(f"{MARKER} {name}".encode()).decode()},
        }
        answer = self.http.post("", json=body)
        return answer if answer.status_code != 409 else self.http.put(f"/{name}", json=body)

    def read(self, name: str) -> str | None:
        """A secret's value, or None where the server cannot read it."""
        answer = self.http.get(f"/{name}")
        if answer.status_code >= 500:
            return None
        assert answer.status_code == 200, answer.text
        return base64.b64decode(answer.json()["data"]["password"]).decode()

    def reads_all(self) -> bool:
        return all(self.read(name) == f"{MARKER} {name}" for name in SECRETS)

    def _serves(self, certificate: Path) -> bool:
        if not certificate.exists():
            return False
        http = httpx.Client(
            base_url=f"https://127.0.0.1:{self._port}/api/v1/namespaces/default/secrets",
            verify=ssl.create_default_context(cafile=str(certificate)),
            headers={"Authorization": f"Bearer {self._token}"},
            timeout=60,
        )
        try:
            # Not /readyz, which a refused root key turns red; and not secrets, which it makes unreadable.
            ready = http.get(f"https://127.0.0.1:{self._port}/api/v1/namespaces/default").status_code == 200
        except httpx.TransportError:
            ready = False
        if ready:
            self.http = http
        else:
            http.close()
        return ready


@pytest.fixture
def cluster(shared_service: Service, tmp_path: Path) -> Iterator[Cluster]:
    with (
        shared_service.client() as admin,
        Iam(shared_service) as iam,
        make_cluster(shared_service, admin, iam, tmp_path) as cluster,
    ):
        yield cluster


def _configuration(cluster: Cluster, plugin: KmsPlugin, directory: Path) -> Path:
    words = [f"--key={cluster.key}", f"--crn={cluster.crn}", f"--connection={cluster.connection}", "--v1beta1"]
    done = cluster.service.state.run("kubernetes-plugin", "install", "--print", *words, f"--socket={plugin.socket}")
    file = directory / "encryption.yaml"
    file.write_text(done.stdout.decode().split("\n# /etc/systemd")[0])
    return file


@pytest.mark.timeout(900)
def test_secrets_through_a_whole_kube_apiserver(cluster: Cluster, tmp_path: Path) -> None:
    plugin = cluster.start("--v1beta1")
    encryption = _configuration(cluster, plugin, tmp_path)
    with Etcd() as etcd:

        def server() -> KubeApiServer:
            return KubeApiServer(tmp_path, etcd, encryption)

        def stored(name: str) -> bytes:
            return etcd.get(f"/registry/secrets/default/{name}")

        with server() as one:
            for name in SECRETS:
                answer = one.write(name)
                assert answer.status_code == 201, answer.text
            assert one.reads_all()
        assert all(stored(name).startswith(PREFIX) for name in SECRETS)
        assert not etcd.holds(MARKER.encode())

        # It survives restarts of the server and of the plugin, and a rotation; what is written anew moves.
        plugin.kill()
        plugin.start()
        with server() as one:
            assert one.reads_all()
        before = stored(SECRETS[0])
        old, cluster_version = cluster.version.encode(), cluster.version
        assert old in before
        cluster.act("rotate")
        assert cluster.version != cluster_version
        with server() as one:
            assert one.reads_all()
            for name in SECRETS:
                assert one.write(name).status_code == 200
            assert one.reads_all()
        assert all(cluster.version.encode() in stored(name) and old not in stored(name) for name in SECRETS)
        with server() as one:
            assert one.reads_all()

        # Disabled: unreadable after a restart, and nothing can be written; enabled: all is back.
        cluster.act("disable")
        with server() as one:
            assert {one.read(name) for name in SECRETS} == {None}
            refused = one.write("another")
            assert (refused.status_code, "disabled" in refused.text) == (500, True), refused.text
            cluster.act("enable")
            eventually(one.reads_all, READY_S)
            # It decrypts at once, and encrypts again as soon as it has looked at the root key.
            eventually(lambda: one.write("another").status_code == 201, READY_S)
        assert not etcd.holds(MARKER.encode())
