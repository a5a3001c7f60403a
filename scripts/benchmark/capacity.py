"""How many nodes and token partitions a load takes: a simulation of queues, fed by what `scripts/bench` measured.

A request waits for its worker's core, then for its partition of the token where that is a device of its own, then for
the audit log, whose fdatasync takes all that wait. Arrivals are random (Poisson) and go to a random worker.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from scripts.benchmark.report import OUT

P99_S: Final = 0.010
BUSY: Final = 0.70
"""A core that is busier has no room for a node that fails."""
WARM_UP: Final = 0.1


@dataclass(frozen=True)
class Costs:
    """Seconds of a worker's core for one wrap, and of one fdatasync. `token_s` and `token_lanes` are of a device of its
    own: how long it takes for one, and how many at once; a token in the process has its cost in `core_s`."""

    core_s: float
    disk_s: float
    token_s: float = 0.0
    token_lanes: int = 1


@dataclass
class _Station:
    """Serves `lanes` at once, first come first served."""

    lanes: int
    waiting: deque[tuple[float, Callable[[float], None]]] = field(default_factory=deque)
    busy: int = 0
    busy_s: float = 0.0


@dataclass
class _Disk:
    """One write at a time takes all that wait."""

    waiting: list[Callable[[float], None]] = field(default_factory=list)
    busy: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a simulated load came to."""

    per_s: float
    p50_s: float
    p99_s: float
    core_busy: float
    token_busy: float


class Simulation:
    """Workers and partitions of one deployment."""

    def __init__(self, costs: Costs, workers: int, partitions: int, seed: int = 1) -> None:
        self._costs = costs
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = 0
        self._cores = [_Station(1) for _ in range(workers)]
        self._disks = [_Disk() for _ in range(workers)]
        self._tokens = [_Station(costs.token_lanes) for _ in range(partitions)]
        self._times: list[tuple[float, float]] = []

    def open_loop(self, per_s: float, seconds: float) -> Outcome:
        """Requests at a rate, whatever becomes of those before."""
        now = 0.0
        while now < seconds:
            now += self._random.expovariate(per_s)
            self._at(now, self._arrive(self._random.randrange(len(self._cores)), now, None))
        return self._run(seconds)

    def closed_loop(self, clients: int, seconds: float) -> Outcome:
        """Each worker has so many clients, which send their next request when they have the answer: what `wrk` does."""

        def start(worker: int) -> Callable[[float], None]:
            def again(now: float) -> None:
                if now < seconds:
                    self._arrive(worker, now, again)(now)

            return again

        for worker in range(len(self._cores)):
            for _ in range(clients):
                self._at(0.0, start(worker))
        return self._run(seconds)

    def _at(self, when: float, what: Callable[[float], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, what))

    def _run(self, seconds: float) -> Outcome:
        while self._events:
            when, _, what = heapq.heappop(self._events)
            if when > seconds:
                break
            what(when)
        times = sorted(end - begin for begin, end in self._times if begin > WARM_UP * seconds)
        done = len(times) / (seconds * (1 - WARM_UP))
        core = max(station.busy_s for station in self._cores) / seconds
        token = max((station.busy_s / station.lanes for station in self._tokens), default=0.0) / seconds
        if not times:
            return Outcome(0.0, math.inf, math.inf, core, token)
        return Outcome(done, times[len(times) // 2], times[int(len(times) * 0.99)], core, token)

    def _arrive(self, worker: int, begin: float, then: Callable[[float], None] | None) -> Callable[[float], None]:
        def finished(now: float) -> None:
            self._times.append((begin, now))
            if then is not None:
                then(now)

        def recorded(now: float) -> None:
            self._write(self._disks[worker], now, finished)

        def on_token(now: float) -> None:
            if self._costs.token_s:
                self._serve(self._random.choice(self._tokens), self._costs.token_s, now, recorded)
            else:
                recorded(now)

        return lambda now: self._serve(self._cores[worker], self._costs.core_s, now, on_token)

    def _serve(self, station: _Station, seconds: float, now: float, then: Callable[[float], None]) -> None:
        if station.busy == station.lanes:
            station.waiting.append((seconds, then))
            return
        station.busy += 1
        station.busy_s += seconds

        def end(when: float) -> None:
            station.busy -= 1
            if station.waiting:
                needed, following = station.waiting.popleft()
                self._serve(station, needed, when, following)
            then(when)

        self._at(now + seconds, end)

    def _write(self, disk: _Disk, now: float, then: Callable[[float], None]) -> None:
        disk.waiting.append(then)
        if not disk.busy:
            self._begin(disk, now)

    def _begin(self, disk: _Disk, now: float) -> None:
        batch, disk.waiting, disk.busy = disk.waiting, [], True

        def end(when: float) -> None:
            disk.busy = False
            for then in batch:
                then(when)
            if disk.waiting:
                self._begin(disk, when)

        self._at(now + self._costs.disk_s, end)


def answer(costs: Costs, per_s: float, keys: int, keys_per_partition: int, seconds: float) -> tuple[int, int, Outcome]:
    """The fewest workers, and partitions for as many keys and operations, whose cores and devices stay below BUSY and
    whose 99th percentile stays below P99_S."""
    workers = max(1, math.ceil(per_s * costs.core_s / BUSY))
    by_load = math.ceil(per_s * costs.token_s / costs.token_lanes / BUSY) if costs.token_s else 1
    partitions = max(1, by_load, math.ceil(keys / keys_per_partition))
    # A disk that is too slow for P99_S stays so with any number of workers; then the load alone decides.
    for count in (workers, *(math.ceil(workers * factor) for factor in (1.15, 1.3, 1.5, 2.0))):
        outcome = Simulation(costs, count, partitions).open_loop(per_s, seconds)
        if outcome.p99_s < P99_S:
            return count, partitions, outcome
    return workers, partitions, Simulation(costs, workers, partitions).open_loop(per_s, seconds)


def measured() -> dict[str, float]:
    """What `scripts/bench` left in bench-out: wraps a second of one worker on one core; µs of an fdatasync; wraps a
    second of one and two nodes."""
    try:
        found = json.loads((OUT / "bench.json").read_text())
        rates = sorted(one["per_s"] for one in found["rates"]["HTTP wrap"])
        nodes = found["nodes"]
        return {
            "per s": rates[len(rates) // 2],
            "fdatasync us": found["fdatasync us"],
            "one node": nodes["one node per s"],
            "two nodes": nodes["two nodes per s"],
            "connections": nodes["connections"],
        }
    except (OSError, KeyError) as error:
        raise SystemExit("capacity: run scripts/bench first; its bench-out/bench.json is what this reads.") from error


def check(found: dict[str, float], seconds: float) -> list[tuple[str, float, float]]:
    """Measured and simulated wraps a second of one node and of two. The one-node figure gives the cost of its core,
    which the load shares there, so it is the two nodes that say something."""
    disk_s = found["fdatasync us"] / 1e6
    costs = Costs(1 / found["one node"], disk_s)
    clients = int(found["connections"])
    return [
        (
            f"{workers} node{'s' * (workers > 1)}",
            found[name],
            Simulation(costs, workers, 1).closed_loop(clients, seconds).per_s,
        )
        for workers, name in ((1, "one node"), (2, "two nodes"))
    ]


def main() -> None:
    """Print the check and the answer."""
    parser = argparse.ArgumentParser(prog="scripts/capacity", description=__doc__)
    parser.add_argument("--per-s", type=float, default=10_000, help="wraps and unwraps a second (default 10,000)")
    parser.add_argument("--keys", type=int, default=1_000_000, help="key versions on tokens (default 1,000,000)")
    parser.add_argument("--keys-per-partition", type=int, default=10_000, help="what one holds well (default 10,000)")
    parser.add_argument(
        "--token-ms", type=float, default=0.0, help="of a device of its own for one (default: in process)"
    )
    parser.add_argument("--token-lanes", type=int, default=8, help="how many it does at once (default 8)")
    parser.add_argument("--seconds", type=float, default=3.0, help="simulated (default 3)")
    options = parser.parse_args()
    found = measured()
    print("measured and simulated, wraps/s")
    for name, real, simulated in check(found, options.seconds):
        print(f"  {name:<8} {real:8,.0f} {simulated:8,.0f}  {simulated / real - 1:+.1%}")
    costs = Costs(1 / found["per s"], found["fdatasync us"] / 1e6, options.token_ms / 1e3, options.token_lanes)
    workers, partitions, outcome = answer(
        costs, options.per_s, options.keys, options.keys_per_partition, options.seconds
    )
    asked = f"{options.per_s:,.0f}/s and {options.keys:,} keys"
    print(f"\n{asked}: {workers} workers (one core each), {partitions} partitions")
    print(
        f"  cores {outcome.core_busy:.0%} busy, p50 {outcome.p50_s * 1e3:.1f} ms, p99 {outcome.p99_s * 1e3:.1f} ms"
        + ("" if outcome.p99_s < P99_S else ", more than 10 ms: the audit disk is too slow for less")
        + (f", busiest partition {outcome.token_busy:.0%}" if costs.token_s else "")
    )


if __name__ == "__main__":
    main()
