"""A PostgreSQL server from the distribution's package, started by the tests as an unprivileged user on loopback."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.support.ports import free_port

_numbers = itertools.count(1)


@dataclass(frozen=True)
class PostgresServer:
    """A running server; trust authentication, reachable from this host only."""

    directory: Path
    port: int

    @classmethod
    def start(cls, directory: Path | None = None, *options: str) -> PostgresServer:
        """initdb with options and start, in a directory of its own or in one that is there. The server refuses to run
        as root, so then it runs as the package's user."""
        server = cls._in(directory)
        data = str(server.directory / "data")
        server._run("initdb", "-D", data, "-U", "hsmkms", "-A", "trust", "-E", "UTF8", "--no-sync", *options)
        server.start_again()
        return server

    @classmethod
    def _in(cls, directory: Path | None = None) -> PostgresServer:
        directory = directory or Path(tempfile.mkdtemp(prefix="hsmkms-postgres-"))
        if os.getuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(directory, owner.pw_uid, owner.pw_gid)
        return cls(directory, free_port())

    def standby(self) -> PostgresServer:
        """Another server that follows this one; from then on a commit waits until both have it on their disk."""
        other = PostgresServer._in()
        origin = f"host=127.0.0.1 port={self.port} user=hsmkms"
        other._run("pg_basebackup", "-D", str(other.directory / "data"), "-d", origin, "-R", "-c", "fast", "--no-sync")
        other.start_again()
        self.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.execute("SELECT pg_reload_conf()")
        return other

    def promote(self) -> None:
        """Make a standby the primary."""
        self._run("pg_ctl", "-D", str(self.directory / "data"), "-w", "promote")

    def start_again(self) -> None:
        """Start after `halt`, on the same port, with what docs/operations.md asks of a standby."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.directory}"
        options += " -c wal_retrieve_retry_interval=100ms"
        log = str(self.directory / "log")
        self._run("pg_ctl", "-D", str(self.directory / "data"), "-l", log, "-w", "-o", options, "start")

    def halt(self, mode: str = "immediate") -> None:
        """Stop: `immediate` as a crash, `fast` as an administrator does."""
        self._run("pg_ctl", "-D", str(self.directory / "data"), "-m", mode, "-w", "stop")

    @property
    def runs(self) -> bool:
        """Whether its first process is there."""
        return (self.directory / "data" / "postmaster.pid").exists()

    @property
    def answers(self) -> bool:
        """Whether it takes connections."""
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def freeze(self) -> None:
        """All its processes stand still; its sockets stay open, as with storage that does not answer."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """They go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop and remove."""
        if self.runs:
            self.halt()
        shutil.rmtree(self.directory)

    def execute(self, statement: str) -> None:
        """One statement outside a transaction."""
        with psycopg.connect(f"postgresql://hsmkms@127.0.0.1:{self.port}/postgres", autocommit=True) as connection:
            connection.execute(statement)

    def _signal(self, number: int) -> None:
        first = int((self.directory / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(first, number)
        for child in Path(f"/proc/{first}/task/{first}/children").read_text().split():
            os.kill(int(child), number)

    def new_database(self, name: str) -> str:
        """Create an empty database whose name begins with `name`; its URL."""
        name = f"{name}_{next(_numbers)}"
        with psycopg.connect(f"postgresql://hsmkms@127.0.0.1:{self.port}/postgres", autocommit=True) as connection:
            connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
        return f"postgresql://hsmkms@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *arguments: str) -> None:
        newest = max(Path("/usr/lib/postgresql").iterdir(), key=lambda path: int(path.name))
        command = [str(newest / "bin" / program), *arguments]
        if os.getuid() == 0:
            command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.directory)
