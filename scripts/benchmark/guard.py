"""One line for CI: what a wrap and an unwrap cost. Function calls are exact; the ratio of processor times, of the same
work in this run, moves by a fifth on a busy machine, so it is told and nothing fails for it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.benchmark.target import ROOT, Deployment

ROUNDS = 3
SECONDS = 0.3


def main() -> None:
    """Print the line."""
    with tempfile.TemporaryDirectory(prefix="hsmkms-guard-") as directory:
        place = Path(directory)
        program = place / "loop"
        source = ROOT / "scripts" / "benchmark" / "loop.c"
        subprocess.run(["cc", "-std=gnu11", "-O2", "-o", str(program), str(source), "-ldl"], check=True)
        deployment = Deployment(place / "state")
        said = []
        for action in ("wrap", "unwrap"):
            found = json.loads(deployment.run_module("scripts.benchmark.counting", action))
            deployment.version_id = found["version"]
            ratios = []
            for _ in range(ROUNDS):
                limit = deployment.loop(program, deployment.module, action, SECONDS, private=False)
                whole = json.loads(deployment.run_module("scripts.benchmark.path", action, "60", "16"))["whole"]
                ratios.append(whole / (1e6 / limit.per_s))
            said.append(
                f"{action} {found['Python']:.0f} Python and {found['C']:.0f} C calls,"
                f" {statistics.median(ratios):.1f} times the C loop"
            )
    print(f"hot path: {'; '.join(said)} (no sockets)", file=sys.stderr)


main()
