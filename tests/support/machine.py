"""A machine of a test's own: this host's files under a layer in memory, with systemd as its first process."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BOOT_S = 90
_STOP_S = 60


@dataclass(frozen=True)
class Machine:
    """It has the host's network, and nothing that is done in it is left behind."""

    first: int
    """Process id of its systemd."""

    def run(self, *command: str, stdin: str = "", fails: bool = False, timeout: float = 120) -> str:
        """What a command says on both streams, as root in there; unless it `fails` its exit code is to be 0."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HSMKMS_", "IBM_", "PYTHON"))}
        done = subprocess.run(
            ["nsenter", f"--target={self.first}", "--mount", "--uts", "--ipc", "--pid", "--cgroup", *command],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**kept, "PATH": PATH, "SYSTEMD_PAGER": "", "TERM": "dumb"},
            timeout=timeout,
        )
        assert fails == (done.returncode != 0), (command, done.returncode, done.stdout)
        return done.stdout

    def path(self, inside: str) -> Path:
        """A file of it, seen from here."""
        return Path(f"/proc/{self.first}/root{inside}")


@contextlib.contextmanager
def machine(directory: Path, *, source: Path) -> Iterator[Machine]:
    """Boots it, with `source` read-only at `/src`. The test is skipped where that cannot be done."""
    if os.geteuid() != 0 or shutil.which("systemd-nspawn") is None:
        pytest.skip("a machine needs root and systemd-nspawn (Debian's systemd-container)")
    root = directory / "root"
    root.mkdir()
    nspawn = ["systemd-nspawn", f"--directory={root}", "--volatile=overlay", f"--bind-ro={source}:/src", "--boot"]
    nspawn += ["--console=pipe", "--register=no"]
    if not Path("/run/systemd/system").exists():
        # Nobody here could make a scope for it.
        nspawn.append("--keep-unit")
    # nspawn does not take / itself.
    script = 'mount --bind / "$0" && exec "$@" -- --unit=basic.target'
    console = directory / "console"
    with console.open("wb") as output:
        process = subprocess.Popen(
            ["unshare", "--mount", "--propagation=private", "sh", "-c", script, str(root), *nspawn],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield _booted(process, console)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _booted(process: subprocess.Popen[bytes], console: Path) -> Machine:
    deadline = time.monotonic() + _BOOT_S
    while process.poll() is None and time.monotonic() < deadline:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children and Path(f"/proc/{children[-1]}/root/run/systemd/private").exists():
            return Machine(int(children[-1]))
        time.sleep(0.2)
    said = console.read_text(errors="replace").strip().splitlines()[-3:]
    pytest.skip(f"systemd does not boot in a container here: {' / '.join(said)}")
