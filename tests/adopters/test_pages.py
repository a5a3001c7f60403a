"""The pages for operators, word for word: every `sh` block of them, in order, in one shell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deployment import PROGRAM, ROOT, Service
from tests.support.kms_plugin import socket_directory
from tests.support.ports import free_port
from tests.support.volumes import place, require_fuse

BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def directory() -> Iterator[Path]:
    require_fuse()
    if os.geteuid() != 0:
        pytest.skip("the pages are for root")
    with place() as directory:
        yield directory


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("page", ["postgresql.md", "cloudant.md"])
def test_a_page(page: str, service: Service, directory: Path) -> None:
    newest = max(Path("/usr/lib/postgresql").iterdir(), key=lambda path: int(path.name))
    here = {"/srv/": f"{directory}/", "5433": str(free_port()), "/usr/lib/postgresql/15/": f"{newest}/"}
    script = script_of(page, directory, here)
    assert script.count("hsmkms adopt volume create") == 1
    run(script, service, directory, 300)


def test_the_kubernetes_page(service: Service) -> None:
    with socket_directory() as directory:
        here = {"/srv/": f"{directory}/", "9189": str(free_port())}
        script = script_of("kubernetes.md", directory, here)
        assert script.count("hsmkms kubernetes-plugin") == 4
        said = run(script, service, directory, 300)
        assert "ok, encrypting under" in said
        assert "srw-------" in said
        assert "\nkind: EncryptionConfiguration\n" in said
        written = [path.name for path in (directory / "node").rglob("*") if path.is_file()]
        assert sorted(written) == ["hsmkms-encryption.yaml", "hsmkms-kubernetes.service"]


def script_of(page: str, directory: Path, here: dict[str, str]) -> str:
    """The blocks of a page, with its places put where the test may write."""
    script = "set -euo pipefail\n" + "".join(BLOCK.findall((ROOT / "docs" / page).read_text()))
    for written, put in {"/etc/hsmkms/": f"{directory}/etc/", **here}.items():
        script = script.replace(written, put)
    return script


def run(script: str, service: Service, directory: Path, timeout_s: float) -> str:
    """Run a script to its good end; what it printed."""
    done = subprocess.run(
        ["bash", "-c", script],
        env={**service.state.environment(), "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}", "URL": service.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=directory,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    """Its words and values; that its programs are there is not asked of a test machine."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    (unit,) = re.findall(
        r"^```ini\n(.*?)^```$", (ROOT / "docs" / "postgresql.md").read_text(), re.MULTILINE | re.DOTALL
    )
    file = tmp_path / "bank.service"
    file.write_text(unit.replace("/opt/hsmkms/bin/hsmkms", str(PROGRAM)))
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, check=False)
    assert (done.returncode, [line for line in done.stderr.decode().splitlines() if "bank.service" in line]) == (0, [])
    command = next(line for line in unit.replace("\\\n", " ").splitlines() if line.startswith("ExecStart="))
    assert "adopt volume run /srv/bank" in command
