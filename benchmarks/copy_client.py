"""One Copy by the agent's own parts, as a contestant: `python -m benchmarks.copy_client COMMAND.json STATE_DIRECTORY`.

The parts are wired as in the daemon, and imports are not timed, since a daemon has made them long before. Bytes written are
the process's own `write_bytes` (proc(5)) and those of the tools it ran.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from agent.commands import Copy
from agent.config import AgentSection, ApiSection, Config, PoolsSection, TlsSection, UrlsSection
from agent.wiring import build
from benchmarks.harness import measured
from hypervisors import verbs
from hypervisors.contract import HypervisorType


def main() -> None:
    command = Copy.model_validate_json(Path(sys.argv[1]).read_text())
    state = Path(sys.argv[2])
    given = json.loads((state / "settings.json").read_text())
    config = Config(
        agent=AgentSection(state_dir=state, runtime_dir=state),
        pools=PoolsSection(roots=(Path(given["pools"]),)),
        urls=UrlsSection(allow_http=True, allow_networks=("127.0.0.0/8",), ports=()),
        tls=TlsSection(ca_file=Path(given["ca_file"])),
        api=ApiSection(socket=state / "api.sock"),
    )
    measured(lambda: asyncio.run(copy(config, command)))


async def copy(config: Config, command: Copy) -> Mapping[str, float]:
    parts = build(config)
    before = _written()
    try:
        call = verbs.Call("benchmark", HypervisorType.KVM)
        await parts.operations.copy(call, verbs.Copy(command.source, command.destination))
    finally:
        await parts.aclose()
    return {"written": float(_written() - before)}


def _written() -> int:
    """Includes children that were waited for."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["write_bytes"])


if __name__ == "__main__":
    main()
