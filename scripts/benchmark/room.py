"""The token room alone: seal or open in a loop. Arguments: version id, wrap or unwrap, seconds."""

from __future__ import annotations

import sys
import time

from hsmkms.domain.keys import KeyVersion
from hsmkms.settings import load
from hsmkms.store.engine import Database
from hsmkms.store.keys import KeyStore
from hsmkms.wiring import open_rooms, pin_of
from scripts.benchmark.target import AAD, DEK


def main() -> None:
    """Print operations per second and two percentiles in microseconds."""
    version_id, action, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    settings = load()
    rooms = open_rooms(settings, pin_of(settings))
    with rooms.close:
        token = rooms.token
        version = _version(KeyStore(Database(settings.database)).versions(), version_id)
        sealed = token.seal(version, DEK, AAD)
        times = []
        started = before = time.perf_counter()
        while before - started < seconds:
            if action == "wrap":
                token.seal(version, DEK, AAD)
            else:
                token.open(version, version_id, sealed, AAD)
            after = time.perf_counter()
            times.append(after - before)
            before = after
    times.sort()
    p50, p99 = times[len(times) // 2] * 1e6, times[len(times) * 99 // 100] * 1e6
    print(f"{len(times) / (before - started):.0f} {p50:.1f} {p99:.1f}")


def _version(versions: list[tuple[str, KeyVersion]], version_id: str) -> KeyVersion:
    return next(version for _, version in versions if version.id == version_id)


main()
