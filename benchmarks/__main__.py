"""`make bench`: every benchmark, one after the other, and all goals in one table.

    python -m benchmarks [NAME...]

Each writes `benchmarks/results/NAME.json`; the goals of all go to `benchmarks/results/goals.json`. Exits 1 when one is missed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import Verdict, conclude

NAMES = (
    "startup",
    "commands",
    "bytes",
    "copy",
    "bridge",
    "upload",
    "stream",
    "backup",
    "live",
    "xen",
    "hyperv",
    "rbd",
    "cache",
    "cache_policy",
    "ledger",
    "cloudstack",
)
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    names = sys.argv[1:] or NAMES
    RESULTS.mkdir(exist_ok=True)
    verdicts: list[Verdict] = []
    broken: list[str] = []
    for name in names:
        print(f"\n== {name}", flush=True)
        result = RESULTS / f"{name}.json"
        result.unlink(missing_ok=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--json", str(result)], check=False)
        if result.exists():
            verdicts += [Verdict(**goal) for goal in json.loads(result.read_text())["goals"]]
        else:
            broken.append(name)
    print("\n== all goals")
    conclude(verdicts, {}, RESULTS / "goals.json")
    if broken:
        print(f"did not finish: {', '.join(broken)}")
    sys.exit(0 if not broken and all(verdict.met for verdict in verdicts) else 1)


if __name__ == "__main__":
    main()
