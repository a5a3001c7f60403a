"""Where the metrics of all workers are added up and served: by the process that starts the workers, so that they can be
read while every worker hangs.

With several workers each keeps its values in files of its own (prometheus_client's multiprocess mode).
The files of a worker that ended are added to those of `_ENDED` and taken away, so that counters never go back and a
service whose workers are replaced again and again does not fill memory.
"""

from __future__ import annotations

import os
import socket
import ssl
import stat
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from hsmkms.errors import SettingsInvalid
from hsmkms.telemetry.metrics import REGISTRY

DIRECTORY_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Read by the library in each worker when it is imported."""
_ENDED: Final = 0
"""The process id in the names of the files of all workers that ended; no process has it."""


_SLOWEST_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Access:
    """Where metrics are served; with `tls` (certificate, key, CA of clients) only to whom that CA signed."""

    host: str
    port: int
    tls: tuple[Path, Path, Path] | None


class Endpoint:
    """Serves the metrics to GET of any path, until `close`."""

    def __init__(self, access: Access, directory: Path | None) -> None:
        """Serve this process's metrics, or with a `directory` those of the workers that write there. Raises
        SettingsInvalid when the address or the certificate is of no use."""
        registry = REGISTRY
        if directory is not None:
            registry = CollectorRegistry()
            registry.register(WorkersCollector(directory))
        server = _Server6 if _family(access) is socket.AF_INET6 else _Server
        try:
            self._server: _Server = make_server(access.host, access.port, make_wsgi_app(registry), server, _Handler)
            self._server.tls = None if access.tls is None else _context(*access.tls)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise SettingsInvalid(
                f"Metrics cannot be served at {access.host} port {access.port}: {reason}. See metrics_port."
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics endpoint", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop to serve."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingWSGIServer):
    """Shakes hands in the thread of the connection, so that a client that says nothing stops no other."""

    tls: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        """One connection."""
        connection: socket.socket = request
        connection.settimeout(_SLOWEST_S)
        try:
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            super().finish_request(connection, client_address)
            if self.tls is not None:
                connection.close()
        except (TimeoutError, OSError):
            # Not a client of ours, or one that went away.
            return


class _Server6(_Server):
    """The same on an IPv6 address."""

    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    """Logs nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def _family(access: Access) -> socket.AddressFamily:
    try:
        return socket.getaddrinfo(access.host, access.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    except OSError as error:
        raise SettingsInvalid(f"The address {access.host} is not known. See metrics_host.") from error


def _context(certificate: Path, key: Path, client_ca: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_ca)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate, key)
    return context


class WorkersCollector(Collector):
    """The sum over all workers that there are and were."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._all = MultiProcessCollector(None, str(directory))
        self._lock = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        """Metrics as they are now."""
        with self._lock:
            for path in self._directory.glob("*.db"):
                name, _, pid = path.stem.rpartition("_")
                if int(pid) != _ENDED and not _is_worker(int(pid)):
                    self._retire(path, name)
            return list(self._all.collect())

    def _retire(self, path: Path, name: str) -> None:
        """Counters are added to those of other workers that ended; states ended with the worker, but for when a job
        last ran."""
        if name in ("counter", "histogram", "gauge_max"):
            kept = MmapedDict(str(self._directory / f"{name}_{_ENDED}.db"))
            try:
                for key, value, timestamp, _ in MmapedDict.read_all_values_from_file(str(path)):
                    known = kept.read_value(key)[0]
                    kept.write_value(key, max(known, value) if name == "gauge_max" else known + value, timestamp)
            finally:
                kept.close()
        path.unlink()


def prepare(directory: Path) -> Path:
    """An empty directory of our own for the workers' files. Raises SettingsInvalid.

    It should be in memory: a page of a file that a full disk has no room for ends the process that writes it.
    """
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise SettingsInvalid(f"{directory} is not a directory of this user alone. Set metrics_dir to another.")
        _empty(directory)
    except OSError as error:
        raise SettingsInvalid(f"{directory} cannot hold metrics: {error.strerror}. Set metrics_dir.") from error
    return directory


def discard(directory: Path) -> None:
    """Take the directory away."""
    _empty(directory)
    directory.rmdir()


def _empty(directory: Path) -> None:
    for path in directory.glob("*.db"):
        path.unlink()


def _is_worker(pid: int) -> bool:
    """Whether a process of that number is a child of this one and has not ended."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    state, parent = after_name[0], int(after_name[1])
    return parent == os.getpid() and state not in "ZX"
