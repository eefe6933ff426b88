"""One Copy by the agent's own parts, as a contestant: `python -m benchmarks.copy_client COMMAND.json STATE_DIRECTORY`.

The parts are wired as in the daemon; imports and the first contact with the store are not timed, since a daemon has made
them long before. Bytes written are the process's own `write_bytes` (proc(5)) and those of the tools it ran.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from agent.commands import Copy
from agent.config import AgentSection, ApiSection, Config, KvmSection, PoolsSection, TlsSection, UrlsSection
from agent.wiring import Parts, build
from benchmarks.harness import measured
from hypervisors import verbs
from hypervisors.contract import HypervisorType
from stores.errors import NotFound
from stores.to import DataStoreTO


def main() -> None:
    command = Copy.model_validate_json(Path(sys.argv[1]).read_text())
    state = Path(sys.argv[2])
    given = json.loads((state / "settings.json").read_text())
    config = Config(
        agent=AgentSection(state_dir=state, runtime_dir=state),
        pools=PoolsSection(roots=(Path(given["pools"]),)),
        urls=UrlsSection(allow_http=True, allow_networks=("127.0.0.0/8",), ports=()),
        tls=TlsSection(ca_file=Path(given["ca_file"])),
        kvm=KvmSection(libvirt_uri=given.get("libvirt", "none")),
        api=ApiSection(socket=state / "api.sock"),
    )
    with asyncio.Runner() as runner:
        parts = build(config)
        try:
            for data in (command.source, command.destination):
                runner.run(warm(parts, data.store))
            measured(lambda: runner.run(copy(parts, command)))
        finally:
            runner.run(parts.aclose())


async def warm(parts: Parts, to: DataStoreTO) -> None:
    """Opens the store, as an earlier command has done in a daemon: botocore alone takes a third of a second for it."""
    with suppress(NotFound):
        await parts.resolver.store(to).stat("nothing")


async def copy(parts: Parts, command: Copy) -> Mapping[str, float]:
    before = written()
    call = verbs.Call(f"benchmark-{os.getpid()}", HypervisorType.KVM)
    await parts.operations.copy(call, verbs.Copy(command.source, command.destination))
    return {"written": float(written() - before)}


def written() -> int:
    """Includes children that were waited for."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["write_bytes"])


if __name__ == "__main__":
    main()
