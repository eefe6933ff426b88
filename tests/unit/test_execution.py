"""Commands become verbs on real directories, and what verbs return becomes outcomes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent.commands import COMMAND, Command, Outcome
from agent.execution import Execution
from agent.locks import Claim
from hypervisors import verbs
from hypervisors.contract import HypervisorType
from hypervisors.operations import Copied, Operations, Recovered
from hypervisors.verbs import Call
from stores.cache.writeback.errors import UploadPending
from stores.contract import MiB, Silent
from stores.errors import StorageError
from stores.to import SnapshotObjectTO
from tests.doubles.staging import Staging, staging
from tests.doubles.world import World, world
from tests.uploads import bucket


def execution(place: World) -> Execution:
    return Execution(place.operations, HypervisorType.KVM)


def command(place: World, name: str, **fields: Any) -> Command:
    return COMMAND.validate_python({"command": name, "id": "c-1", **fields})


def volume(place: World, path: str = "v-1", **fields: Any) -> dict[str, Any]:
    return {"type": "volume", "path": path, "format": "QCOW2", "dataStore": place.pool().model_dump(), **fields}


async def do(place: World, name: str, **fields: Any) -> Outcome:
    return await execution(place).execute(command(place, name, **fields), "c-1", Silent())


async def test_a_volume_through_its_whole_life() -> None:
    async with world() as place:
        pool = place.pool().model_dump()
        made = await do(place, "CreateObject", data=volume(place, size=4 * MiB))
        assert made.durability == "stored"
        assert made.data is not None
        assert made.data.type == "volume"
        assert (made.data.path, made.data.size, made.newData) == ("v-1", 4 * MiB, None)

        copied = await do(place, "Copy", source=volume(place), destination=volume(place, "v-2"))
        assert copied.durability == "stored"
        assert copied.newData is not None
        assert (copied.newData.path, copied.data) == ("v-2", None)

        grown = await do(place, "ResizeVolume", path="v-1", pool=pool, newSize=8 * MiB)
        assert (grown.durability, grown.newSize) == ("stored", 8 * MiB)

        stats = await do(place, "GetVolumeStats", pool=pool, volumeUuids=["v-1", "v-2", "nobody"])
        assert stats.volumeStats is not None
        assert {path: entry.virtualSize for path, entry in stats.volumeStats.items()} == {
            "v-1": 8 * MiB,
            "v-2": 4 * MiB,
        }

        listing = await do(place, "ListDataStoreObjects", store=pool)
        assert (listing.pathExists, listing.count) == (True, 2)
        assert listing.names == ["v-1", "v-2"]
        assert listing.isDirs == [False, False]
        assert listing.sizes is not None
        assert listing.lastModified is not None
        assert min(listing.lastModified) > 1_600_000_000_000  # milliseconds

        digest = await do(place, "ComputeChecksum", store=pool, templatePath="v-2", algorithm="SHA256")
        assert digest.details is not None
        assert len(digest.details) == 64
        assert digest.durability is None

        for path in ("v-1", "v-2"):
            assert await do(place, "Delete", data=volume(place, path)) == Outcome(durability="stored")
        assert place.files() == set()


async def test_pools() -> None:
    async with world() as place:
        pool = place.pool().model_dump()
        for name in ("CreateStoragePool", "ModifyStoragePool"):
            info = (await do(place, name, pool=pool)).poolInfo
            assert info is not None
            assert (info.uuid, info.localPath, info.poolType) == ("pool", str(place.root / "pool"), "Filesystem")
            assert info.capacityBytes is not None
            assert info.availableBytes is not None
            assert 0 < info.availableBytes <= info.capacityBytes
        stats = await do(place, "GetStorageStats", store=pool)
        assert stats.capacityBytes is not None
        assert stats.usedBytes is not None
        assert await do(place, "ModifyStoragePool", pool=pool, add=False) == Outcome()
        assert await do(place, "DeleteStoragePool", pool=pool) == Outcome()


async def test_a_no_op_does_nothing() -> None:
    async with world() as place:
        assert await do(place, "Ping") == Outcome()
        assert execution(place).claims(command(place, "Ping")) == ()
        assert await execution(place).undo(command(place, "Ping"), "c-1") is None


async def test_copies_share_their_source_and_have_their_destination_to_themselves() -> None:
    async with world() as place:
        template = {**volume(place, "t-1"), "type": "template", "imageDataStore": place.pool().model_dump()}
        one, other = (
            execution(place).claims(command(place, "Copy", source=template, destination=volume(place, path)))
            for path in ("v-1", "v-2")
        )
        assert set(one) & set(other) == {Claim("pool/t-1", exclusive=False)}
        assert {claim.key for claim in one if claim.exclusive} == {"pool/v-1"}
        (deleted,) = execution(place).claims(command(place, "Delete", data=volume(place, "t-1")))
        assert deleted == Claim("pool/t-1", exclusive=True)


async def test_undoing_tells_whether_it_had_finished() -> None:
    async with world() as place:
        body = command(place, "CreateObject", data=volume(place, size=4 * MiB))
        assert await execution(place).undo(body, "c-1") is None
        made = await execution(place).execute(body, "c-1", Silent())
        assert await execution(place).undo(body, "c-1") == made
        assert await execution(place).undo(body, "c-other") is None


async def test_another_hypervisor_is_refused_by_name() -> None:
    async with world() as place:
        with pytest.raises(StorageError, match="Hyperv"):
            await do(place, "CreateObject", data=volume(place, size=MiB), hypervisorType="Hyperv")


# ------------------------------------------------------------------------------- what a copy has staged, and who waits


BACKUP = SnapshotObjectTO(path="b", dataStore=bucket())
UNDONE = Recovered("undone")


class Copies(Operations):
    """Answers a copy, and what became of one, as it is told."""

    def __init__(self, upload: str | None, recovered: Recovered) -> None:
        self._copied = Copied(BACKUP, upload)
        self._recovered = recovered

    async def copy(self, call: Call, request: verbs.Copy) -> Copied:
        return self._copied

    async def recover(self, hypervisor: HypervisorType, request: verbs.Request, token: str) -> Recovered:
        return self._recovered


def backing_up(durability: str) -> Command:
    snapshot = {
        "type": "snapshot",
        "path": "v/s",
        "dataStore": {"storeType": "primary", "uuid": "p", "poolType": "Filesystem"},
    }
    target = {"type": "snapshot", "path": "b", "dataStore": {"storeType": "s3", "bucketName": "bucket"}}
    return COMMAND.validate_python(
        {"command": "Copy", "id": "c-1", "source": snapshot, "destination": target, "durability": durability}
    )


def copies(here: Staging, upload: str | None, recovered: Recovered = UNDONE) -> Execution:
    return Execution(Copies(upload, recovered), HypervisorType.KVM, uploads=here.service)


async def test_staged_is_answered_as_it_is(tmp_path: Path) -> None:
    async with staging(tmp_path) as here:
        here.close()
        upload = await here.put("b")
        outcome = await copies(here, upload).execute(backing_up("staged"), "c-1", Silent())
        assert (outcome.durability, outcome.upload) == ("staged", upload)


async def test_stored_waits_for_all_that_was_staged(tmp_path: Path) -> None:
    async with staging(tmp_path) as here:
        here.close()
        earlier, manifest = await here.put("b", token="earlier"), await here.put("b.manifest", token="earlier")
        execution = copies(here, earlier)
        waiting = asyncio.create_task(execution.execute(backing_up("stored"), "c-1", Silent()))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        here.open()
        await here.service.retry(None)
        outcome = await waiting
        assert (outcome.durability, outcome.upload) == ("stored", None)
        assert (await here.service.show(manifest)).state == "stored"


@pytest.mark.parametrize("give_up", [False, True])
async def test_who_stops_waiting_stops_nothing_else(tmp_path: Path, give_up: bool) -> None:
    async with staging(tmp_path) as here:
        here.close()
        earlier = await here.put("b", token="earlier")
        execution = copies(here, earlier)
        waiting = asyncio.create_task(execution.execute(backing_up("stored"), "c-1", Silent()))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.wait([waiting])
        if give_up:
            await execution.settle(backing_up("stored"), "c-1", give_up=True)
        else:
            with pytest.raises(UploadPending) as pending:
                await execution.settle(backing_up("stored"), "c-1", give_up=False)
            assert pending.value.details["upload"] == earlier
        here.open()
        await here.service.retry(None)
        await here.service.stored(earlier)
        await execution.settle(backing_up("stored"), "c-1", give_up=False)  # nothing is remembered of it


async def test_what_was_staged_and_never_answered_is_undone(tmp_path: Path) -> None:
    async with staging(tmp_path) as here:
        here.close()
        upload = await here.put("b", token="c-1")
        assert await copies(here, None).undo(backing_up("staged"), "c-1") is None
        assert (await here.service.show(upload)).state in ("cancelling", "cancelled")


async def test_what_was_to_be_stored_is_not_undone_while_it_is_safe(tmp_path: Path) -> None:
    async with staging(tmp_path) as here:
        here.close()
        await here.put("b", token="c-1")
        for recovered in (UNDONE, Recovered("finished", Copied(BACKUP))):
            with pytest.raises(UploadPending):
                await copies(here, None, recovered).undo(backing_up("stored"), "c-1")


async def test_a_staged_copy_that_was_finished_is_told_as_staged_until_it_is_stored(tmp_path: Path) -> None:
    finished = Recovered("finished", Copied(BACKUP))
    async with staging(tmp_path) as here:
        here.close()
        upload = await here.put("b", token="c-1")
        outcome = await copies(here, None, finished).undo(backing_up("staged"), "c-1")
        assert outcome is not None
        assert (outcome.durability, outcome.upload) == ("staged", upload)
        here.open()
        await here.service.retry(None)
        await here.service.stored(upload)
        outcome = await copies(here, None, finished).undo(backing_up("staged"), "c-1")
        assert outcome is not None
        assert (outcome.durability, outcome.upload) == ("stored", None)
