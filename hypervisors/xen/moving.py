"""A disk of a pool with the content of another one: shared in the same SR, copied by XAPI in the same pool, else passed on."""

from __future__ import annotations

from hypervisors.contract import ImageSpec, Source
from hypervisors.xen.exporting import exported_vhd
from hypervisors.xen.importing import Importer, new_disk
from hypervisors.xen.longer import carried_out
from hypervisors.xen.pending import PendingVdi
from hypervisors.xen.tasks import let_go
from hypervisors.xen.vdis import Vdi, host_of
from stores.contract import ManagedDisk, Progress
from stores.to import ImageFormat
from stores.transfer.engine import TransferEngine

NULL = "OpaqueRef:NULL"


async def copied(
    source: Vdi, given: ManagedDisk, target: PendingVdi, importer: Importer, engine: TransferEngine, progress: Progress
) -> ManagedDisk:
    """What `target` made: as large as `source`. `ImageLocked` while that is attached."""
    if source.sr.uuid == target.sr.uuid:
        return await target.derive(given, frozen=False)
    if source.sr.pool is target.sr.pool:
        made = await target.make(source.disk.virtual_size)
        await _copied_by_xapi(source, made, progress)
        return made
    made_here: list[ManagedDisk] = []

    async def make(size: int) -> str:
        made_here.append(await target.make(size))
        return made_here[-1].id

    there = await source.sr.pool.connection()
    host = await host_of(source.sr)
    async with exported_vhd(there.streams, source.disk.uuid, engine=engine, host=host) as export:
        passing = Source(export.stream, ImageSpec(ImageFormat.VHD, source.disk.virtual_size))
        new = await new_disk(target.sr, make)
        await importer.bring(passing, new, checksum=None, progress=progress)
    await let_go(source.sr, source.disk)
    return made_here[-1]


async def _copied_by_xapi(source: Vdi, made: ManagedDisk, progress: Progress) -> None:
    pool, size = source.sr.pool, source.disk.virtual_size
    progress.phase("copy", size)
    done = 0

    def told(share: float) -> None:
        nonlocal done
        now = int(share * size)
        progress.advance(max(0, now - done))
        done = max(now, done)

    into = await pool.call("VDI.get_by_uuid", made.id)
    with source.sr.telling(source.disk.name):
        await carried_out(pool, "VDI.copy", source.disk.handle, NULL, NULL, into, on=into, progress=told)
