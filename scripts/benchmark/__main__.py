"""C limit, token room, HTTP wrap and unwrap with authentication on, in one run; ratios are to the C loop beside it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from hsmkms.settings import Settings
from scripts.benchmark import lists, volumes
from scripts.benchmark.target import ROOT, Deployment, Rate

MANY_KEYS: Final = 4_000
FEW_KEYS: Final = 10
MILLION: Final = 1_000_000
STEP: Final = 100_000
C_WRAP, C_WRAP_FAST = "C loop, wrap", "C loop, wrap, DEK not private"
C_UNWRAP, C_UNWRAP_FAST = "C loop, unwrap", "C loop, unwrap, DEK not private"

Rates = dict[str, list[Rate]]


def main() -> None:
    """Measure, print, and leave the numbers in bench-out/bench.json."""
    options = _options()
    _require_tools()
    # A terminated benchmark has to end its services too, as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    report: dict[str, object]
    with tempfile.TemporaryDirectory(prefix="hsmkms-bench-") as directory:
        place = Path(directory)
        if options.lists:
            _write({"options": vars(options), "lists ms": lists.measure(place, max(options.rounds, lists.RUNS))})
            return
        if options.volumes:
            report = {"options": vars(options), "volumes": volumes.measure(place, options.rounds, options.seconds)}
            print(json.dumps(report["volumes"], indent=1))
            _write(report)
            return
        few = Deployment(place / "few")
        with few:
            rates = _rounds(_targets(few, _compile(place), options), options.rounds)
        report = {"options": vars(options), "rates": _plain(rates)}
        _print(rates)
        print("\nauthorization of a warm request in µs; ms until the first decision after a change")
        print("policies   caller    early      yes       no      first")
        report["authorization"] = few.decision()
        print(report["authorization"], end="")
        if not options.skip_many:
            report["many keys"] = _many_keys(few, place, options)
        if options.million:
            with few:
                report["resident MiB"] = _million(few, options.connections)
    _write(report)


def _write(report: dict[str, object]) -> None:
    out = ROOT / "bench-out"
    out.mkdir(exist_ok=True)
    (out / "bench.json").write_text(json.dumps(report, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement (default 4)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved; medians are printed (default 5)")
    parser.add_argument("--connections", type=int, default=16, help="of the HTTP load (default 16)")
    parser.add_argument("--skip-many", action="store_true", help=f"leave out {FEW_KEYS} against {MANY_KEYS} keys")
    parser.add_argument("--lists", action="store_true", help="instead: every form of a list with 100,000 keys")
    parser.add_argument("--volumes", action="store_true", help="instead: PostgreSQL on an encrypted volume and on none")
    parser.add_argument("--million", action="store_true", help="also the memory of a worker over a million wraps")
    return parser.parse_args()


def _require_tools() -> None:
    missing = [tool for tool in ("cc", "wrk", "taskset") if shutil.which(tool) is None]
    if missing:
        raise SystemExit(f"bench: install {', '.join(missing)} first (Debian packages gcc, wrk, util-linux).")
    if not {0, 1} <= os.sched_getaffinity(0):
        raise SystemExit("bench: needs cores 0 and 1, one for the service and one for the load.")


def _compile(place: Path) -> Path:
    program = place / "loop"
    source = Path(__file__).with_name("loop.c")
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra"]
    subprocess.run(["cc", *flags, "-o", str(program), str(source), "-ldl"], check=True)
    return program


def _targets(few: Deployment, program: Path, options: argparse.Namespace) -> dict[str, Callable[[], Rate]]:
    seconds, connections = options.seconds, options.connections
    loop = partial(few.loop, program, Settings().pkcs11_module)
    return {
        C_WRAP: lambda: loop("wrap", seconds, private=True),
        C_WRAP_FAST: lambda: loop("wrap", seconds, private=False),
        "token room, wrap": lambda: few.room("wrap", seconds),
        "HTTP wrap": lambda: few.http("wrap", seconds, connections),
        C_UNWRAP: lambda: loop("unwrap", seconds, private=True),
        C_UNWRAP_FAST: lambda: loop("unwrap", seconds, private=False),
        "token room, unwrap": lambda: few.room("unwrap", seconds),
        "HTTP unwrap": lambda: few.http("unwrap", seconds, connections),
    }


def _rounds(targets: Mapping[str, Callable[[], Rate]], rounds: int) -> Rates:
    """Each target once a round, so that a slow minute of the machine hits all of them."""
    rates: Rates = {name: [] for name in targets}
    for turn in range(rounds):
        # Every other round backwards, so that no target always follows the same one.
        for name in list(targets)[:: -1 if turn % 2 else 1]:
            rates[name].append(targets[name]())
    return rates


def _print(rates: Rates) -> None:
    columns = ("ops/s", "min", "max", "of C", "of C, not private", "p50 µs", "p99 µs")
    table = Table("median of the rounds", box=None)
    for column in columns:
        table.add_column(column, justify="right")
    for name, found in rates.items():
        limit, faster = (C_UNWRAP, C_UNWRAP_FAST) if "unwrap" in name else (C_WRAP, C_WRAP_FAST)
        speeds = [rate.per_s for rate in found]
        table.add_row(
            name,
            *(f"{speed:,.0f}" for speed in (statistics.median(speeds), min(speeds), max(speeds))),
            f"{_ratio(found, rates[limit]):.3f}",
            f"{_ratio(found, rates[faster]):.3f}",
            f"{statistics.median(rate.p50_us for rate in found):,.0f}",
            f"{statistics.median(rate.p99_us for rate in found):,.0f}",
        )
    Console(width=120).print(table)


def _ratio(found: list[Rate], limit: list[Rate]) -> float:
    """Median of the ratios within one round each."""
    return statistics.median(one.per_s / other.per_s for one, other in zip(found, limit, strict=True))


def _many_keys(few: Deployment, place: Path, options: argparse.Namespace) -> dict[str, object]:
    """HTTP wrap with 10 and with 4,000 keys on the token over one connection: latency without a queue.

    A second service with 10 keys tells how far two equal ones differ on this machine. Slices of a second take turns,
    because the machine's own pace moves by more, over minutes, than what is looked for.
    """
    again, many = Deployment(place / "again"), Deployment(place / "many")
    # The key that each service makes for the benchmark comes on top.
    counts = [few.fill(FEW_KEYS - 1) + 1, again.fill(FEW_KEYS - 1) + 1, many.fill(MANY_KEYS) + 1]
    names = [f"{counts[0]} keys", f"{counts[1]} keys again", f"{counts[2]} keys"]
    with few, again, many:
        services = zip(names, (few, again, many), strict=True)
        targets = {name: partial(service.http, "wrap", 1, 1) for name, service in services}
        rates = _rounds(targets, max(options.rounds, round(options.rounds * options.seconds)))
    base = [rate.p50_us for rate in rates[names[0]]]
    found: dict[str, object] = {"rates": _plain(rates)}
    print("\nHTTP wrap over one connection, p50 in µs: median of the slices, and of the ratios within each turn")
    for name in names:
        times = [rate.p50_us for rate in rates[name]]
        ratios = sorted(other / one for one, other in zip(base, times, strict=True))
        ratio = statistics.median(ratios)
        low, high = ratios[len(ratios) // 4], ratios[len(ratios) * 3 // 4]
        print(f"  {name:<16} {statistics.median(times):5.0f}  {ratio:.3f} (middle half {low:.3f} to {high:.3f})")
        found[name] = ratio
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


def _plain(rates: Rates) -> dict[str, list[dict[str, Any]]]:
    return {name: [vars(rate) for rate in found] for name, found in rates.items()}


main()
