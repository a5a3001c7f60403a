"""A token with faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.injector import Injector, compile_injector


@pytest.fixture(scope="session")
def injector_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_injector(tmp_path_factory.mktemp("injector"))


@pytest.fixture
def injector(injector_library: Path, tmp_path: Path) -> Injector:
    """No fault yet."""
    made = Injector(injector_library, tmp_path / "faults")
    made.cure()
    return made
