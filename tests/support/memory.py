"""What is in the memory of running processes, as root on their host or who takes a dump of them reads it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_UNREADABLE = ("[vvar]", "[vsyscall]")


def found_in_memory(group: int, needles: Mapping[str, bytes]) -> set[str]:
    """Names of those needles that some process of a process group has anywhere in its memory."""
    return {
        name
        for process in _processes(group)
        for region in _regions(process)
        for name, needle in needles.items()
        if needle in region
    }


def parts_of(name: str, secret: bytes, *, every: int = 8) -> dict[str, bytes]:
    """Needles of eight bytes that find a secret also where much of it was overwritten since."""
    return {f"{name}[{start}]": secret[start : start + 8] for start in range(0, len(secret), every)}


def _processes(group: int) -> list[Path]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) == group:
                found.append(process)
        except ProcessLookupError:
            continue
    assert found
    return found


def _regions(process: Path) -> Iterator[bytes]:
    with (process / "mem").open("rb", buffering=0) as memory:
        for line in (process / "maps").read_text().splitlines():
            addresses, rights = line.split(maxsplit=2)[:2]
            if not rights.startswith("r") or line.endswith(_UNREADABLE):
                continue
            start, end = (int(address, 16) for address in addresses.split("-"))
            memory.seek(start)
            try:
                yield memory.read(end - start)
            except OSError:
                # A mapping of a file that is shorter by now, or one that went away since the list was read.
                continue
