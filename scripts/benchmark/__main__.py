"""C limit, token room, HTTP wrap and unwrap with authentication on, in one run; ratios are to the C loop beside it."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scripts.benchmark.target import ROOT, Deployment, Rate

PORTS = (8871, 8872)
MANY_KEYS = 4_000
MILLION = 1_000_000


def main() -> None:
    """Measure and print."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="hsmkms-bench-") as directory:
        place = Path(directory)
        loop = _compile(place)
        few = Deployment(place / "few", PORTS[0])
        with few:
            rates = _rounds(_targets(few, loop, options), options.rounds)
        report: dict[str, object] = {"rates": {name: [vars(rate) for rate in found] for name, found in rates.items()}}
        _print(rates)
        if not options.skip_many:
            report["many keys"] = _many_keys(few, place, options)
        if options.million:
            with few:
                report["memory"] = _million(few)
    out = ROOT / "bench-out"
    out.mkdir(exist_ok=True)
    (out / "bench.json").write_text(json.dumps(report, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved; medians are printed")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--skip-many", action="store_true", help=f"leave out 10 against {MANY_KEYS} keys")
    parser.add_argument("--million", action="store_true", help="also the memory of a worker over a million wraps")
    return parser.parse_args()


def _compile(place: Path) -> Path:
    program = place / "loop"
    source = Path(__file__).with_name("loop.c")
    subprocess.run(["cc", "-O2", "-w", "-o", str(program), str(source), "-ldl"], check=True)
    return program


def _targets(few: Deployment, loop: Path, options: argparse.Namespace) -> dict[str, Callable[[], Rate]]:
    seconds, connections = options.seconds, options.connections
    return {
        "C loop, wrap": lambda: few.loop(loop, "wrap", seconds, private=True),
        "C loop, wrap, DEK not private": lambda: few.loop(loop, "wrap", seconds, private=False),
        "C loop, unwrap": lambda: few.loop(loop, "unwrap", seconds, private=True),
        "token room, wrap": lambda: few.room("wrap", seconds),
        "token room, unwrap": lambda: few.room("unwrap", seconds),
        "HTTP wrap": lambda: few.http("wrap", seconds, connections),
        "HTTP unwrap": lambda: few.http("unwrap", seconds, connections),
    }


def _rounds(targets: dict[str, Callable[[], Rate]], rounds: int) -> dict[str, list[Rate]]:
    """Each target once a round, so that a slow minute of the machine hits all of them."""
    rates: dict[str, list[Rate]] = {name: [] for name in targets}
    for _ in range(rounds):
        for name, measure in targets.items():
            rates[name].append(measure())
    return rates


def _print(rates: dict[str, list[Rate]]) -> None:
    table = Table("what", "ops/s (min-max)", "of C", "of C, DEK not private", "p50 µs", "p99 µs", box=None)
    for name, found in rates.items():
        limit = "C loop, unwrap" if "unwrap" in name else "C loop, wrap"
        faster = "C loop, unwrap" if "unwrap" in name else "C loop, wrap, DEK not private"
        speeds = [rate.per_s for rate in found]
        table.add_row(
            name,
            f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f}-{max(speeds):,.0f})",
            f"{_ratio(found, rates[limit]):.2f}",
            f"{_ratio(found, rates[faster]):.2f}",
            f"{statistics.median(rate.p50_us for rate in found):,.0f}",
            f"{statistics.median(rate.p99_us for rate in found):,.0f}",
        )
    Console(width=120).print(table)


def _ratio(found: list[Rate], limit: list[Rate]) -> float:
    return statistics.median(one.per_s / other.per_s for one, other in zip(found, limit, strict=True))


def _many_keys(few: Deployment, place: Path, options: argparse.Namespace) -> dict[str, object]:
    """HTTP wrap with about 10 and with 4,000 keys on the token, side by side."""
    few.fill(8)
    many = Deployment(place / "many", PORTS[1])
    many.fill(MANY_KEYS)
    with few, many:
        rates = _rounds(
            {
                "10 keys": lambda: few.http("wrap", options.seconds, 1),
                f"{MANY_KEYS} keys": lambda: many.http("wrap", options.seconds, 1),
            },
            options.rounds,
        )
    first, second = rates.values()
    ratio = statistics.median(b.p50_us / a.p50_us for a, b in zip(first, second, strict=True))
    print(f"\nHTTP wrap, one connection, p50 with {MANY_KEYS} keys over p50 with 10 keys: {ratio:.3f}")
    for name, found in rates.items():
        print(f"  {name}: p50 {statistics.median(r.p50_us for r in found):.0f} µs")
    return {"ratio": ratio, **{name: [vars(rate) for rate in found] for name, found in rates.items()}}


def _million(few: Deployment) -> list[tuple[int, float]]:
    """Resident memory at each 100,000 wraps of a million."""
    wraps, points, noted = 0.0, [(0, few.resident_mib())], 0
    while wraps < MILLION:
        rate = few.http("wrap", 10, 16)
        wraps += rate.per_s * 10
        if wraps // 100_000 > noted:
            noted = int(wraps // 100_000)
            points.append((int(wraps), few.resident_mib()))
    print("\nresident MiB of the worker after so many wraps:")
    print("  " + ", ".join(f"{count // 1000}k: {mib:.1f}" for count, mib in points))
    return points


main()
