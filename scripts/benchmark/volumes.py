"""PostgreSQL in a plain directory and on a gocryptfs volume, side by side: interleaved rounds of pgbench, medians."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hsmkms.adopters.volume.choice import aes_driver
from hsmkms.adopters.volume.gocryptfs import Gocryptfs
from hsmkms.adopters.volume.layout import Volume, VolumeLock
from hsmkms.domain.secrets import SecretBytes

SCALE: Final = 10
"""pgbench's: 150 MB."""
CLIENTS: Final = 4
SMALL, LARGE = "128MB", "1GB"
_TPS: Final = re.compile(rb"^tps = ([\d.]+)", re.MULTILINE)
_USER: Final = "postgres" if os.geteuid() == 0 else None
_AS_USER: Final = [] if _USER is None else ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups", "--"]


@dataclass
class _Cluster:
    """A PostgreSQL cluster of its own, in a directory; it talks through a socket there."""

    name: str
    bin: Path
    place: Path
    shared_buffers: str

    @property
    def data(self) -> Path:
        return self.place / "pgdata"

    def make(self) -> None:
        self._run("initdb", "-D", self.data, "-A", "trust", "-U", "postgres")
        with self._served():
            self._run("pgbench", "-h", self.place, "-U", "postgres", "-i", "-q", "-s", SCALE, "postgres")

    def measure(self, seconds: float, *options: str) -> float:
        """Transactions a second, after a short run that fills the caches."""
        load = ["-h", self.place, "-U", "postgres", "-n", "-c", CLIENTS, "-j", 2, *options]
        with self._served():
            self._run("pgbench", *load, "-T", 2, "postgres")
            found = _TPS.search(self._run("pgbench", *load, "-T", round(seconds), "postgres"))
        assert found is not None
        return float(found[1])

    def _served(self) -> _Served:
        return _Served(self)

    def _run(self, program: str, *arguments: object) -> bytes:
        command = [*_AS_USER, str(self.bin / program), *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, cwd="/").stdout

    def control(self, *arguments: str) -> None:
        settings = (
            f"-c listen_addresses= -c unix_socket_directories={self.place} -c shared_buffers={self.shared_buffers}"
        )
        command = [*_AS_USER, str(self.bin / "pg_ctl"), "-D", str(self.data), "-s", "-w", "-o", settings, *arguments]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class _Served:
    """The cluster's server, meanwhile."""

    def __init__(self, cluster: _Cluster) -> None:
        self._cluster = cluster

    def __enter__(self) -> None:
        self._cluster.control("start")

    def __exit__(self, *_: object) -> None:
        self._cluster.control("-m", "fast", "stop")


def measure(place: Path, rounds: int, seconds: float) -> dict[str, object]:
    """tps of each cluster: [TPC-B, select], medians of the rounds; and the kernel's AES driver, for comparison."""
    place.chmod(0o755)
    volume = Volume(place / "volume", "gocryptfs", place / "volume" / "data", place)
    for directory in (volume.directory, volume.cipher, volume.mount, place / "plain"):
        directory.mkdir()
    if _USER is not None:
        shutil.chown(volume.cipher, _USER)
        shutil.chown(place / "plain", _USER)
    backend, dek = Gocryptfs(supervised=True), SecretBytes(os.urandom(32))
    backend.create(volume, dek)
    bin_ = max(Path("/usr/lib/postgresql").iterdir(), key=lambda path: int(path.name)) / "bin"
    found: dict[str, tuple[list[float], list[float]]] = {}
    with VolumeLock(volume) as lock:
        backend.open(volume, dek, lock)
        try:
            places = {"plain": place / "plain", "gocryptfs": volume.mount}
            clusters = [
                _Cluster(f"{name}, {size}", bin_, where, size)
                for size in (SMALL, LARGE)
                for name, where in places.items()
            ]
            for cluster in clusters[: len(places)]:
                cluster.make()
            for _ in range(rounds):
                for cluster in clusters:
                    rates = found.setdefault(cluster.name, ([], []))
                    rates[0].append(cluster.measure(seconds))
                    rates[1].append(cluster.measure(seconds, "-S"))
        finally:
            backend.close(volume)
    medians = {name: [round(statistics.median(rates)) for rates in both] for name, both in found.items()}
    return {"AES driver": aes_driver(Path("/proc/crypto").read_text()), "tps": medians, "all": found}
