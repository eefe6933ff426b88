"""Our client of XAPI on the fake pool, and what tests of it share."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from hypervisors.xen.events import TaskWaiter, watching
from hypervisors.xen.hosts import Host, Trust, parse_host
from hypervisors.xen.session import PoolClient
from hypervisors.xen.streams import DiskStreams
from hypervisors.xen.wire import Patience
from hypervisors.xen.xapi import Xapi
from stores.contract import MiB
from stores.secret import Secret
from tests.doubles.xapi import Pool

SIZE = 8 * MiB
PATIENCE = Patience(connect_s=10.0, head_s=10.0, stall_s=10.0)


@dataclass(frozen=True)
class Agent:
    client: PoolClient
    tasks: TaskWaiter
    streams: DiskStreams
    pool: Pool

    async def disk(self, sr: str = "shared") -> str:
        ref = (await self.client.call("SR.get_by_name_label", sr))[0]
        told = {"SR": ref, "virtual_size": SIZE, "type": "user", "sharable": False, "read_only": False}
        return str(await self.client.call("VDI.create", told))

    async def digest(self, disk: str) -> str:
        return await self.pool.controls.digest(await self.client.call("VDI.get_uuid", disk))


@asynccontextmanager
async def agent(
    pool: Pool,
    *,
    hosts: list[Host] | None = None,
    password: str | None = None,
    patience: Patience = PATIENCE,
    grace_s: float = 10.0,
    poll_s: float = 5.0,
) -> AsyncIterator[Agent]:
    """Ours, with nothing left of it in the pool at the end but disks."""
    ca_file = Path(pool.access.sockets[0]).parent / "ca.pem"
    ca_file.write_text(pool.access.ca_pem)
    trust = Trust(ca_file)
    ca_file.unlink()
    hosts = hosts or [parse_host(url) for url in pool.access.urls]
    secret = Secret(password or pool.access.password)
    async with (
        Xapi(trust) as xapi,
        PoolClient(xapi, hosts, pool.access.user, secret, originator="agent-1", pause_s=0.02) as client,
        watching(client, poll_s=poll_s, pause_s=0.02) as tasks,
    ):
        streams = DiskStreams(client, tasks, trust, label="agent-1 transfer", patience=patience, grace_s=grace_s)
        yield Agent(client, tasks, streams, pool)
    left = await pool.controls.left()
    assert (left["tasks"], left["sessions"], left["dom0_vbds"]) == ([], [], [])


async def in_pieces(data: bytes, size: int = MiB) -> AsyncIterator[memoryview]:
    """All in one buffer, as a byte stream's pieces may be."""
    buffer = bytearray(size)
    for offset in range(0, len(data), size):
        part = data[offset : offset + size]
        buffer[: len(part)] = part
        yield memoryview(buffer)[: len(part)]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def until_detached(pool: Pool) -> None:
    """The host of the fake pool notices by itself that nobody is there, if a little late."""
    async with asyncio.timeout(60):
        while (await pool.controls.left())["dom0_vbds"]:
            await asyncio.sleep(0.02)
