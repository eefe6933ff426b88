"""Uploads while the host itself is in trouble: disks that are full, pools that are sick, hosts that share one."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from stores.cache.health import PoolSick
from stores.cache.ladder import CacheUnavailable
from stores.cache.postgres import PostgresDatabase
from stores.cache.schema import UploadState
from stores.cache.writeback.errors import UploadPending
from stores.contract import MiB
from stores.secret import Secret
from tests.doubles.caches import entries_of, until
from tests.doubles.mounts import mounted_tmpfs
from tests.postgres import PASSWORD, Postgres
from tests.uploads import Host, bucket, data_of, host


def fill_up(directory: Path) -> Path:
    """A file of somebody else takes all that is free."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (MiB, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


async def test_a_full_disk_under_the_queue_delays_what_is_staged_and_loses_nothing(tmp_path: Path) -> None:
    with mounted_tmpfs(tmp_path / "disk", options="size=40m") as disk:
        async with host(disk) as here:
            here.store.gate.clear()
            info = await here.stage("x", data_of("x"))
            assert info.upload is not None
            await until(lambda: here.store.running == 1)
            filler = fill_up(disk)
            here.store.gate.set()
            await until(lambda: here.store.made["x"] == 1 or not here.pool.healthy)
            with pytest.raises((PoolSick, CacheUnavailable, OSError)):
                await here.stage("y", data_of("y"))
            filler.unlink()
            await until(lambda: here.pool.healthy)
            await here.queue.stored(info.upload, deadline_s=30)
            assert here.store.content("x") == data_of("x")
            assert here.store.made == {"x": 1}
            await here.queue.stored((await here.stage("y", data_of("y"))).upload or "", deadline_s=30)


async def test_a_disk_that_fills_up_while_something_is_staged(tmp_path: Path) -> None:
    """Whoever writes the file learns of it; nothing of it is left."""
    with mounted_tmpfs(tmp_path / "disk", options="size=40m") as disk:
        async with host(disk) as here:

            async def write() -> None:
                async with here.queue.staging(
                    bucket(), here.store, "x", token="t", size=6 * MiB, replace=False, wait_s=0.0
                ) as pending:
                    fill_up(disk)
                    pending.path.write_bytes(data_of("x", 6 * MiB))

            with pytest.raises(OSError, match="No space"):
                await write()
            (disk / "filler").unlink()
            await until(lambda: here.pool.healthy)
            await here.queue.stored((await here.stage("x", data_of("x"), wait_s=30.0)).upload or "", deadline_s=30)


async def test_a_sick_pools_uploads_wait_until_it_is_well(memory: Path) -> None:
    async with host(memory, lease_s=2.0) as here:
        here.store.gate.clear()
        info = await here.stage("x", data_of("x"))
        assert info.upload is not None
        await until(lambda: here.store.running == 1)
        here.pool.access.health.fails("broken on purpose")
        await until(lambda: here.store.running == 0)
        assert await here.queue.list() == []
        with pytest.raises(PoolSick):
            await here.queue.stored(info.upload, deadline_s=0)
        with pytest.raises(CacheUnavailable):
            await here.stage("y", b"y")
        here.store.gate.set()
        await until(lambda: here.pool.healthy)
        await here.queue.stored(info.upload, deadline_s=30)
        assert here.store.content("x") == data_of("x")


async def test_a_process_that_slept_longer_than_its_lease_stops_and_begins_anew(memory: Path) -> None:
    async with host(memory, lease_s=2.0) as here:
        here.store.gate.clear()
        info = await here.stage("x", data_of("x"))
        assert info.upload is not None
        await until(lambda: here.store.running == 1)
        before = here.pool.lease.owner
        here.jump += 100.0
        await until(lambda: here.pool.lease.owner != before and len(here.store.begun) == 2)
        here.store.gate.set()
        await here.queue.stored(info.upload, deadline_s=30)
        assert here.store.made == {"x": 1}


async def test_a_host_without_the_credentials_leaves_an_upload_to_who_has_them(memory: Path) -> None:
    async with host(memory, lease_s=2.0) as first:
        first.store.gate.clear()
        info = await first.stage("x", data_of("x"))
        assert info.upload is not None
        second = Host(memory, lease_s=2.0, name="b")
        second.store = first.store
        await second.start()
        await first.die()
        first.store.gate.set()
        with pytest.raises(UploadPending):
            await second.queue.stored(info.upload, deadline_s=1.0)
        assert (await second.state_of(info.upload)).state is UploadState.WAITING
        assert second.store.begun == ["x"]
        async with second.queue.staging(
            bucket(), second.store, "y", token="t", size=1, replace=False, wait_s=0.0
        ) as pending:
            pending.path.write_bytes(b"y")
            await pending.commit()
        await second.queue.stored(info.upload, deadline_s=30)
        assert await second.queue.drain(deadline_s=30)
        await second.stop()
        await first.start()
        await until_empty(first)


async def test_hosts_that_share_a_pool_upload_each_object_once(
    memory: Path, postgres: Postgres, postgres_database: str
) -> None:
    """And the one that is left goes on with what the other had begun. By the database's clock."""

    def ledger() -> PostgresDatabase:
        return PostgresDatabase(postgres.url(postgres_database), "pool", password=Secret(PASSWORD))

    hosts = [Host(memory, lease_s=5.0, name=name, shared=ledger) for name in "ab"]
    store = hosts[1].store = hosts[0].store
    for each in hosts:
        await each.start()
    infos = [await hosts[number % 2].stage(f"x{number}", data_of(f"{number}", 100_000)) for number in range(6)]
    for info in infos:
        assert info.upload is not None
        await hosts[0].queue.stored(info.upload, deadline_s=30)
    store.gate.clear()
    last = [await each.stage(f"last of {each.state.name}", data_of("last")) for each in hosts]
    await until(lambda: store.running == 2)
    await hosts[0].die()
    store.gate.set()
    for info in last:
        assert info.upload is not None
        await hosts[1].queue.stored(info.upload, deadline_s=30)
    assert await hosts[1].queue.drain(deadline_s=30)
    assert len(store.made) == 8
    assert set(store.made.values()) == {1}
    await hosts[1].stop()


async def until_empty(here: Host) -> None:
    """Credentials that are not needed any more are gone."""
    while here.credentials():
        await asyncio.sleep(0.01)
    assert all(not entry.dirty for entry in await entries_of(here.pool))
