"""A template to a pool of RBD images and a clone of it, by the agent's own parts: `python -m benchmarks.rbd_client WORK`.

As `benchmarks.copy_client`; the configuration and the two commands are in `WORK`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.commands import Copy
from agent.config import Config
from agent.wiring import Parts, build
from benchmarks.copy_client import copy, warm
from benchmarks.harness import measured


async def both(parts: Parts, commands: Sequence[Copy]) -> Mapping[str, float]:
    figures = [await copy(parts, command) for command in commands]
    return {"written": sum(each["written"] for each in figures)}


def main() -> None:
    work = Path(sys.argv[1])
    commands = [Copy.model_validate_json((work / name).read_text()) for name in ("template.json", "clone.json")]
    config = Config.model_validate(json.loads((work / "config.json").read_text()))
    with asyncio.Runner() as runner:
        parts = build(config)
        try:
            for data in (commands[0].source, commands[0].destination):
                runner.run(warm(parts, data.store))
            measured(lambda: runner.run(both(parts, commands)))
        finally:
            runner.run(parts.aclose())


if __name__ == "__main__":
    main()
