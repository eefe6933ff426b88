"""One Copy to or from a pool of XenServer hosts by the agent's own parts: `python -m benchmarks.xen_client COMMAND.json WORK`.

As `benchmarks.copy_client`, with a pool of hosts in `WORK/settings.json`. What it holds in memory for the transfer is its
high-water mark afterwards without what it had before.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agent.commands import Copy
from agent.config import AgentSection, ApiSection, Config, TlsSection, UrlsSection
from agent.wiring import Parts, build
from benchmarks.copy_client import warm, written
from benchmarks.harness import measured
from hypervisors import verbs
from hypervisors.contract import HypervisorType
from hypervisors.images.gate import GateLimits
from hypervisors.operations import Operations
from hypervisors.process import ToolRunner
from hypervisors.xen.config import XenPoolSettings
from hypervisors.xen.handler import XenHandler
from hypervisors.xen.hosts import parse_host
from hypervisors.xen.importing import Importer
from hypervisors.xen.pool import XenPool
from hypervisors.xen.snapshots import XenSnapshots
from stores.errors import NotFound
from stores.secret import Secret
from stores.to import PrimaryDataStoreTO


@dataclass(frozen=True)
class Client:
    """The agent's parts over one pool of hosts."""

    parts: Parts
    handler: XenHandler
    operations: Operations

    def call(self, token: str) -> verbs.Call:
        return verbs.Call(token, HypervisorType.XEN)

    async def warm(self, command: Copy) -> None:
        """The stores are open and we are logged in, as an earlier command has done in a daemon."""
        for to in (command.source.store, command.destination.store):
            if not isinstance(to, PrimaryDataStoreTO):
                await warm(self.parts, to)
                continue
            with suppress(NotFound):
                await self.handler.pool(to).store.stat("nothing")

    async def copy(self, command: Copy) -> Mapping[str, float]:
        before, held = written(), memory("VmRSS")
        await self.operations.copy(self.call("benchmark"), verbs.Copy(command.source, command.destination))
        return {"written": float(written() - before), "held": memory("VmHWM") - held}


def memory(name: str) -> float:
    """MiB of this process, by the name that proc(5) has for it."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[name].split()[0]) / 1024


@asynccontextmanager
async def client(work: Path) -> AsyncIterator[Client]:
    given = json.loads((work / "settings.json").read_text())
    config = Config(
        agent=AgentSection(state_dir=work, runtime_dir=work),
        urls=UrlsSection(allow_http=True, allow_networks=("127.0.0.0/8",), ports=()),
        tls=TlsSection(ca_file=Path(given["ca_file"])),
        api=ApiSection(socket=work / "api.sock"),
    )
    parts = build(config)
    pool = XenPool(
        XenPoolSettings(
            name="bench",
            hosts=tuple(parse_host(url) for url in given["hosts"]),
            user=given["user"],
            password=Secret(given["password"]),
            originator="storage-agent benchmark",
            ca_file=Path(given["pool_ca_file"]),
        )
    )
    limits = GateLimits()
    importer = Importer(parts.engine, ToolRunner(), work, limit=limits.virtual_size)
    handler = XenHandler(parts.engine, [pool], importer, XenSnapshots(parts.engine, [pool], importer))
    operations = Operations(parts.resolver, {HypervisorType.XEN: handler}, parts.engine, time.time, limits)
    try:
        yield Client(parts, handler, operations)
    finally:
        await handler.aclose()
        await parts.aclose()


def main() -> None:
    command = Copy.model_validate_json(Path(sys.argv[1]).read_text())
    with asyncio.Runner() as runner:
        context = client(Path(sys.argv[2]))
        made = runner.run(context.__aenter__())
        try:
            runner.run(made.warm(command))
            measured(lambda: runner.run(made.copy(command)))
        finally:
            runner.run(context.__aexit__(None, None, None))


if __name__ == "__main__":
    main()
