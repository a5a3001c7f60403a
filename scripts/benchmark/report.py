"""What a run says: tables on the terminal, a JSON file, plots (PNG)."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

from scripts.benchmark.target import ROOT, Rate

mpl.use("Agg")
from matplotlib import pyplot as plt  # only after the choice of a back end that needs no display

OUT: Final = ROOT / "bench-out"
TABLES: Final = "tables.md"
Rates = Mapping[str, Sequence[Rate]]


def ratio(found: Sequence[Rate], limit: Sequence[Rate]) -> float:
    """Median of the ratios within one round each."""
    return statistics.median(one.per_s / other.per_s for one, other in zip(found, limit, strict=True))


def show(title: str, rates: Rates, limits: Mapping[str, str]) -> None:
    """A line for each target; `limits` names what a target is to be compared with. Also as Markdown, in bench-out."""
    columns = ("ops/s", "min", "max", "of C", "p50 µs", "p99 µs", "p99.9 µs")
    table = Table(title, box=None)
    for column in columns:
        table.add_column(column, justify="right")
    lines = [f"| {title} | {' | '.join(columns)} |", f"|---{'|---:' * len(columns)}|"]
    for name, found in rates.items():
        speeds = [rate.per_s for rate in found]
        limit = limits.get(name)
        cells = [
            *(f"{speed:,.0f}" for speed in (statistics.median(speeds), min(speeds), max(speeds))),
            "" if limit is None else f"{ratio(found, rates[limit]):.3f}",
            *(_us(found, place) for place in ("p50_us", "p99_us", "p999_us")),
        ]
        table.add_row(name, *cells)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    print()
    Console(width=120).print(table)
    OUT.mkdir(exist_ok=True)
    with (OUT / TABLES).open("a") as file:
        file.write("\n".join(lines) + "\n\n")


def begin() -> None:
    """No tables of an earlier run."""
    (OUT / TABLES).unlink(missing_ok=True)


def _us(found: Sequence[Rate], place: str) -> str:
    value = statistics.median(getattr(rate, place) for rate in found)
    return f"{value:,.0f}" if value else ""


def plain(rates: Rates) -> dict[str, list[dict[str, Any]]]:
    """For the JSON file."""
    return {name: [vars(rate) for rate in found] for name, found in rates.items()}


def write(report: Mapping[str, object]) -> None:
    """bench-out/bench.json."""
    OUT.mkdir(exist_ok=True)
    (OUT / "bench.json").write_text(json.dumps(report, indent=1) + "\n")


def plot_throughput(rates: Rates, path: Path = OUT / "throughput.png") -> None:
    """Bars of medians with the lowest and highest round."""
    names = list(rates)
    middles = [statistics.median(rate.per_s for rate in rates[name]) for name in names]
    low = [middle - min(rate.per_s for rate in rates[name]) for name, middle in zip(names, middles, strict=True)]
    high = [max(rate.per_s for rate in rates[name]) - middle for name, middle in zip(names, middles, strict=True)]
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(names) + 1.2), layout="constrained")
    axes.barh(names, middles, xerr=[low, high], color="#4477aa", ecolor="#222222", capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel("operations a second (median, lowest and highest round)")
    axes.grid(axis="x", alpha=0.3)
    _save(figure, path)


def plot_connections(rates: Mapping[str, Mapping[int, Rate]], path: Path = OUT / "connections.png") -> None:
    """Throughput and latency over the number of connections."""
    figure, (speed, wait) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, found in rates.items():
        counts = list(found)
        speed.plot(counts, [found[count].per_s for count in counts], marker="o", label=name)
        wait.plot(counts, [found[count].p50_us / 1e3 for count in counts], marker="o", label=f"{name}, p50")
        wait.plot(counts, [found[count].p99_us / 1e3 for count in counts], marker="x", ls="--", label=f"{name}, p99")
    for axes, label in ((speed, "requests a second"), (wait, "milliseconds")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xlabel("connections")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend()
    wait.set_yscale("log")
    _save(figure, path)


def plot_latency(paced: Mapping[str, Rate], path: Path = OUT / "latency.png") -> None:
    """Percentiles below saturation."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for place, (name, rate) in enumerate(paced.items()):
        heights = [rate.p50_us / 1e3, rate.p99_us / 1e3, rate.p999_us / 1e3]
        width = 0.8 / len(paced)
        axes.bar([group + place * width for group in range(3)], heights, width, label=name)
    axes.set_xticks([group + 0.4 - 0.4 / len(paced) for group in range(3)], ["p50", "p99", "p99.9"])
    axes.set_ylabel("milliseconds")
    axes.axhline(10, color="#aa3333", ls=":", label="10 ms")
    axes.legend()
    axes.grid(axis="y", alpha=0.3)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    OUT.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
