"""The plugin's process: serves the socket, looks at the root key, follows its events."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import structlog

from hsmkms.adopters.client import Event, KeyServiceClient
from hsmkms.adopters.connection import Connection
from hsmkms.adopters.core.listener import EventListener
from hsmkms.adopters.core.loopback import LoopbackServer
from hsmkms.adopters.kubernetes.cache import DekCache
from hsmkms.adopters.kubernetes.health import Condition, Health, Verdict
from hsmkms.adopters.kubernetes.key_id import root_key_of
from hsmkms.adopters.kubernetes.last_key_id import LastKeyId
from hsmkms.adopters.kubernetes.metrics import Metrics
from hsmkms.adopters.kubernetes.refusals import PluginRefused
from hsmkms.adopters.kubernetes.registration import Registration
from hsmkms.adopters.kubernetes.sealing import Sealing
from hsmkms.adopters.kubernetes.services import MAX_MESSAGE_BYTES, Services
from hsmkms.adopters.kubernetes.socket_file import SocketFile

LOOK_EVERY_S: Final = 6.0
"""From the start of one look at the root key to that of the next, so that Status is true within 10 s."""
_LOOK_AGAIN_S: Final = 2.0
_LOOK_APART_S: Final = 1.0
_THREADS: Final = 32
_GRACE_S: Final = 5.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class PluginSettings:
    """What a plugin is started with. `key` is an id or a CRN, `owner` the user that kube-apiserver runs as if it is not
    ours, `cache_s` how long decrypted DEKs stay in memory."""

    connection: Path
    key: str
    cluster_crn: str
    socket: Path
    owner: str | None = None
    v1beta1: bool = False
    cache_s: float = 0
    metrics_port: int | None = None
    prevent_deletion: bool = False


class Plugin:
    """One cluster's plugin on one node."""

    def __init__(self, settings: PluginSettings, client: KeyServiceClient) -> None:
        """Raises AdopterError."""
        client, root_key = root_key_of(client, settings.key)
        self._settings, self._client, crn = settings, client, settings.cluster_crn
        self._socket = SocketFile(settings.socket, settings.owner)
        self._events: queue.SimpleQueue[tuple[Event, ...]] = queue.SimpleQueue()
        self._woken, self._ending = threading.Event(), threading.Event()
        self._cache = DekCache(settings.cache_s)
        self._health = Health(
            client, root_key, crn, LastKeyId(settings.socket.with_name(f"{settings.socket.name}.key-id"))
        )
        self._registration = Registration(client, root_key, crn, prevent_deletion=settings.prevent_deletion)
        self._metrics = Metrics(self._health)
        sealing = Sealing(client, root_key, crn, self._health, self._cache)
        self._services = Services(sealing, self._health, self._metrics, client.connection.timeout_s, self._woken.set)

    def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises AdopterError when it may not start."""
        with contextlib.ExitStack() as stack:
            self._socket.claim()
            stack.callback(self._socket.release)
            stack.enter_context(self._signals())
            if self._settings.metrics_port is not None:
                server = LoopbackServer(self._settings.metrics_port, self._metrics.answer)
                stack.callback(server.close)
            self._look()
            self._serve(stack)
            listener = EventListener(self._client, self._tell)
            listener.start()
            stack.callback(listener.stop)
            self._watch()

    def _serve(self, stack: contextlib.ExitStack) -> None:
        pool = ThreadPoolExecutor(_THREADS, "kms")
        stack.callback(pool.shutdown)
        options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.so_reuseport", 0)]
        server = grpc.server(pool, self._services.handlers(with_v1beta1=self._settings.v1beta1), options=options)
        try:
            # The other form of the name has room for one byte less.
            server.add_insecure_port(f"unix:{self._socket.path}")
        except RuntimeError as error:
            raise PluginRefused(f"{self._socket.path} cannot be bound.") from error
        self._socket.open_to_owner()
        server.start()
        stack.callback(lambda: server.stop(_GRACE_S).wait())
        _log.info("serving", socket=str(self._socket.path), v1beta1=self._settings.v1beta1)

    def _watch(self) -> None:
        looked_at, verdict = time.monotonic(), self._health.verdict
        while not self._ending.is_set():
            pause_s = _LOOK_AGAIN_S if verdict.condition is Condition.AWAY else LOOK_EVERY_S
            self._woken.wait(max(0.0, looked_at + pause_s - time.monotonic()))
            # What wakes us may come by the hundred.
            self._ending.wait(max(0.0, looked_at + _LOOK_APART_S - time.monotonic()))
            self._woken.clear()
            if not self._ending.is_set():
                looked_at, verdict = time.monotonic(), self._look()

    def _look(self) -> Verdict:
        verdict = self._health.look()
        if verdict.condition is Condition.REFUSED:
            self._cache.clear()
        with contextlib.suppress(queue.Empty):
            while True:
                self._registration.take(self._events.get_nowait())
        self._registration.follow(verdict)
        self._metrics.take(verdict, registered=self._registration.registered)
        return verdict

    def _tell(self, events: tuple[Event, ...]) -> None:
        self._events.put(events)
        self._woken.set()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def end(*_: object) -> None:
            self._ending.set()
            self._woken.set()

        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(settings: PluginSettings) -> None:
    """Run a plugin until it is told to end. Raises AdopterError."""
    with KeyServiceClient(Connection.read(settings.connection)) as client:
        Plugin(settings, client).run()
