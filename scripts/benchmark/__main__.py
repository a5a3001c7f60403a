"""C limit, token room and HTTP with authentication, policy and audit on, side by side in one run; ratios are to the C
loop of the same round. With --peer also OpenStack Barbican on the same token."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from scripts.benchmark import lists, peer, report, scale, volumes
from scripts.benchmark.target import DEK_BYTES, Deployment, Rate

KEYS: Final = (10, 1_000, 10_000)
KEYS_QUICK: Final = (10, 1_000)
CONNECTIONS: Final = (1, 16, 64, 256)
LOADS: Final = (0.5, 0.7)
MILLION: Final = 1_000_000
STEP: Final = 100_000
C_WRAP, C_UNWRAP = "C loop, wrap", "C loop, unwrap"

Rates = dict[str, list[Rate]]
Targets = Mapping[str, Callable[[], Rate]]


def main() -> None:
    """Measure, print, and leave numbers and plots in bench-out."""
    options = _options()
    _require_tools()
    # A terminated benchmark has to end its services too, as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="hsmkms-bench-") as directory:
        place = Path(directory)
        if options.lists:
            found: dict[str, object] = {"lists ms": lists.measure(place, max(options.rounds, lists.RUNS))}
        elif options.volumes:
            found = {"volumes": volumes.measure(place, options.rounds, options.seconds)}
            print(json.dumps(found["volumes"], indent=1))
        else:
            found = _everything(place, options)
    machine = {"processor": _processor(), "cores": os.cpu_count(), "kernel": platform.release()}
    report.write({"machine": machine, "python": platform.python_version(), "options": vars(options), **found})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="some two minutes: fewer and shorter rounds, fewer keys")
    parser.add_argument("--seconds", type=float, help="of each measurement (default 2, quick 1)")
    parser.add_argument("--rounds", type=int, help="interleaved; medians are printed (default 5, quick 3)")
    parser.add_argument("--connections", type=int, default=64, help="of the HTTP load (default 64)")
    parser.add_argument(
        "--peer", action="store_true", help="also Barbican, installed into .venv-peer at the first time"
    )
    parser.add_argument("--million", action="store_true", help="also the memory of a worker over a million wraps")
    parser.add_argument("--lists", action="store_true", help="instead: every form of a list with 100,000 keys")
    parser.add_argument("--volumes", action="store_true", help="instead: PostgreSQL on an encrypted volume and on none")
    options = parser.parse_args()
    options.seconds = options.seconds or (1 if options.quick else 2)
    options.rounds = options.rounds or (3 if options.quick else 5)
    return options


def _require_tools() -> None:
    missing = [tool for tool in ("cc", "wrk", "taskset") if shutil.which(tool) is None]
    if missing:
        raise SystemExit(f"bench: install {', '.join(missing)} first (Debian packages gcc, wrk, util-linux).")
    if not {0, 1} <= os.sched_getaffinity(0):
        raise SystemExit("bench: needs cores 0 and 1, one for the service and one for the load.")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _everything(place: Path, options: argparse.Namespace) -> dict[str, object]:
    report.begin()
    found: dict[str, object] = {"fdatasync us": _fdatasync_us(place)}
    program = _compile(place)
    few = Deployment(place / "few")
    with few:
        found["resident MiB at start"] = few.resident_mib()
        rates = _rounds(_targets(few, program, options), options.rounds)
        limits = {name: C_UNWRAP if "unwrap" in name else C_WRAP for name in rates if name not in ("HTTP log in",)}
        report.show("median of the rounds", rates, limits)
        report.plot_throughput(rates)
        found["rates"] = report.plain(rates)
        found["of C"] = {name: report.ratio(rates[name], rates[limit]) for name, limit in limits.items()}
        found["by connections"] = _by_connections(few, options)
        found["by size"] = _by_size(few, options)
        found["paced"] = _paced(few, rates, options)
        found["resident MiB at the end"] = few.resident_mib()
        if options.million:
            found["resident MiB over a million"] = _million(few, options.connections)
        if options.peer:
            found["peer"] = peer.measure(place, few, options.rounds, options.seconds)
    print("\nauthorization of a warm request in µs; ms until the first decision after a change")
    print("policies   caller    early      yes       no      first")
    found["authorization"] = few.decision()
    print(found["authorization"], end="")
    print("\nprocessor time of one wrap by room, µs (each alone, again and again)")
    found["rooms us"] = json.loads(few.path_parts("wrap"))
    print(json.dumps(found["rooms us"], indent=1))
    found["by workers"] = _by_workers(place, options)
    found["nodes"] = scale.measure(place, options.rounds, options.seconds)
    print("\none and two nodes behind one PostgreSQL and one token:", json.dumps(found["nodes"]))
    found["by keys"] = _by_keys(few, place, options)
    return found


def _fdatasync_us(place: Path) -> float:
    """Median of appending 8 KiB, about what 10 events are, and waiting for the disk."""
    times = []
    descriptor = os.open(place / "disk", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for _ in range(300):
            started = time.perf_counter()
            os.write(descriptor, bytes(8_192))
            os.fdatasync(descriptor)
            times.append((time.perf_counter() - started) * 1e6)
    finally:
        os.close(descriptor)
    return statistics.median(times)


def _compile(place: Path) -> Path:
    program = place / "loop"
    source = Path(__file__).with_name("loop.c")
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra"]
    subprocess.run(["cc", *flags, "-o", str(program), str(source), "-ldl"], check=True)
    return program


def _targets(few: Deployment, program: Path, options: argparse.Namespace) -> dict[str, Callable[[], Rate]]:
    """The C loop's DEKs are no private objects, as ours are not; the private ones that a first attempt makes are for
    comparison."""
    seconds, connections = options.seconds, options.connections
    loop = partial(few.loop, program, few.module)
    return {
        C_WRAP: lambda: loop("wrap", seconds, private=False),
        "C loop, wrap, two processes": lambda: few.loops(program, few.module, "wrap", seconds),
        "C loop, wrap, DEK private": lambda: loop("wrap", seconds, private=True),
        "token room, wrap": lambda: few.room("wrap", seconds),
        "HTTP wrap": lambda: few.http("wrap", seconds, connections),
        "HTTP generate and wrap": lambda: few.http("generate", seconds, connections),
        "HTTP bulk wrap": lambda: few.http("bulk wrap", seconds, 4),
        C_UNWRAP: lambda: loop("unwrap", seconds, private=False),
        "C loop, unwrap, DEK private": lambda: loop("unwrap", seconds, private=True),
        "token room, unwrap": lambda: few.room("unwrap", seconds),
        "HTTP unwrap": lambda: few.http("unwrap", seconds, connections),
        "HTTP bulk unwrap": lambda: few.http("bulk unwrap", seconds, 4),
        "HTTP log in": lambda: few.http("log in", seconds, connections),
    }


def _rounds(targets: Targets, rounds: int) -> Rates:
    """Each target once a round, so that a slow minute of the machine hits all of them."""
    rates: Rates = {name: [] for name in targets}
    for turn in range(rounds):
        # Every other round backwards, so that no target always follows the same one.
        for name in list(targets)[:: -1 if turn % 2 else 1]:
            rates[name].append(targets[name]())
    return rates


def _medians(targets: Targets, rounds: int) -> dict[str, Rate]:
    return {name: _middle(found) for name, found in _rounds(targets, rounds).items()}


def _middle(found: list[Rate]) -> Rate:
    """The round of the median rate, with the medians of the percentiles."""
    places = ("per_s", "p50_us", "p99_us", "count", "p999_us")
    return Rate(*(statistics.median(getattr(rate, place) for rate in found) for place in places))


def _by_connections(few: Deployment, options: argparse.Namespace) -> dict[str, object]:
    actions = ("wrap", "unwrap")
    targets = {
        f"{action}, {count} connections": partial(few.http, action, options.seconds, count)
        for action in actions
        for count in CONNECTIONS
    }
    rates = _rounds(targets, min(3, options.rounds))
    report.show("by connections", rates, {})
    middles = {name: _middle(found) for name, found in rates.items()}
    report.plot_connections(
        {action: {count: middles[f"{action}, {count} connections"] for count in CONNECTIONS} for action in actions}
    )
    return {name: vars(rate) for name, rate in middles.items()}


def _by_size(few: Deployment, options: argparse.Namespace) -> dict[str, object]:
    names = [f"{action} {size}" for action in ("wrap", "unwrap") for size in DEK_BYTES]
    targets = {name: partial(few.http, name, options.seconds, options.connections) for name in names}
    rates = _rounds(targets, min(3, options.rounds))
    report.show("by bytes of the DEK", rates, {})
    return {name: vars(_middle(found)) for name, found in rates.items()}


def _paced(few: Deployment, rates: Rates, options: argparse.Namespace) -> dict[str, object]:
    """Latency at parts of what was just reached."""
    targets: dict[str, Callable[[], Rate]] = {}
    for action in ("wrap", "unwrap"):
        full = statistics.median(rate.per_s for rate in rates[f"HTTP {action}"])
        for part in LOADS:
            targets[f"{action} at {part:.0%} load"] = partial(few.paced, action, full * part, 2 * options.seconds)
    found = _rounds(targets, min(3, options.rounds))
    report.show("below saturation", found, {})
    middles = {name: _middle(rounds) for name, rounds in found.items()}
    report.plot_latency(middles)
    return {name: vars(rate) for name, rate in middles.items()}


def _by_workers(place: Path, options: argparse.Namespace) -> dict[str, object]:
    """Both cores for the service, which the load shares."""
    found: dict[str, list[Rate]] = {}
    for workers in (1, 2):
        service = Deployment(place / f"workers-{workers}", core=None, workers=workers)
        with service:
            # Each worker remembers for itself; so all of them have to have been asked before.
            service.http("wrap", 1, options.connections, None)
            found[f"{workers} worker{'s' * (workers > 1)}"] = [
                service.http("wrap", options.seconds, options.connections, None) for _ in range(options.rounds)
            ]
    report.show("by workers, wrap", found, {})
    return {name: vars(_middle(rates)) for name, rates in found.items()}


def _by_keys(few: Deployment, place: Path, options: argparse.Namespace) -> dict[str, object]:
    """HTTP wrap with more and more keys on the token over one connection: latency without a queue.

    A second service with as few keys as the first tells how far two equal ones differ on this machine. Slices of a
    second take turns, because the machine's own pace moves by more, over minutes, than what is looked for.
    """
    counts = KEYS_QUICK if options.quick else KEYS
    services = {f"{counts[0]} keys": few, f"{counts[0]} keys again": Deployment(place / "again")}
    services |= {f"{count} keys": Deployment(place / f"keys-{count}") for count in counts[1:]}
    for (name, service), count in zip(services.items(), (counts[0], *counts), strict=True):
        started = time.monotonic()
        # The key that each service makes for the benchmark comes on top.
        service.fill(count - 1)
        print(f"{name}: filled in {time.monotonic() - started:.0f} s", flush=True)
    running = list(services.values())
    try:
        for service in running:
            service.__enter__()
        targets = {name: partial(service.http, "wrap", 1, 1) for name, service in services.items()}
        rates = _rounds(targets, 2 * options.rounds)
    finally:
        for service in running:
            if service.is_running:
                service.__exit__()
    names = list(services)
    base = [rate.p50_us for rate in rates[names[0]]]
    found: dict[str, object] = {}
    print("\nHTTP wrap over one connection, p50 in µs: median of the slices, and of the ratios within each turn")
    for name in names:
        times = [rate.p50_us for rate in rates[name]]
        ratios = sorted(other / one for one, other in zip(base, times, strict=True))
        middle = statistics.median(ratios)
        low, high = ratios[len(ratios) // 4], ratios[len(ratios) * 3 // 4]
        print(f"  {name:<16} {statistics.median(times):6.0f}  {middle:.3f} (middle half {low:.3f} to {high:.3f})")
        found[name] = {"p50 us": statistics.median(times), "ratio": middle}
    return found


def _million(few: Deployment, connections: int) -> list[tuple[int, float]]:
    """Resident memory at each 100,000 wraps of a million."""
    wraps = 0
    points = [(wraps, few.resident_mib())]
    print("\nresident MiB of the worker after so many wraps")
    while wraps < MILLION:
        wraps += few.http("wrap", 2, connections).count
        if wraps // STEP > points[-1][0] // STEP:
            points.append((wraps, few.resident_mib()))
            print(f"  {points[-1][0]:>9,}  {points[-1][1]:.1f}", flush=True)
    print(f"  grown since the first {STEP:,}: {points[-1][1] - points[1][1]:+.1f}")
    return points


main()
