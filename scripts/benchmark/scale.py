"""One and two nodes behind one PostgreSQL and one token: each node on a core of its own, the load on both."""

from __future__ import annotations

import statistics
import threading
from pathlib import Path
from typing import Final

from scripts.benchmark.target import CLIENT_CORE, SERVER_CORE, Deployment, Rate
from tests.support.postgresql import PostgresServer

CONNECTIONS: Final = 32


def measure(place: Path, rounds: int, seconds: float) -> dict[str, object]:
    """Wraps a second of the first node alone and of both at once, medians, and the ratio within each round. The load
    takes its share of the same cores in both."""
    server = PostgresServer.start()
    try:
        url = server.new_database("bench")
        first = Deployment(place / "node", core=SERVER_CORE, HSMKMS_DATABASE_URL=url)
        with first:
            second = Deployment(place / "node", core=CLIENT_CORE, beside=first, HSMKMS_DATABASE_URL=url)
            with second:
                second.calls = first.calls
                alone: list[float] = []
                other: list[float] = []
                both: list[float] = []
                for _ in range(rounds):
                    alone.append(first.http("wrap", seconds, CONNECTIONS, SERVER_CORE).per_s)
                    other.append(second.http("wrap", seconds, CONNECTIONS, CLIENT_CORE).per_s)
                    both.append(sum(rate.per_s for rate in _together(first, second, seconds)))
    finally:
        server.stop()
    ratios = [together / ((one + two) / 2) for one, two, together in zip(alone, other, both, strict=True)]
    return {
        "one node per s": statistics.median(alone + other),
        "two nodes per s": statistics.median(both),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "connections": CONNECTIONS,
    }


def _together(first: Deployment, second: Deployment, seconds: float) -> list[Rate]:
    rates: list[Rate] = []
    loads = [
        threading.Thread(
            target=lambda node=node, core=core: rates.append(node.http("wrap", seconds, CONNECTIONS, core))
        )
        for node, core in ((first, SERVER_CORE), (second, CLIENT_CORE))
    ]
    for load in loads:
        load.start()
    for load in loads:
        load.join()
    return rates
