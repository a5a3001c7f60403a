"""Encrypted volumes for tests: made and opened as the command line does, run by the command line itself."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest

from hsmkms.adopters.volume import operations
from hsmkms.adopters.volume.backend import Backend
from hsmkms.adopters.volume.choice import AUTO
from hsmkms.adopters.volume.gocryptfs import Gocryptfs
from hsmkms.adopters.volume.layout import Volume
from hsmkms.adopters.volume.mounts import mounted_at, unmount, unmount_fuse
from hsmkms.domain.access import Role
from tests.support.deployment import PROGRAM, ROOT
from tests.support.iam import Iam
from tests.support.ports import free_port

WAIT_S = 120
POSTGRES = "postgres" if os.geteuid() == 0 else None
"""Who owns a database; PostgreSQL refuses to run as root."""


def require_fuse() -> None:
    """Skip, visibly, where no volume of gocryptfs can be opened."""
    require(Gocryptfs(), Volume(Path(), AUTO, Path(), Path()))


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A directory that other users may pass through, whose mounts are taken away at the end."""
    directory = Path(tempfile.mkdtemp(prefix="hsmkms-volume-")).resolve()
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        for mount in directory.glob("*/data"):
            if mounted_at(mount) is not None:
                unmount_fuse(mount, lazily=True)
        subprocess.run(["rm", "-rf", str(directory)], check=True)


@dataclass(frozen=True)
class Disk:
    """A file system of its own, and the file that it is in."""

    image: Path
    place: Path

    def holds(self, marker: bytes) -> bool:
        """Whether the medium holds these bytes anywhere."""
        os.sync()
        with self.image.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            return content.find(marker) >= 0


@contextlib.contextmanager
def disk(directory: Path, size_mib: int, *features: str) -> Iterator[Disk]:
    """An ext4 file system in a file; skips, visibly, where this kernel or user cannot mount one."""
    image, mount = directory / "disk", directory / "mounted"
    mount.mkdir(mode=0o755)
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    options = [part for feature in features for part in ("-O", feature)]
    subprocess.run(["mkfs.ext4", "-q", *options, str(image)], check=True, capture_output=True)
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield Disk(image, mount)
    finally:
        for volume in mount.iterdir():
            if mounted_at(volume / "data") is not None:
                unmount(volume / "data")
        subprocess.run(["umount", str(mount)], check=True)


def require(backend: Backend, volume: Volume) -> None:
    """Skip, visibly, where a backend cannot be used for a volume."""
    reason = backend.why_not(volume)
    if reason is not None:
        pytest.skip(f"{backend.name}: {reason}")


def make(
    directory: Path, connection: Path, key: str, crn: str, owner: str | None = None, backend: str = "gocryptfs"
) -> Volume:
    """A new volume, closed."""
    wanted = Volume(directory, backend, directory / "data", connection)
    volume, _ = operations.create(wanted, key, crn, owner=owner)
    return volume


@contextlib.contextmanager
def opened(volume: Volume) -> Iterator[Path]:
    """The data in clear, meanwhile."""
    backend = operations.open_(volume)
    try:
        yield volume.mount
    finally:
        backend.close(volume)


def wait_for(what: str, happened: Callable[[], bool], longest_s: float = WAIT_S) -> float:
    """Until something has happened; how many seconds that took."""
    started = time.monotonic()
    while time.monotonic() - started < longest_s:
        if happened():
            return time.monotonic() - started
        time.sleep(0.02)
    raise AssertionError(f"{what}: not in {longest_s} s")


class Run:
    """`hsmkms adopt volume run`, as a process of its own."""

    def __init__(self, volume: Volume, *command: str, options: tuple[str, ...] = ()) -> None:
        self.volume = volume
        self.log = volume.directory.parent / f"{volume.directory.name}.log"
        arguments = ["adopt", "volume", "run", *options, str(volume.directory), *(["--", *command] if command else [])]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(PROGRAM), *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def end(self, number: int = signal.SIGINT) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(number)
        try:
            return self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"`run` did not end:\n{self.log.read_text()}") from error

    @property
    def is_open(self) -> bool:
        """Whether the volume's data is to be seen."""
        return mounted_at(self.volume.mount) is not None

    def wait_until(self, what: str, happened: Callable[[], bool], longest_s: float = WAIT_S) -> float:
        """As `wait_for`; fails at once when the process ended."""

        def looked() -> bool:
            if happened():
                return True
            assert self.process.poll() is None, f"`run` ended:\n{self.log.read_text()}"
            return False

        return wait_for(what, looked, longest_s)


class Database:
    """PostgreSQL on a volume or, with `volume` None, in a plain directory below `directory`."""

    def __init__(self, directory: Path, volume: Volume | None) -> None:
        self.directory, self.volume, self.port = directory, volume, free_port()
        self.data = (volume.mount if volume else directory) / "pgdata"
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        newest = max(Path("/usr/lib/postgresql").iterdir(), key=lambda path: int(path.name))
        self.bin = newest / "bin"

    def init(self) -> None:
        """initdb, in the open volume."""
        if self.volume is None and POSTGRES is not None:
            self.data.mkdir()
            shutil.chown(self.data, POSTGRES)
        command = ["initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        self.tool(*command)

    def tool(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs as the server's user; what it prints."""
        command = [*self.as_user, str(self.bin / program), *arguments]
        done = subprocess.run(command, capture_output=True, cwd="/", check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    @property
    def as_user(self) -> list[str]:
        """What runs a program as its user."""
        return (
            [] if POSTGRES is None else ["setpriv", f"--reuid={POSTGRES}", "--regid=postgres", "--clear-groups", "--"]
        )

    @property
    def command(self) -> list[str]:
        """The server."""
        settings = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self.data.parent}
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [str(self.bin / "postgres"), "-D", str(self.data), *options]

    def run(self) -> Run:
        """`hsmkms adopt volume run` with it."""
        assert self.volume is not None
        return Run(self.volume, *self.command, options=() if POSTGRES is None else ("--user", POSTGRES))

    def answers(self) -> bool:
        """Whether it takes queries."""
        try:
            with psycopg.connect(self.url, connect_timeout=5) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def do(self, statement: str) -> None:
        """One statement, committed by itself."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.encode())

    def ask(self, query: str) -> object:
        """One value."""
        with psycopg.connect(self.url) as connection:
            row = connection.execute(query.encode()).fetchone()
        return row and row[0]


def holds(directory: Path, marker: bytes) -> bool:
    """Whether some file below a directory holds these bytes, or a name does."""
    for path in directory.rglob("*"):
        if marker in os.fsencode(path.name) or (path.is_file() and marker in path.read_bytes()):
            return True
    return False


def purge(iam: Iam, key: str) -> None:
    """Purge a key, as somebody who may: no other role implies it."""
    somebody = iam.somebody()
    iam.grant(somebody.iam_id, Role.KEY_PURGE)
    with iam.client(somebody) as purger:
        answer = purger.delete(f"/keys/{key}/purge")
    assert answer.status_code == 204, answer.text


def act(admin: httpx.Client, key: str, action: str) -> None:
    """Do something to a key."""
    calls = {"delete": ("DELETE", "?force=true"), "restore": ("POST", "/restore")}
    method, path = calls.get(action, ("POST", f"/actions/{action}"))
    answer = admin.request(method, f"/keys/{key}{path}")
    assert answer.is_success, answer.text


def processes_in(volume: Volume, word: str = "") -> list[int]:
    """Processes that work in the open data; with a word, those with it and the volume in their command lines."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = os.fsdecode((process / "cmdline").read_bytes())
            named = word in line and str(volume.directory) in line
            if named if word else Path(os.readlink(process / "cwd")) == volume.mount:
                found.append(int(process.name))
    return found
