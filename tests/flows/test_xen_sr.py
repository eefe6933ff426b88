"""An SR as a store, against the fake pool: disks are made, derived, replaced and removed, and nothing is left or lost whatever
happens in between."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hypervisors.narrowing import as_managed, as_pending_disk
from hypervisors.primary import Pool as Primary
from hypervisors.xen.pool import XenPool
from hypervisors.xen.sr import pool_of_sr
from stores.contract import DataStore, Kind, MiB, ObjectInfo
from stores.errors import AlreadyExists, NotFound
from tests.doubles.xapi import Pool, Settings, running
from tests.images import content
from tests.xen_pools import connected

SIZE = 8 * MiB
DATA = content(MiB, seed=1)


@dataclass(frozen=True)
class Site:
    """The fake, our connection to it, and its SR "shared"."""

    fake: Pool
    pool: XenPool
    sr: Primary
    folder: Path

    @property
    def store(self) -> DataStore:
        return self.sr.store

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

    async def fill(self, uuid: str, data: bytes) -> None:
        """Behind everybody's back."""
        (self.folder / "data").write_bytes(data)
        await self.fake.controls.write(uuid, 0, str(self.folder / "data"))

    async def digest(self, ref: str) -> str:
        async with self.store.present(await self.store.stat(ref), Kind.MANAGED_DISK) as disk:
            return await self.fake.controls.digest(as_managed(disk).id)

    async def vdis(self) -> dict[str, str]:
        """Names of all VDIs by uuid."""
        return {uuid: record["name_label"] for uuid, record in (await self.fake.controls.left())["vdis"].items()}

    async def locks(self) -> dict[str, str]:
        return dict(
            self.fake.world.db.field("SR", self.fake.world.db.find("SR", name_label="shared")[0], "other_config")
        )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data + bytes(SIZE - len(data))).hexdigest()


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[Pool]:
    async with running(tmp_path / "p", Settings(data_destroy_wait_s=0.1)) as pool:
        yield pool
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
async def site(fake: Pool, tmp_path: Path) -> AsyncIterator[Site]:
    async with connected(fake) as pool:
        yield Site(fake, pool, pool_of_sr("shared", [pool]), tmp_path)


async def test_a_disk_is_made_and_deleted(site: Site) -> None:
    with pytest.raises(NotFound):
        await site.store.stat("volumes/a")
    info = await site.make("volumes/a", data=DATA)
    assert await site.store.stat("volumes/a") == info
    (uuid,) = await site.vdis()
    assert (info.ref, info.version, info.size) == ("volumes/a", uuid, 2 * MiB)
    assert await site.digest("volumes/a") == sha256(DATA)
    assert await site.locks() == {}
    with pytest.raises(AlreadyExists):
        await site.make("volumes/a")
    await site.store.delete("volumes/a")
    await site.store.delete("volumes/a")
    assert await site.vdis() == {}


async def test_a_disk_that_is_not_committed_is_none(site: Site) -> None:
    async with site.store.write("a", Kind.MANAGED_DISK, token="t") as pending:
        await as_pending_disk(pending).make(SIZE)
        with pytest.raises(NotFound):
            await site.store.stat("a")
        assert [info.ref async for info in site.store.list()] == []
    assert (await site.vdis(), await site.locks()) == ({}, {})


@pytest.mark.parametrize("frozen", [True, False])
async def test_a_copy_has_the_content_of_its_moment(site: Site, frozen: bool) -> None:
    await site.make("a", data=DATA)
    info = await site.derive("b", "a", frozen=frozen)
    await site.fill((await site.store.stat("a")).version or "", bytes(MiB))
    assert (await site.digest("a"), await site.digest("b")) == (sha256(b""), sha256(DATA))
    (record,) = [record for uuid, record in (await site.fake.controls.left())["vdis"].items() if uuid == info.version]
    assert record["is_a_snapshot"] is frozen
    assert [info.ref async for info in site.store.list()] == ["a", "b"]
    keys = [key for record in (await site.fake.controls.left())["vdis"].values() for key in record["other_config"]]
    assert not [key for key in keys if "copying" in key]


async def test_a_replacement_takes_the_place(site: Site) -> None:
    first = await site.make("a")
    second = await site.make("a", data=DATA, replace=True)
    assert first.version != second.version
    assert await site.digest("a") == sha256(DATA)
    assert await site.vdis() == {second.version: "a"}
