"""Faults of a token: a module in front of SoftHSM (`tests/faults/injector.c`) and the file that tells it what to do."""

from __future__ import annotations

import re
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.deployment import ROOT

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
SOURCE = ROOT / "tests" / "faults" / "injector.c"


def compile_injector(directory: Path) -> Path:
    """The shared library."""
    library = directory / "injector.so"
    command = ["gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library)]
    subprocess.run([*command, str(SOURCE), "-ldl"], check=True)
    return library


FUNCTIONS = [f"C_{name}" for name in re.findall(r"X\((\w+), \d\)", SOURCE.read_text())]


@dataclass(frozen=True)
class Injector:
    """One module with one control file."""

    library: Path
    control: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs whose token shall have faults."""
        return {"INJECT_MODULE": MODULE, "INJECT_CONTROL": str(self.control)}

    def fail(self, *functions: str, code: int = 0, every: int = 1, wait_ms: int = 0) -> None:
        """Let each `every`-th call of these functions wait, and return `code` unless it is 0; `*` is all of them."""
        lines = "".join(f"{function} {code:x} {every} {wait_ms}\n" for function in functions)
        # Whole or not at all: calls read it at any moment.
        part = self.control.with_suffix(".part")
        part.write_text(lines)
        part.replace(self.control)

    def tell(self, flags: int) -> None:
        """Have these flags added to those of each token."""
        Path(f"{self.control}.flags").write_text(f"{flags:x}")

    def count_calls(self) -> None:
        """Count calls from now on; before a process starts."""
        self._calls.write_bytes(bytes(8 * len(FUNCTIONS)))

    def calls(self) -> dict[str, int]:
        """How often each function was called by all processes together."""
        return dict(zip(FUNCTIONS, struct.unpack(f"{len(FUNCTIONS)}Q", self._calls.read_bytes()), strict=True))

    @property
    def _calls(self) -> Path:
        return Path(f"{self.control}.calls")

    @property
    def one_waits(self) -> bool:
        """Whether a call waits, or did."""
        return self._waits.exists()

    def forget_waits(self) -> None:
        """None did until now."""
        self._waits.unlink(missing_ok=True)

    def wait_for_one(self) -> None:
        """Return when a call waits. Raises AssertionError when none does."""
        deadline = time.monotonic() + 10
        while not self.one_waits:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    @property
    def _waits(self) -> Path:
        return Path(f"{self.control}.waits")

    def cure(self) -> None:
        """Let every call succeed."""
        self.fail()
