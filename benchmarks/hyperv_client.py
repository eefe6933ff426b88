"""One Copy to a pool of Hyper-V by the agent's own parts: `python -m benchmarks.hyperv_client WORK`.

As `benchmarks.copy_client`; configuration and command are in `WORK`. What it holds in memory for the transfer is its
high-water mark afterwards without what it had before.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from agent.commands import Copy
from agent.config import Config
from agent.wiring import Parts, build
from benchmarks.copy_client import warm, written
from benchmarks.harness import measured
from benchmarks.xen_client import memory
from hypervisors import verbs
from hypervisors.contract import HypervisorType
from stores.errors import NotFound
from stores.to import PrimaryDataStoreTO


async def ready(parts: Parts, command: Copy) -> None:
    """Stores are open, and there is a shell on the host, as after an earlier command of a daemon."""
    await warm(parts, command.source.store)
    await warm(parts, command.destination.store)
    (handler,) = (each for each in parts.handlers if each.type is HypervisorType.HYPERV)
    assert isinstance(command.destination.store, PrimaryDataStoreTO)
    pool = handler.pool(command.destination.store)
    assert pool is not None
    with suppress(NotFound):
        await pool.store.stat("nothing")


async def copy(parts: Parts, command: Copy) -> Mapping[str, float]:
    before, held = written(), memory("VmRSS")
    call = verbs.Call("benchmark", HypervisorType.HYPERV)
    await parts.operations.copy(call, verbs.Copy(command.source, command.destination))
    return {"written": float(written() - before), "held": memory("VmHWM") - held}


def main() -> None:
    work = Path(sys.argv[1])
    command = Copy.model_validate_json((work / "command.json").read_text())
    config = Config.model_validate(json.loads((work / "config.json").read_text()))
    with asyncio.Runner() as runner:
        parts = build(config)
        try:
            runner.run(ready(parts, command))
            measured(lambda: runner.run(copy(parts, command)))
        finally:
            runner.run(parts.aclose())


if __name__ == "__main__":
    main()
