"""A pool that runs: `async with running(folder) as pool:`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.doubles.xapi.controls import Controls
from tests.doubles.xapi.dispatch import Dispatcher
from tests.doubles.xapi.nbd import NbdServers
from tests.doubles.xapi.server import Servers
from tests.doubles.xapi.settings import Settings
from tests.doubles.xapi.world import World


@dataclass(frozen=True)
class Access:
    """What clients need: URLs of the hosts, whose first is the coordinator at the start, and their dom0 sockets."""

    urls: list[str]
    sockets: list[str]
    ca_pem: str
    user: str
    password: str

    def address(self, host: int = 0) -> str:
        """As in `host.address`."""
        return self.urls[host].removeprefix("https://")


@dataclass(frozen=True)
class Pool:
    access: Access
    controls: Controls
    world: World
    """Everything inside, for tests in the same process that need more than the controls."""


@asynccontextmanager
async def running(folder: Path, settings: Settings | None = None) -> AsyncIterator[Pool]:
    """In the caller's event loop, with everything it keeps below `folder`, until the context ends; then nothing is left."""
    settings = settings or Settings()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "srs").mkdir()
    world = World(settings, folder / "srs")
    nbd = NbdServers(world, folder / "nbd")
    servers = Servers(world, Dispatcher(world, nbd), folder)
    try:
        for host in servers.hosts:
            await servers.start(host.number)
        world.furnish([f"127.0.0.1:{host.port}" for host in servers.hosts])
        access = Access(
            [f"https://127.0.0.1:{host.port}" for host in servers.hosts],
            [str(host.socket) for host in servers.hosts],
            world.authority.ca_pem,
            settings.user,
            settings.password,
        )
        yield Pool(access, Controls(world, servers), world)
    finally:
        await asyncio.gather(*(servers.stop(host.number) for host in servers.hosts))
        await world.tasks.close()
        await nbd.close()
        world.storage.close()
        for sr in (folder / "srs").iterdir():
            sr.rmdir()
        (folder / "srs").rmdir()
