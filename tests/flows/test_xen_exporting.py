"""Disks of the fake pool out as VHDs: byte by byte what the host sent, and an error instead of an end where it is not whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hypervisors.contract import OperationUnsupported
from hypervisors.images.vhd_reading import Present, VhdReading
from hypervisors.images.vhd_stream import Parent, layout
from hypervisors.xen.errors import XapiBusy, XapiFailure, XapiRefused
from hypervisors.xen.exporting import Summary, exported_vhd
from hypervisors.xen.hosts import Host
from hypervisors.xen.streams import DiskStreams, Format, Incoming
from stores.contract import Extent, KiB, MiB
from stores.errors import IntegrityError, StorageError, Unavailable
from stores.to import ImageFormat
from stores.transfer.engine import TransferEngine
from tests.disk_histories import finished
from tests.doubles.xapi import Pool, Settings, running
from tests.images import content, disk_digest
from tests.vhd_histories import id_of, overlaid, parent_of
from tests.xapi_agent import PATIENCE, SIZE, Agent, agent, until_detached

BLOCK = 2 * MiB


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[Pool]:
    async with running(tmp_path / "p", Settings()) as pool:
        yield pool
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
async def ours(pool: Pool) -> AsyncIterator[Agent]:
    async with agent(pool) as one:
        yield one
        await until_detached(pool)


async def filled(ours: Agent, parts: Sequence[int], scratch: Path) -> str:
    """A disk with a MiB of data at each of these places."""
    disk = await ours.disk()
    for offset in parts:
        await write(ours, disk, offset, scratch)
    return disk


async def write(ours: Agent, disk: str, offset: int, scratch: Path) -> None:
    data = scratch / "data"
    data.write_bytes(content(MiB, seed=offset))
    await ours.pool.controls.write(await ours.client.call("VDI.get_uuid", disk), offset, str(data))


async def export(
    streams: DiskStreams, disk: str, engine: TransferEngine, base: str | None = None
) -> tuple[bytes, Summary]:
    async with exported_vhd(streams, disk, base=base, engine=engine) as made:
        with pytest.raises(RuntimeError, match="to its end"):
            _ = made.summary
        image = b"".join([bytes(piece) async for piece in made.stream])
        return image, made.summary


def changes(image: bytes) -> list[tuple[int, bytes]]:
    reading = VhdReading()
    found = [(event.offset, bytes(event.data)) for event in reading.feed(image) if isinstance(event, Present)]
    reading.finish()
    return found


async def test_a_disk_and_what_changed(ours: Agent, engine: TransferEngine, tmp_path: Path) -> None:
    disk = await filled(ours, [0, 4 * MiB], tmp_path)
    first = await ours.client.call("VDI.snapshot", disk)
    await write(ours, disk, 5 * MiB, tmp_path)
    second = await ours.client.call("VDI.snapshot", disk)
    whole, told = await export(ours.streams, first, engine)
    (tmp_path / "whole.vhd").write_bytes(whole)
    assert disk_digest(tmp_path / "whole.vhd", ImageFormat.VHD) == await ours.digest(first)
    assert told == Summary(len(whole), SIZE, 2 * BLOCK, 2 * BLOCK)
    delta, told = await export(ours.streams, second, engine, first)
    assert told == Summary(len(delta), SIZE, BLOCK, BLOCK)
    (tmp_path / "disk").write_bytes(overlaid(changes(delta), overlaid(changes(whole), b"", SIZE), SIZE))
    assert disk_digest(tmp_path / "disk", ImageFormat.RAW) == await ours.digest(second)
    sent = [transfer["body"] for transfer in await ours.pool.controls.transfers()]
    assert sent == [len(whole), len(delta)]


async def test_a_disk_without_data(ours: Agent, engine: TransferEngine) -> None:
    image, told = await export(ours.streams, await ours.disk(), engine)
    assert told == Summary(len(image), SIZE, 0, 0)


# ------------------------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize("at_byte", [0, 100, 1000, 3000, MiB, 5 * MiB])
async def test_a_host_that_claims_success_too_early(
    ours: Agent, engine: TransferEngine, tmp_path: Path, at_byte: int
) -> None:
    disk = await filled(ours, [0, 2 * MiB, 4 * MiB], tmp_path)
    await ours.pool.controls.arm(where="export", step="body", action="false-success", at_byte=at_byte)
    with pytest.raises(IntegrityError, match="no whole VHD, whatever its task says"):
        await export(ours.streams, disk, engine)


@pytest.mark.parametrize(
    ("fault", "error", "match"),
    [
        ({"step": "head", "action": "drop"}, Unavailable, "without an answer"),
        ({"step": "head", "action": "hang"}, Unavailable, "did not answer within"),
        ({"step": "head", "action": "http", "status": 503}, Unavailable, "HTTP 503"),
        ({"step": "head", "action": "redirect", "to": "192.0.2.1"}, XapiRefused, "not among the configured"),
        ({"step": "attach", "action": "fail", "error": ["VDI_IN_USE", "x", "attach"]}, XapiBusy, "VDI_IN_USE"),
        ({"step": "attach", "action": "drop"}, XapiBusy, "VDI_IO_ERROR"),
        ({"step": "attach", "action": "lose-task"}, Unavailable, "does not know the task"),
        ({"step": "body", "action": "drop", "at_byte": 3 * MiB}, XapiBusy, "VDI_IO_ERROR"),
        ({"step": "body", "action": "fail", "at_byte": 0, "error": ["VDI_TOO_LARGE", "x"]}, XapiFailure, "TOO_LARGE"),
        ({"step": "body", "action": "cancel", "at_byte": 3 * MiB}, XapiBusy, "TASK_CANCELLED"),
        ({"step": "body", "action": "hang", "at_byte": 3 * MiB, "seconds": 1.5}, Unavailable, "moved no byte"),
        ({"step": "body", "action": "silent-end", "at_byte": 3 * MiB}, Unavailable, "XAPI is stuck"),
        ({"step": "end", "action": "fail"}, XapiBusy, "VDI_IO_ERROR"),
        ({"step": "end", "action": "drop"}, XapiBusy, "VDI_IO_ERROR"),
        ({"step": "end", "action": "lose-task"}, Unavailable, "does not know the task"),
    ],
)
async def test_every_disturbance_of_the_host(
    pool: Pool,
    engine: TransferEngine,
    tmp_path: Path,
    fault: dict[str, object],
    error: type[StorageError],
    match: str,
) -> None:
    """Also those at the very end, when all bytes have come."""
    waits = {"hang": replace(PATIENCE, **{"head_s" if fault["step"] == "head" else "stall_s": 0.5})}
    patience = waits.get(str(fault["action"]), PATIENCE)
    async with agent(pool, patience=patience, grace_s=1.0 if fault["action"] == "silent-end" else 10.0) as ours:
        disk = await filled(ours, [0, 2 * MiB, 4 * MiB], tmp_path)
        await pool.controls.arm(where="export", **fault)
        with pytest.raises(error, match=match):
            await export(ours.streams, disk, engine)
        await until_detached(pool)


async def test_disks_of_other_chains(ours: Agent, engine: TransferEngine) -> None:
    with pytest.raises(XapiBusy, match="VDI_IO_ERROR"):
        await export(ours.streams, await ours.disk(), engine, await ours.disk("blocks"))


@pytest.mark.parametrize("end", ["leave", "cancel"])
async def test_an_export_may_be_left(ours: Agent, engine: TransferEngine, tmp_path: Path, end: str) -> None:
    disk = await filled(ours, [0, 2 * MiB, 4 * MiB], tmp_path)
    under_way = asyncio.Event()

    async def read() -> None:
        async with exported_vhd(ours.streams, disk, engine=engine) as made:
            async for _ in made.stream:
                under_way.set()
                if end == "leave":
                    break
                await asyncio.Event().wait()

    reading = asyncio.create_task(read())
    await under_way.wait()
    if end == "cancel":
        reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await until_detached(ours.pool)
    assert (await ours.pool.controls.left())["tasks"] == []
    await ours.client.call("VDI.destroy", disk)


class Script(Incoming):
    def __init__(self, image: bytes) -> None:
        self._rest = memoryview(image)

    async def fill(self, view: memoryview, look: Callable[[memoryview], None] = lambda seen: None) -> int:
        count = min(len(view), len(self._rest))
        view[:count], self._rest = self._rest[:count], self._rest[count:]
        look(view[:count])
        return count


class Scripted(DiskStreams):
    """A host that sends this, and says that all is well."""

    def __init__(self, image: bytes) -> None:
        self._image = image

    @asynccontextmanager
    async def receiving(
        self, vdi: str, *, image_format: Format, base: str | None = None, host: Host | None = None
    ) -> AsyncIterator[Incoming]:
        yield Script(self._image)


def image_of(extents: Sequence[Extent], parent: Parent | None = None) -> bytes:
    return finished(layout(SIZE, extents, unique_id=id_of(1), parent=parent), content(SIZE))


async def test_blocks_that_are_there_in_part(engine: TransferEngine) -> None:
    image = image_of([Extent(4 * KiB, MiB, zero=False), Extent(4 * MiB, BLOCK, zero=False)])
    assert await export(Scripted(image), "disk", engine) == (image, Summary(len(image), SIZE, 2 * BLOCK, MiB + BLOCK))


async def test_another_kind_of_image_than_was_asked_for(engine: TransferEngine) -> None:
    changed = [Extent(0, BLOCK, zero=False)]
    with pytest.raises(OperationUnsupported, match="does not keep the disk as VHD"):
        await export(Scripted(image_of(changed)), "disk", engine, "base")
    with pytest.raises(IntegrityError, match="sends changes"):
        await export(Scripted(image_of(changed, parent_of(1))), "disk", engine)
    for image in (content(SIZE), image_of(changed) + bytes(512), b""):
        with pytest.raises(IntegrityError, match="no whole VHD"):
            await export(Scripted(image), "disk", engine)
