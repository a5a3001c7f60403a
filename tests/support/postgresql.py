"""A PostgreSQL server from the distribution's package, started by the tests as an unprivileged user on loopback."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
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
    def start(cls) -> PostgresServer:
        """initdb and start. The server refuses to run as root, so then it runs as the package's user."""
        directory = Path(tempfile.mkdtemp(prefix="hsmkms-postgres-"))
        if os.getuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(directory, owner.pw_uid, owner.pw_gid)
        server = cls(directory, free_port())
        server._run("initdb", "-D", str(directory / "data"), "-U", "hsmkms", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-p {server.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={directory}"
        server._run("pg_ctl", "-D", str(directory / "data"), "-l", str(directory / "log"), "-w", "-o", options, "start")
        return server

    def stop(self) -> None:
        """Stop and remove."""
        self._run("pg_ctl", "-D", str(self.directory / "data"), "-m", "immediate", "-w", "stop")
        shutil.rmtree(self.directory)

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
