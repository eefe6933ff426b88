"""Our connection to a fake pool of XenServer hosts, what is to be gone when it is closed, and its SR "shared" as a store."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hypervisors.narrowing import as_managed, as_pending_disk
from hypervisors.primary import Pool as Primary
from hypervisors.xen.config import XenPoolSettings
from hypervisors.xen.hosts import parse_host
from hypervisors.xen.pool import XenPool
from hypervisors.xen.sr import pool_of_sr
from stores.contract import DataStore, Kind, MiB, ObjectInfo
from stores.secret import Secret
from tests.doubles.xapi import Access, Pool

SIZE = 8 * MiB


class Clock:
    """Seconds since the epoch, as tests say."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def settings(access: Access, *, originator: str = "agent-1", **changes: Any) -> XenPoolSettings:
    """`access` as the operator would write it down. The CA's certificate is written beside the pool's sockets."""
    ca_file = Path(access.sockets[0]).parent / "trusted.pem"
    ca_file.write_text(access.ca_pem)
    told: dict[str, Any] = {
        "name": "fake",
        "hosts": tuple(parse_host(url) for url in access.urls),
        "user": access.user,
        "password": Secret(access.password),
        "originator": originator,
        "ca_file": ca_file,
        "pause_s": 0.005,
        "grace_s": 1.0,
    }
    return XenPoolSettings(**(told | changes))


@dataclass(frozen=True)
class Site:
    """The fake, our connection to it, and its SR "shared"."""

    fake: Pool
    pool: XenPool
    sr: Primary

    @property
    def store(self) -> DataStore:
        return self.sr.store

    # --------------------------------------------------------------------------------------------- as commands do it

    async def make(self, ref: str, *, token: str = "command-1", data: bytes = b"", replace: bool = False) -> ObjectInfo:
        async with self.store.write(ref, Kind.MANAGED_DISK, token=token, replace=replace) as pending:
            disk = await as_pending_disk(pending).make(SIZE)
            await self.fill(disk.id, data)
            return await as_pending_disk(pending).commit()

    async def derive(self, ref: str, source: str, *, frozen: bool, token: str = "command-1") -> ObjectInfo:
        async with (
            self.store.write(ref, Kind.MANAGED_DISK, token=token) as pending,
            self.store.present(await self.store.stat(source), Kind.MANAGED_DISK) as disk,
        ):
            await as_pending_disk(pending).derive(as_managed(disk), frozen=frozen)
            return await as_pending_disk(pending).commit()

    async def refs(self) -> list[str]:
        return [info.ref async for info in self.store.list()]

    # --------------------------------------------------------------------------------------- behind everybody's back

    async def fill(self, uuid: str, data: bytes) -> None:
        path = self.fake.world.folder.parent / "data"
        path.write_bytes(data)
        await self.fake.controls.write(uuid, 0, str(path))

    async def digest(self, ref: str) -> str:
        return await self.fake.controls.digest((await self.store.stat(ref)).version or "")

    async def vdis(self) -> dict[str, dict[str, Any]]:
        """Records by uuid."""
        return dict((await self.fake.controls.left())["vdis"])

    async def names(self) -> list[str]:
        """Of all VDIs."""
        return sorted(record["name_label"] for record in (await self.vdis()).values())

    async def leftovers(self) -> list[str]:
        """Locks, and notes of copies under way; VBDs of control domains, tasks."""
        left = await self.fake.controls.left()
        locks = self.fake.world.db.field("SR", self.handle, "other_config")
        copying = [key for record in left["vdis"].values() for key in record["other_config"] if "copying" in key]
        return [*locks, *copying, *left["dom0_vbds"], *(task["name_label"] for task in left["tasks"])]

    @property
    def handle(self) -> str:
        return self.fake.world.db.find("SR", name_label="shared")[0]

    def handle_of(self, uuid: str) -> str:
        return self.fake.world.db.by_uuid("VDI", uuid)


@lru_cache(maxsize=8)
def sha256(data: bytes) -> str:
    """Of a disk of `SIZE` that begins with `data`."""
    return hashlib.sha256(data + bytes(SIZE - len(data))).hexdigest()


@asynccontextmanager
async def connected(
    fake: Pool, *, originator: str = "agent-1", clock: Callable[[], float] | None = None, **changes: Any
) -> AsyncIterator[XenPool]:
    """Nothing of its sessions and tasks is left at the end."""
    pool = XenPool(settings(fake.access, originator=originator, **changes), clock=clock or Clock())
    try:
        yield pool
    finally:
        await pool.aclose()
    left = await fake.controls.left()
    assert originator not in left["sessions"]
    assert [task["name_label"] for task in left["tasks"] if task["name_label"] == pool.task_label] == []


@asynccontextmanager
async def connected_to(access: Access) -> AsyncIterator[XenPool]:
    """To a pool in a process of its own."""
    pool = XenPool(settings(access), clock=Clock())
    try:
        yield pool
    finally:
        await pool.aclose()


@asynccontextmanager
async def shared_sr(
    fake: Pool, *, originator: str = "agent-1", clock: Callable[[], float] | None = None, **changes: Any
) -> AsyncIterator[Site]:
    """As `connected`, and its SR."""
    async with connected(fake, originator=originator, clock=clock, **changes) as pool:
        yield Site(fake, pool, pool_of_sr("shared", [pool]))


@asynccontextmanager
async def crashed(fake: Pool, **changes: Any) -> AsyncIterator[Site]:
    """Of a process that will be killed: closing its connection changes nothing in the pool but its sessions."""
    pool = XenPool(settings(fake.access, **changes), clock=Clock())
    try:
        yield Site(fake, pool, pool_of_sr("shared", [pool]))
    finally:
        await pool.aclose()
        await fake.controls.drop_sessions()
