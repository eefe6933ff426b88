"""An SR as a store, against the fake pool: disks are made, derived, replaced and removed, for one agent and for two."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hypervisors.contract import ImageLocked, OperationUnsupported
from hypervisors.narrowing import as_pending_disk
from hypervisors.xen.config import XenPoolSettings
from hypervisors.xen.errors import XapiRefused
from hypervisors.xen.marks import CONDEMNED, READY, lock_key
from hypervisors.xen.pool import XenPool
from hypervisors.xen.repository import new_disks_are_zero
from hypervisors.xen.sr import pool_of_sr
from stores.contract import Kind, ManagedDisk, MiB
from stores.errors import AlreadyExists, InvalidReference, NoSpace, NotFound, ObjectChanged, TlsFailed, Unavailable
from tests.doubles.xapi import Pool, Settings, running
from tests.images import content
from tests.xen_pools import SIZE, Clock, Site, settings, sha256, shared_sr

DATA = content(MiB, seed=1)


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[Pool]:
    async with running(tmp_path / "p", Settings(data_destroy_wait_s=0.1)) as pool:
        yield pool
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
async def site(fake: Pool) -> AsyncIterator[Site]:
    async with shared_sr(fake) as one:
        yield one
        assert await one.leftovers() == []


# ------------------------------------------------------------------------------------------------------- one agent


async def test_a_disk_is_made_and_deleted(site: Site) -> None:
    with pytest.raises(NotFound):
        await site.store.stat("volumes/a")
    info = await site.make("volumes/a", data=DATA)
    assert await site.store.stat("volumes/a") == info
    (uuid,) = await site.vdis()
    assert (info.ref, info.version, info.size) == ("volumes/a", uuid, 2 * MiB)
    assert await site.digest("volumes/a") == sha256(DATA)
    with pytest.raises(AlreadyExists):
        await site.make("volumes/a")
    await site.store.delete("volumes/a")
    await site.store.delete("volumes/a")
    assert await site.vdis() == {}


async def test_a_disk_that_is_not_committed_is_none(site: Site) -> None:
    async with site.store.write("a", Kind.MANAGED_DISK, token="t") as pending:
        disk = await as_pending_disk(pending).make(SIZE)
        for ref in ("a", disk.id):
            with pytest.raises(NotFound):
                await site.store.stat(ref)
        assert await site.refs() == []
    assert await site.vdis() == {}


async def test_pools_are_probed_with_a_disk(site: Site) -> None:
    async with site.store.write(".storage-agent/probe/t", Kind.MANAGED_DISK, token="t", size=1) as pending:
        await as_pending_disk(pending).make(1)
    assert await site.vdis() == {}


@pytest.mark.parametrize("frozen", [True, False])
async def test_a_copy_has_the_content_of_its_moment(site: Site, frozen: bool) -> None:
    first = await site.make("a", data=DATA)
    info = await site.derive("b", "a", frozen=frozen)
    await site.fill(first.version or "", bytes(MiB))
    assert (await site.digest("a"), await site.digest("b")) == (sha256(b""), sha256(DATA))
    record = (await site.vdis())[info.version or ""]
    assert (record["is_a_snapshot"], record["name_label"]) == (frozen, "b")
    assert await site.refs() == ["a", "b"]


async def test_a_replacement_takes_the_place(site: Site) -> None:
    first = await site.make("a")
    second = await site.make("a", data=DATA, replace=True)
    assert first.version != second.version
    assert await site.digest("a") == sha256(DATA)
    assert list(await site.vdis()) == [second.version]
    with pytest.raises(ObjectChanged):
        async with site.store.present(first, Kind.MANAGED_DISK):
            pass


async def test_hidden_disks_are_listed_for_whoever_asks(site: Site) -> None:
    await site.make(".storage-agent/frozen/a/s")
    await site.make("x/b")
    await site.make("x-y")
    assert await site.refs() == ["x-y", "x/b"]
    assert [info.ref async for info in site.store.list("x")] == ["x/b"]
    assert [info.ref async for info in site.store.list(".storage-agent")] == [".storage-agent/frozen/a/s"]


async def test_room_is_what_xapi_knows(site: Site) -> None:
    before = await site.store.usage()
    await site.make("a", data=DATA)
    usage = await site.store.usage()
    assert (usage.capacity, usage.used) == (before.capacity, before.used + 2 * MiB)


async def test_an_sr_whose_new_disks_are_not_zero_gets_none(site: Site) -> None:
    site.fake.world.db.change("SR", site.handle, type="lvm", sm_config={})
    with pytest.raises(OperationUnsupported, match="upgrade it"):
        await site.make("a")
    assert await site.vdis() == {}


@pytest.mark.parametrize(
    ("kind", "sm_config", "zeroed"),
    [
        ("nfs", {}, True),
        ("ext", {}, True),
        ("lvm", {"use_vhd": "true"}, True),
        ("LVM", {}, False),
        ("lvmoiscsi", {"allocation": "thick"}, False),
        ("lvmohba", {"use_vhd": "false"}, False),
    ],
)
def test_where_new_disks_are_zero(kind: str, sm_config: dict[str, str], zeroed: bool) -> None:
    assert new_disks_are_zero(kind, sm_config) is zeroed


async def test_attached_disks_stay(site: Site) -> None:
    info = await site.make("a", data=DATA)
    vm = site.fake.world.db.find("VM", name_label="guest")[0]
    vbd = site.fake.world.db.add("VBD", VM=vm, VDI=site.handle_of(info.version or ""), userdevice="0")
    with pytest.raises(ImageLocked, match="detach it"):
        await site.make("a", replace=True)
    await site.pool.call("VM.start", vm, False, False)
    with pytest.raises(ImageLocked, match="VDI_IN_USE"):
        await site.store.delete("a")
    assert list(await site.vdis()) == [info.version]
    await site.pool.call("VM.hard_shutdown", vm)
    site.fake.world.db.remove("VBD", vbd)
    await site.store.delete("a")
    assert await site.vdis() == {}


async def test_disks_that_do_not_fit_are_refused(fake: Pool) -> None:
    async with shared_sr(fake) as one:
        blocks = pool_of_sr("blocks", [one.pool]).store
        await fake.controls.set_room((await fake.controls.srs())["blocks"], 6 * MiB)
        with pytest.raises(NoSpace) as caught:
            async with blocks.write("a", Kind.MANAGED_DISK, token="t") as pending:
                await as_pending_disk(pending).make(SIZE)
        assert (caught.value.details["needed"], caught.value.details["available"]) == (SIZE, 6 * MiB)
        assert await one.vdis() == {}


async def test_the_content_of_tracked_snapshots_goes_and_its_changes_stay(site: Site) -> None:
    info = await site.make("a", data=DATA)
    await site.pool.call("VDI.enable_cbt", site.handle_of(info.version or ""))
    frozen = await site.derive("s", "a", frozen=True)
    await site.store.delete("s")
    await site.store.delete("s")
    assert (await site.vdis())[frozen.version or ""]["type"] == "cbt_metadata"
    assert await site.refs() == ["a"]
    with pytest.raises(NotFound):
        await site.store.stat("s")
    again = await site.derive("s", "a", frozen=True)
    assert (await site.store.stat("s")).version == again.version != frozen.version


# ---------------------------------------------------------------------------------------------------- others' disks


async def test_disks_that_others_made_are_known_by_uuid(site: Site) -> None:
    sr = (await site.fake.controls.srs())["shared"]
    uuid = await site.fake.controls.make_vdi(sr, SIZE, name="ROOT-1")
    other = await site.fake.controls.make_vdi((await site.fake.controls.srs())["local-0"], SIZE)
    assert (await site.store.stat(uuid)).version == uuid
    assert await site.refs() == [uuid]
    for ref in ("ROOT-1", other):
        with pytest.raises(NotFound):
            await site.store.stat(ref)
    await site.derive("b", uuid, frozen=False)
    await site.make(uuid, data=DATA, replace=True)
    assert await site.digest(uuid) == sha256(DATA)
    assert await site.names() == sorted(["", uuid, "b"])
    await site.store.delete(uuid)
    assert await site.names() == ["", "b"]


@pytest.mark.parametrize("how", ["VDI.snapshot", "VDI.clone"])
async def test_copies_that_others_make_of_ours_are_theirs(site: Site, how: str) -> None:
    """Though they carry all that we wrote on the original."""
    info = await site.make("a", data=DATA)
    copy = await site.pool.call(how, site.handle_of(info.version or ""), {})
    uuid = await site.pool.call("VDI.get_uuid", copy)
    assert (await site.store.stat("a")).version == info.version
    assert (await site.store.stat(uuid)).version == uuid
    await site.store.discard("a", token="command-1")
    await site.store.delete("a")
    assert list(await site.vdis()) == [uuid]
    with pytest.raises(NotFound):
        await site.store.stat("a")


async def test_unmanaged_disks_are_none(site: Site) -> None:
    """What the storage manager keeps for itself: parents of chains, say."""
    uuid = await site.fake.controls.make_vdi((await site.fake.controls.srs())["shared"], SIZE)
    await site.fake.controls.set_vdi(uuid, managed=False)
    assert await site.refs() == []
    with pytest.raises(NotFound):
        await site.store.stat(uuid)


# ----------------------------------------------------------------------------------------------------------- two agents


async def test_two_agents_do_not_write_one_name_at_once(site: Site) -> None:
    async with (
        shared_sr(site.fake, originator="agent-2") as second,
        site.store.write("a", Kind.MANAGED_DISK, token="t") as pending,
    ):
        disk = await as_pending_disk(pending).make(SIZE)
        with pytest.raises(ImageLocked, match=r"by agent-1, which has it locked for 120 s more"):
            await second.make("a")
        await second.make("b")
        await site.fill(disk.id, DATA)
        await as_pending_disk(pending).commit()
    assert await site.digest("a") == sha256(DATA)
    assert await site.names() == ["a", "b"]


async def test_locks_are_renewed(fake: Pool) -> None:
    clock = Clock()
    async with (
        shared_sr(fake, clock=clock, lock_s=0.2) as first,
        shared_sr(fake, originator="agent-2", clock=clock, lock_s=0.2) as second,
    ):
        async with first.store.write("a", Kind.MANAGED_DISK, token="t") as pending:
            await as_pending_disk(pending).make(SIZE)
            for _ in range(3):
                clock.now += 0.2
                async with asyncio.timeout(20):
                    while not await renewed(first, clock.now):
                        await asyncio.sleep(0.01)
                with pytest.raises(ImageLocked):
                    await second.make("a")
            await as_pending_disk(pending).commit()
        assert await first.leftovers() == []


async def renewed(site: Site, now: float) -> bool:
    config = await site.pool.call("SR.get_other_config", site.handle)
    return any(f'"until":{now + 0.2}' in value for key, value in config.items() if key.startswith(lock_key("a")))


async def test_an_agent_that_stands_still_too_long_loses_its_lock(fake: Pool) -> None:
    """And what it writes is nobody's, whoever comes first afterwards."""
    clock = Clock()
    async with (
        shared_sr(fake, clock=Clock(), lock_s=3600.0) as first,
        shared_sr(fake, originator="agent-2", clock=clock, lock_s=3600.0) as second,
    ):
        async with first.store.write("a", Kind.MANAGED_DISK, token="t") as pending:
            await as_pending_disk(pending).make(SIZE)
            with pytest.raises(ImageLocked):
                await second.make("a")
            clock.now += 2 * 3600
            await second.make("a", data=DATA)
            with pytest.raises(ImageLocked, match="was lost while it was written"):
                await as_pending_disk(pending).commit()
        assert await second.digest("a") == sha256(DATA)
        assert (await second.names(), await second.leftovers()) == (["a"], [])


async def test_what_was_given_up_for_dead_cannot_be_finished(site: Site) -> None:
    """Even if it had its lock a moment before."""
    async with site.store.write("a", Kind.MANAGED_DISK, token="t") as pending:
        disk = await as_pending_disk(pending).make(SIZE)
        await site.pool.call("VDI.add_to_other_config", site.handle_of(disk.id), READY, CONDEMNED)
        with pytest.raises(ImageLocked, match="took this one for dead"):
            await as_pending_disk(pending).commit()
    assert await site.vdis() == {}


async def test_copies_wait_for_one_another(site: Site) -> None:
    await site.make("a", data=DATA)
    await asyncio.gather(*(site.derive(f"copy-{number}", "a", frozen=False) for number in range(4)))
    assert await site.names() == ["a", *(f"copy-{number}" for number in range(4))]


# --------------------------------------------------------------------------------------------------- pools and SRs


async def test_an_sr_is_found_by_uuid_or_name_in_one_of_several_pools(fake: Pool, tmp_path: Path) -> None:
    async with running(tmp_path / "q") as other, shared_sr(fake) as one, shared_sr(other) as two:
        pools = [one.pool, two.pool]
        uuid = (await other.controls.srs())["shared"]
        await pool_of_sr(uuid, pools).store.usage()
        with pytest.raises(NotFound, match=r"has an SR with the uuid or name nothing; there are: blocks \("):
            await pool_of_sr("nothing", pools).store.usage()
        await fake.controls.stop_host(0)
        await fake.controls.stop_host(1)
        await pool_of_sr(uuid, pools).store.usage()
        with pytest.raises(Unavailable):
            await pool_of_sr("nothing", pools).store.usage()
        other.world.storage.add_sr("nfs", "shared", SIZE)
        with pytest.raises(InvalidReference, match="2 SRs of pool fake are called shared"):
            await pool_of_sr("shared", pools).store.usage()
        await fake.controls.start_host(0)


async def test_an_sr_that_is_introduced_anew_is_found_again(site: Site) -> None:
    info = await site.make("a", data=DATA)
    uuid = (await site.fake.controls.srs())["shared"]
    for pbd in site.fake.world.db.find("PBD", SR=site.handle):
        await site.pool.call("PBD.unplug", pbd)
    await site.pool.call("SR.forget", site.handle)
    with pytest.raises(NotFound, match="no configured pool has an SR"):
        await site.store.stat("a")
    handle = await site.pool.call("SR.introduce", uuid, "shared", "", "nfs", "user", True, {})
    for host in site.fake.world.hosts:
        pbd = await site.pool.call("PBD.create", {"host": host, "SR": handle, "device_config": {}})
        await site.pool.call("PBD.plug", pbd)
    await site.pool.call("SR.scan", handle)
    assert await site.digest(info.version or "") == sha256(DATA)  # XAPI forgot our marks with the SR


async def test_an_sr_without_a_plug_says_so(site: Site) -> None:
    for host in range(2):
        await site.fake.controls.plug(host, (await site.fake.controls.srs())["shared"], False)
    with pytest.raises(XapiRefused, match="SR_NO_PBDS"):
        await site.make("a")


async def test_a_pool_is_opened_when_it_is_used_and_again_after_it_was_closed(fake: Pool) -> None:
    async with shared_sr(fake) as one:
        assert await fake.controls.calls() == {}
        await asyncio.gather(*(one.make(f"{number}") for number in range(4)))
        assert (await fake.controls.calls())["session.login_with_password"] == 1
        await one.store.aclose()
        await one.pool.aclose()
        await one.pool.aclose()
        assert (await fake.controls.left())["sessions"] == []
        assert await one.refs() == ["0", "1", "2", "3"]


async def test_a_pool_that_cannot_be_trusted_is_not_opened(fake: Pool, tmp_path: Path) -> None:
    pool = XenPool(settings(fake.access, ca_file=tmp_path / "none"))
    for _ in range(2):
        with pytest.raises(TlsFailed, match="not a readable PEM bundle"):
            await pool.call("VDI.get_all")
    await pool.aclose()


@pytest.mark.parametrize("wrong", [{"hosts": ()}, {"lock_s": 0.0}])
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    good = {"name": "p", "hosts": ("h",), "user": "u", "password": "p", "originator": "o"}
    with pytest.raises(ValueError, match=r"at least one host|must be positive"):
        XenPoolSettings(**(good | wrong))  # type: ignore[arg-type]


async def test_a_source_that_is_gone_is_not_found(site: Site) -> None:
    info = await site.make("a")
    await site.store.delete("a")
    with pytest.raises(NotFound):
        async with site.store.write("b", Kind.MANAGED_DISK, token="t") as pending:
            await as_pending_disk(pending).derive(ManagedDisk(info.version or "", info), frozen=True)
    assert await site.vdis() == {}
