"""`make soak`: random faults one after the other under load, for half an hour or as long as it is told.

Ends by itself, with exit code 0 when nothing was wrong or lost and the workers' memory and open files stayed flat. In
its first third workers are killed too; after that the same two have to survive all else, so that a leak shows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.faults.catalogue import FAULTS, Fault
from tests.faults.places import Place, soak_place
from tests.support.audited import unrecorded
from tests.support.deployment import make_state
from tests.support.injector import Injector, compile_injector
from tests.support.load import seed_of_today

PATIENCE_S = 90.0
"""A fault that is not over by then is a failure; in the bench each fault has a shorter bound of its own."""
WARM_S = 60.0
"""How old a worker is before its memory is looked at."""
MOST_MIB = 24.0
MOST_FILES = 12
KILLS = ("a worker is killed", "all are killed, and started again", "one call never returns", "no call returns")
PLACES = ("token", "postgresql", "audit full")
NOT_HERE = (
    "PostgreSQL fails over to another port",
    "PostgreSQL's standby is away",
    "a worker stands still",
    "PostgreSQL hangs for 20 s",
)


@dataclass(frozen=True)
class Sample:
    """What a worker holds."""

    age_s: float
    rss_mib: float
    files: int


@dataclass
class Held:
    """What the workers held over time, by process id."""

    samples: dict[int, list[Sample]] = field(default_factory=dict)
    born: dict[int, float] = field(default_factory=dict)

    def look(self, workers: Sequence[int]) -> None:
        """Take a sample of each worker. One that ends meanwhile has none."""
        for worker in workers:
            try:
                pages = int(Path(f"/proc/{worker}/statm").read_text().split()[1])
                files = len(list(Path(f"/proc/{worker}/fd").iterdir()))
            except OSError:
                continue
            age = time.monotonic() - self.born.setdefault(worker, time.monotonic())
            self.samples.setdefault(worker, []).append(Sample(age, pages * 4_096 / (1 << 20), files))

    def growth(self) -> list[dict[str, float]]:
        """Of each worker that grew old enough: first and last memory (MiB; medians of a tenth of the samples each), its
        slope (MiB an hour, least squares), and how many open files: half way, at the end, at least and at most. While
        workers are killed, in the first third, clients' connections move to those that stay."""
        found = []
        for worker, samples in self.samples.items():
            old = [sample for sample in samples if sample.age_s >= WARM_S]
            if len(old) < 10:
                continue
            part = max(1, len(old) // 10)
            found.append(
                {
                    "worker": worker,
                    "age_s": round(old[-1].age_s),
                    "first_mib": _median([sample.rss_mib for sample in old[:part]]),
                    "last_mib": _median([sample.rss_mib for sample in old[-part:]]),
                    "mib_an_hour": round(_slope(old) * 3_600, 1),
                    "midway_files": sorted(sample.files for sample in old[len(old) // 2 :][:part])[part // 2],
                    "least_files": min(sample.files for sample in old),
                    "most_files": max(sample.files for sample in old),
                    "last_files": old[-1].files,
                }
            )
        return found


def _median(values: list[float]) -> float:
    return round(sorted(values)[len(values) // 2], 1)


def _slope(samples: Sequence[Sample]) -> float:
    """MiB a second."""
    middle_x = sum(sample.age_s for sample in samples) / len(samples)
    middle_y = sum(sample.rss_mib for sample in samples) / len(samples)
    above = sum((sample.age_s - middle_x) * (sample.rss_mib - middle_y) for sample in samples)
    below = sum((sample.age_s - middle_x) ** 2 for sample in samples)
    return above / below if below else 0.0


def faults_for(place: Place, *, kills: bool) -> list[Fault]:
    """Those of the catalogue that this place can have."""
    fits = [fault for fault in FAULTS if fault.place in PLACES and fault.name not in NOT_HERE]
    fits = [fault for fault in fits if fault.place != "audit full" or place.audit_full is not None]
    return [fault for fault in fits if kills or fault.name not in KILLS]


def run(place: Place, *, minutes: float, every_s: float, rng: random.Random) -> tuple[Counter[str], Held, list[str]]:
    """Faults until the time is over; what happened how often, what workers held, what went wrong."""
    began, happened, held, failures = time.monotonic(), Counter[str](), Held(), []
    for number in itertools.count(1):
        now = time.monotonic() - began
        if now >= minutes * 60:
            break
        fault = rng.choice(faults_for(place, kills=now < minutes * 20))
        fault.begin(place)
        until = time.monotonic() + max(fault.seconds, rng.uniform(0.2, 4))
        while time.monotonic() < until:
            time.sleep(0.1)
        fault.cure(place)
        cured = time.monotonic()
        happened[fault.name] += 1
        try:
            well = place.load.wait_until_well(cured, PATIENCE_S)
        except AssertionError as error:
            failures.append(f"after {fault.name}: {error}")
            break
        print(f"{now:6.0f} s  {number:3}  {fault.name}: well after {well - cured:.2f} s", flush=True)
        while time.monotonic() < began + number * every_s:
            held.look(place.service.workers())
            time.sleep(1)
    return happened, held, failures


def judge(growth: Sequence[dict[str, float]]) -> list[str]:
    """What is not flat."""
    problems = []
    for one in growth:
        if one["last_mib"] - one["first_mib"] > MOST_MIB:
            problems.append(f"worker {one['worker']} grew from {one['first_mib']} to {one['last_mib']} MiB")
        if one["last_files"] - one["midway_files"] > MOST_FILES:
            problems.append(f"worker {one['worker']} has {one['last_files']} open files, and had {one['midway_files']}")
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 if nothing was wrong, lost or growing."""
    parser = argparse.ArgumentParser(prog="make soak ARGS=", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=20, help="seconds from fault to fault")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=seed_of_today())
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    print(f"seed {asked.seed}, {asked.minutes:g} minutes, a fault every {asked.every:g} s, {asked.clients} clients")
    with tempfile.TemporaryDirectory(prefix="hsmkms-soak-") as name:
        directory = Path(name)
        injector = Injector(compile_injector(directory), directory / "faults")
        injector.cure()
        state = make_state(directory / "state")
        with soak_place(state, directory, injector, clients=asked.clients, seed=asked.seed) as place:
            load = place.load
            load.wait_until_well(time.monotonic(), PATIENCE_S)
            happened, held, failures = run(
                place, minutes=asked.minutes, every_s=asked.every, rng=random.Random(asked.seed)
            )
            load.stop()
            lost = [*load.lost(), *unrecorded(load.calls, [place.audit], refusals_too=not happened["audit disk full"])]
        growth = held.growth()
    report = {
        **{name: getattr(asked, name) for name in ("seed", "minutes", "every", "clients")},
        "faults": dict(happened),
        "sent": len(load.calls),
        "answered": sum(call.good for call in load.calls),
        "refused": sum(call.status == 503 for call in load.calls),
        "cut off": sum(not call.status for call in load.calls),
        "wrong": load.wrong[:20],
        "lost": lost[:20],
        "workers": growth,
    }
    print(json.dumps(report, indent=1))
    if asked.json is not None:
        asked.json.write_text(json.dumps({**report, "samples": _plain(held)}, indent=1) + "\n")
    problems = [*failures, *load.wrong, *lost, *judge(growth)]
    print("\n".join(problems[:20]) or "nothing wrong, nothing lost, memory and open files flat")
    return 1 if problems else 0


def _plain(held: Held) -> dict[int, list[dict[str, float]]]:
    return {worker: [asdict(sample) for sample in samples] for worker, samples in held.samples.items()}


if __name__ == "__main__":
    sys.exit(main())
