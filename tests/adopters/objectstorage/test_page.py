"""The page for operators, word for word: every `sh` block of it, in order, in one shell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.adopters.test_pages import BLOCK
from tests.support.deployment import PROGRAM, ROOT, Service
from tests.support.ports import free_port


@pytest.mark.slow
@pytest.mark.alone
def test_the_page(service: Service, tmp_path: Path) -> None:
    blocks = BLOCK.findall((ROOT / "docs" / "objectstorage.md").read_text())
    script = "".join(["set -euo pipefail\n", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n", *blocks])
    for written, here in (
        ("/srv/", f"{tmp_path}/"),
        ("/etc/hsmkms/", f"{tmp_path}/etc/"),
        ("8080", str(free_port())),
        ("scripts/", f"{ROOT}/scripts/"),
    ):
        assert written in script
        script = script.replace(written, here)
    done = subprocess.run(
        ["bash", "-c", script],
        env={**service.state.environment(), "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}", "URL": service.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode()
    assert "Dear customer" in done.stdout.decode()
