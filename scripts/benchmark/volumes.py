"""PostgreSQL in a plain directory and on encrypted volumes, side by side: interleaved rounds of pgbench, medians.

fscrypt needs ext4 with the feature `encrypt`, so it gets one in a file; its figures have the loop device in them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hsmkms.adopters.volume.backend import Backend
from hsmkms.adopters.volume.choice import aes_driver
from hsmkms.adopters.volume.fscrypt import Fscrypt
from hsmkms.adopters.volume.gocryptfs import Gocryptfs
from hsmkms.adopters.volume.layout import Volume, VolumeLock
from hsmkms.domain.secrets import SecretBytes

SCALE: Final = 10
"""pgbench's: 150 MB."""
CLIENTS: Final = 4
SMALL, LARGE = "128MB", "1GB"
_DISK: Final = 3 << 30
_WARM_S: Final = 1
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
            self._run("pgbench", *load, "-T", _WARM_S, "postgres")
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
    found: dict[str, tuple[list[float], list[float]]] = {}
    with contextlib.ExitStack() as stack:
        plain = _owned(place / "plain")
        places = {"plain": plain, "gocryptfs": _opened(stack, place / "gocryptfs", Gocryptfs(supervised=True))}
        encrypting = _ext4(stack, place)
        if encrypting is not None:
            places["fscrypt"] = _opened(stack, encrypting / "fscrypt", Fscrypt(supervised=True))
        bin_ = max(Path("/usr/lib/postgresql").iterdir(), key=lambda path: int(path.name)) / "bin"
        clusters = [
            _Cluster(f"{name}, {size}", bin_, where, size) for size in (SMALL, LARGE) for name, where in places.items()
        ]
        for cluster in clusters[: len(places)]:
            cluster.make()
        for _ in range(rounds):
            for cluster in clusters:
                rates = found.setdefault(cluster.name, ([], []))
                rates[0].append(cluster.measure(seconds))
                rates[1].append(cluster.measure(seconds, "-S"))
    medians = {name: [round(statistics.median(rates)) for rates in both] for name, both in found.items()}
    return {"AES driver": aes_driver(Path("/proc/crypto").read_text()), "tps": medians, "all": found}


def _opened(stack: contextlib.ExitStack, directory: Path, backend: Backend) -> Path:
    """The data of a new volume with a DEK of its own, until the stack ends."""
    volume, dek = Volume(directory, backend.name, directory / "data", directory), SecretBytes(os.urandom(32))
    for made in (volume.directory, volume.cipher, volume.mount):
        made.mkdir()
    backend.create(volume, dek)
    if _USER is not None:
        shutil.chown(volume.cipher, _USER)
    backend.open(volume, dek, stack.enter_context(VolumeLock(volume)))
    stack.callback(backend.close, volume)
    return volume.mount


def _ext4(stack: contextlib.ExitStack, place: Path) -> Path | None:
    """A file system in a file, where this kernel and user can mount one and encrypt in it."""
    image, mount = place / "ext4", place / "mounted"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(_DISK)
    subprocess.run(["mkfs.ext4", "-q", "-O", "encrypt", str(image)], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=False, capture_output=True).returncode:
        return None
    stack.callback(subprocess.run, ["umount", str(mount)], check=True)
    wanted = Volume(mount / "x", "fscrypt", mount, mount)
    return mount if Fscrypt().why_not(wanted) is None else None


def _owned(directory: Path) -> Path:
    directory.mkdir()
    if _USER is not None:
        shutil.chown(directory, _USER)
    return directory
