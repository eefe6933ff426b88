"""One Copy to or from a pool of XenServer hosts by the agent's own parts: `python -m benchmarks.xen_client COMMAND.json WORK`.

As `benchmarks.copy_client`, with a pool of hosts in `WORK/settings.json`. What it holds in memory for the transfer is its
high-water mark afterwards without what it had before.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agent.commands import Copy
from agent.config import AgentSection, ApiSection, Config, TlsSection, UrlsSection
from agent.config_xen import XenPool, XenSection
from agent.wiring import Parts, build
from benchmarks.copy_client import warm, written
from benchmarks.harness import measured
from hypervisors import verbs
from hypervisors.contract import HypervisorType
from hypervisors.operations import Operations
from stores.errors import NotFound
from stores.to import PrimaryDataStoreTO


@dataclass(frozen=True)
class Client:
    """The agent's parts over one pool of hosts."""

    parts: Parts

    @property
    def operations(self) -> Operations:
        return self.parts.operations

    def call(self, token: str) -> verbs.Call:
        return verbs.Call(token, HypervisorType.XEN)

    async def warm(self, command: Copy) -> None:
        """The stores are open and we are logged in, as an earlier command has done in a daemon."""
        for to in (command.source.store, command.destination.store):
            if not isinstance(to, PrimaryDataStoreTO):
                await warm(self.parts, to)
                continue
            (handler,) = (each for each in self.parts.handlers if each.type is HypervisorType.XEN)
            primary = handler.pool(to)
            assert primary is not None, "a pool of hosts keeps its disks itself"
            with suppress(NotFound):
                await primary.store.stat("nothing")

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
    pool = XenPool(
        name="bench",
        hosts=tuple(given["hosts"]),
        ca_file=Path(given["pool_ca_file"]),
        user=given["user"],
        password_file=Path(given["password_file"]),
    )
    config = Config(
        agent=AgentSection(state_dir=work, runtime_dir=work, hypervisor=HypervisorType.XEN),
        urls=UrlsSection(allow_http=True, allow_networks=("127.0.0.0/8",), ports=()),
        tls=TlsSection(ca_file=Path(given["ca_file"])),
        api=ApiSection(socket=work / "api.sock"),
        xen=XenSection(pools=(pool,), originator="benchmark"),
    )
    parts = build(config)
    try:
        yield Client(parts)
    finally:
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
