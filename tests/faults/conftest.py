"""A token with faults, and the table of what came of each fault of the bench."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.rows import Row, table, write_json
from tests.support.injector import Injector, compile_injector

ROWS = pytest.StashKey[list[Row]]()


def pytest_configure(config: pytest.Config) -> None:
    """No row yet."""
    config.stash[ROWS] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, and write it to the file FAULTS_JSON."""
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("fault bench")
    for line in table(rows):
        terminalreporter.write_line(line)
    if path := os.environ.get("FAULTS_JSON"):
        write_json(rows, Path(path))


@pytest.fixture(scope="session")
def injector_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_injector(tmp_path_factory.mktemp("injector"))


@pytest.fixture
def injector(injector_library: Path, tmp_path: Path) -> Injector:
    """No fault yet."""
    made = Injector(injector_library, tmp_path / "faults")
    made.cure()
    return made
