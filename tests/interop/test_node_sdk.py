"""IBM's Node SDK, unmodified, as the npm registry serves it: every method of it, by the script in `node/`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import pytest

from tests.support.foreign_clients import output_of, run

SOURCES: Final = Path(__file__).with_name("node")
NOT_CALLED: Final = {"getAllowedIpPort"}
"""What later work serves."""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script beside exactly the packages that package-lock.json names."""
    installed = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "conformance.js"):
        shutil.copy(SOURCES / name, installed)
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    output_of(["npm", "ci", *quiet], {"npm_config_update_notifier": "false"}, installed)
    return installed / "conformance.js"


def test_every_method_of_the_sdk(script: Path, place: dict[str, str]) -> None:
    report = run(["node", script], place)
    assert set(report["methods"]) - set(report["called"]) == NOT_CALLED
