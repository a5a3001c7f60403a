"""The Go toolchain, for the modules in tests/interop around IBM's Go client and the API server's code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

import pytest

from tests.support.foreign_clients import output_of

MODULE: Final = Path(__file__).parents[1] / "interop" / "go"
CLIENT: Final = "github.com/IBM/keyprotect-go-client"


def go(*arguments: str | Path, where: Path = MODULE) -> str:
    """Run Go with exactly the modules that go.sum names; what it printed. Skips where there is no Go."""
    program = shutil.which("go")
    needed = re.findall(r"^go ([\d.]+)$", (where / "go.mod").read_text(), re.MULTILINE)[0]
    if program is None:
        pytest.skip(f"no Go on the PATH; {where} needs {needed}")
    settings = {"GOFLAGS": "-mod=readonly -buildvcs=false", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    found = output_of([program, "env", "GOVERSION"], settings).strip().removeprefix("go")
    if _numbers(found) < _numbers(needed):
        pytest.skip(f"Go is {found}; {where} needs {needed}")
    return output_of([program, *arguments], settings, where)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
