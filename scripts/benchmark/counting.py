"""What one request of the hot path costs in function calls, which do not depend on how busy a machine is. Argument:
wrap or unwrap, in a deployment's environment."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from types import FrameType
from typing import Any, Final

from hsmkms.settings import load
from hsmkms.wiring import open_rooms, pin_of
from scripts.benchmark.path import Path, open_path

WARM_TURNS: Final = 4
TURNS: Final = 8
AT_ONCE: Final = 16
_KINDS: Final = {"call": "Python", "c_call": "C"}


def calls_of(path: Path, action: str) -> dict[str, float]:
    """Functions that one request calls on the event loop's thread, by the language they are written in; of many that
    come together, with what this costs beside them."""
    found: Counter[str] = Counter()

    def note(_: FrameType, event: str, __: Any) -> None:
        if event in _KINDS:
            found[_KINDS[event]] += 1

    async def run() -> None:
        connections = path.connections(AT_ONCE)
        await path.turns(action, WARM_TURNS, connections)
        sys.setprofile(note)
        try:
            await path.turns(action, TURNS, connections)
        finally:
            sys.setprofile(None)

    with asyncio.Runner() as runner:
        runner.run(run())
    return {name: round(value / (TURNS * AT_ONCE), 1) for name, value in found.items()}


def main() -> None:
    """Print a line of JSON, with the key version that was used."""
    settings = load()
    rooms = open_rooms(settings, pin_of(settings))
    with rooms.close:
        path = open_path(rooms)
        key = rooms.services.snapshot.remembered(path.instance_id, path.key_id)
        assert key is not None
        print(json.dumps({**calls_of(path, sys.argv[1]), "version": key.current.id}))


if __name__ == "__main__":
    main()
