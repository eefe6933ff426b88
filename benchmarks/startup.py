"""How long the command line takes to say anything: `python -m benchmarks.startup [--rounds N] [--json FILE]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.harness import Contestant, at_most, compare, conclude

LIMIT_S = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    agent = Contestant("storage-agent --help", [str(Path(sys.executable).parent / "storage-agent"), "--help"])
    python = Contestant("python -c pass", [sys.executable, "-c", "pass"])
    rows = compare([agent, python], rounds=options.rounds, after=lambda contestant, sample: None)
    verdict = at_most("storage-agent --help, s", rows[0].wall_s, LIMIT_S)
    conclude([verdict], {"start-up": rows}, options.json)
    sys.exit(0 if verdict.met else 1)


if __name__ == "__main__":
    main()
