"""The key service away, the plugin killed, both restarted: nothing wrong is ever answered, and all of it comes back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import grpc

from tests.adopters.kubernetes.conftest import Cluster
from tests.support.certificates import Authority
from tests.support.connections import write_connection
from tests.support.deployment import Service, State, create_key
from tests.support.front import Front
from tests.support.kms_plugin import Encrypted, Kms, KmsPlugin, eventually, refused, socket_directory

DEK = bytes(range(32))
SOON_S = 20
AWAY = grpc.StatusCode.UNAVAILABLE


def through(front: Front, cluster: Cluster, directory: Path) -> Path:
    """The cluster's connection, by way of a front."""
    text = cluster.connection.read_text().replace(cluster.service.url, f"http://127.0.0.1:{front.port}")
    file = directory / "through.toml"
    file.write_text(text.replace('"adopter.key"', f'"{cluster.connection.parent / "adopter.key"}"'))
    return file


def is_soft(kms: Kms, key_id: str) -> bool:
    """Whether Status tells in words that something is wrong, and goes on with the key_id."""
    healthz, told = kms.status()
    assert told == key_id
    return healthz != "ok"


def test_the_service_away(cluster: Cluster, tmp_path: Path) -> None:
    with Front(cluster.service.port) as front:
        connection = through(front, cluster, tmp_path)
        plugin = cluster.start(connection=connection)
        kms = cluster.client(plugin)
        sealed, key_id = kms.encrypt(DEK), kms.status()[1]
        assert kms.decrypt(sealed) == DEK
        front.cut()
        assert refused(lambda: kms.decrypt(sealed))[0] in (AWAY, grpc.StatusCode.DEADLINE_EXCEEDED)
        eventually(lambda: is_soft(kms, key_id), SOON_S)
        assert "does not answer" in kms.status()[0]
        assert refused(lambda: kms.encrypt(DEK))[0] is AWAY
        # A plugin that is restarted meanwhile tells the same key_id, for the API server to go on.
        plugin.kill()
        plugin.start()
        eventually(lambda: is_soft(kms, key_id), SOON_S)
        front.restore()
        eventually(lambda: kms.status() == ("ok", key_id), SOON_S)
        assert kms.decrypt(sealed) == DEK
        # No DEK is on any disk of the plugin.
        for file in plugin.socket.parent.iterdir():
            assert not file.is_file() or DEK not in file.read_bytes()


def test_a_refusal_is_not_taken_back_by_an_absence(cluster: Cluster, tmp_path: Path) -> None:
    with Front(cluster.service.port) as front:
        plugin = cluster.start(connection=through(front, cluster, tmp_path))
        kms = cluster.client(plugin)
        key_id = kms.status()[1]
        cluster.act("disable")
        eventually(lambda: refused_with(kms.status, "disabled"), SOON_S)
        front.cut()
        assert refused(lambda: kms.encrypt(DEK))[0] is grpc.StatusCode.FAILED_PRECONDITION
        eventually(lambda: '"level": "error"' in plugin.log.read_text(), SOON_S)
        assert refused_with(kms.status, "disabled")
        # Nor by a restart: what was refused is forgotten, so there is no key_id to go on with.
        plugin.kill()
        plugin.start()
        assert refused(kms.status)[0] is AWAY
        front.restore()
        cluster.act("enable")
        eventually(lambda: kms.status() == ("ok", key_id), SOON_S)


def refused_with(act: Callable[[], object], words: str) -> bool:
    try:
        act()
    except grpc.RpcError as error:
        return words in str(error.details())
    return False


def test_a_cache_outlives_an_absence_but_no_refusal(cluster: Cluster, tmp_path: Path) -> None:
    with Front(cluster.service.port) as front:
        kms = cluster.client(cluster.start("--cache-s=600", connection=through(front, cluster, tmp_path)))
        sealed, unseen = kms.encrypt(DEK), kms.encrypt(b"not asked for yet")
        assert kms.decrypt(sealed) == DEK
        front.cut()
        other = Encrypted(sealed.ciphertext, sealed.key_id, unseen.annotations)
        assert refused(lambda: kms.decrypt(other))[0] in (AWAY, grpc.StatusCode.DEADLINE_EXCEEDED)
        eventually(lambda: is_soft(kms, sealed.key_id), SOON_S)
        assert kms.decrypt(sealed) == DEK
        front.restore()
        eventually(lambda: kms.status()[0] == "ok", SOON_S)
        cluster.act("disable")
        eventually(lambda: refused_with(kms.status, "disabled"), SOON_S)
        assert refused(lambda: kms.decrypt(sealed))[0] is grpc.StatusCode.FAILED_PRECONDITION


def test_killed_and_restarted_under_load(cluster: Cluster) -> None:
    plugin = cluster.start()
    with Load(plugin) as load:
        for _ in range(2):
            load.wait_for(50)
            plugin.kill()
            assert plugin.socket.exists()
            plugin.start()
        load.wait_for(50)
    assert load.wrong == []
    assert load.codes <= {AWAY, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}, load.codes


def test_the_service_restarted_under_load(
    state: State, run_service: Callable[..., Service], tmp_path: Path, make: Callable[[Service], Cluster]
) -> None:
    service = run_service(state)
    cluster = make(service)
    plugin = cluster.start()
    with Load(plugin) as load:
        load.wait_for(50)
        service.kill()
        service.__enter__()
        load.wait_for(50)
    assert load.wrong == []
    assert load.codes <= {AWAY, grpc.StatusCode.DEADLINE_EXCEEDED}, load.codes


def test_a_service_that_hangs(
    state: State, run_service: Callable[..., Service], make: Callable[[Service], Cluster]
) -> None:
    service = run_service(state)
    cluster = make(service)
    connection = cluster.connection
    connection.write_text(connection.read_text().replace("timeout_s = 10", "timeout_s = 2"))
    plugin = cluster.start()
    kms = cluster.client(plugin)
    sealed = kms.encrypt(DEK)
    os.killpg(service.process.pid, signal.SIGSTOP)
    try:
        # In words, before whoever asks gives up: the connection's own limit comes first here.
        with plugin.client(timeout_s=15) as patient:
            code, words = refused(lambda: patient.decrypt(sealed))
            assert (code, "does not answer" in words) == (AWAY, True), words
        eventually(lambda: is_soft(kms, sealed.key_id), SOON_S)
    finally:
        os.killpg(service.process.pid, signal.SIGCONT)
    eventually(lambda: kms.status()[0] == "ok", SOON_S)
    assert kms.decrypt(sealed) == DEK


def test_a_wrong_ca_is_said(tmp_path: Path, state: State, run_service: Callable[..., Service]) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    ours, theirs = Authority(tmp_path / "ours", "ours"), Authority(tmp_path / "theirs", "theirs")
    issued = ours.server()
    service = run_service(
        state,
        tls_ca=str(ours.file),
        HSMKMS_TLS_CERT=str(issued.certificate),
        HSMKMS_TLS_KEY=str(issued.key),
    )
    with service.client() as admin:
        key = create_key(admin)
    connection = write_connection(tmp_path, service, state.api_key)
    right = connection.read_text()
    connection.write_text(right.replace(str(ours.file), str(theirs.file)))
    crn = "crn:v1:bluemix:public:containers-kubernetes:local:a/1:2::"

    with socket_directory() as directory, KmsPlugin(directory / "kms.sock", key, crn, connection) as plugin:
        with plugin.client() as kms:
            code, words = refused(kms.status)
            assert (code, "certificate verify failed" in words.lower()) == (AWAY, True), words
        plugin.process.terminate()
        assert plugin.process.wait(20) == 0
        connection.write_text(right)
        plugin.start()
        with plugin.client() as kms:
            assert kms.status()[0] == "ok"
            assert kms.decrypt(kms.encrypt(DEK)) == DEK


class Load:
    """Threads that decrypt, and encrypt now and then, as long as the block takes."""

    def __init__(self, plugin: KmsPlugin, threads: int = 4) -> None:
        self._plugin, self._ending = plugin, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]
        self._counted = threading.Condition()
        self.done = 0
        self.wrong: list[bytes] = []
        self.codes: set[grpc.StatusCode] = set()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int) -> None:
        """Until so many more calls have succeeded."""
        with self._counted:
            wanted = self.done + more
            assert self._counted.wait_for(lambda: self.done >= wanted, 60), (self.done, self.codes)

    def _run(self) -> None:
        plaintext, sealed = os.urandom(32), None
        with self._plugin.client() as kms:
            while not self._ending.is_set():
                try:
                    if sealed is None or self.done % 10 == 0:
                        sealed = kms.encrypt(plaintext)
                    opened = kms.decrypt(sealed)
                except grpc.RpcError as error:
                    self.codes.add(error.code())
                    self._ending.wait(0.05)
                    continue
                with self._counted:
                    self.done += 1
                    self._counted.notify_all()
                if opened != plaintext:
                    self.wrong.append(opened)
