"""Checks of snapshots, clones, and what changed between them."""

from __future__ import annotations

from hypervisors.xen.marks import Disk
from hypervisors.xen.selftest.checks import SPARSE, Check, Otherwise, expect, pattern
from hypervisors.xen.selftest.place import SIZE, Parts, Place, content
from stores.contract import KiB, MiB

BLOCK = 2 * MiB

CHANGE: Parts = {
    0: bytes(4 * KiB),  # what was there is gone
    10 * MiB + 512: pattern(4, 512),  # where nothing was
    SIZE - 64 * KiB: pattern(5, 64 * KiB),
}
_CHANGED = 3
"""Blocks that `CHANGE` is in."""


async def written_on(place: Place) -> tuple[Disk, Disk, Disk]:
    """A disk, its snapshot, and one after `CHANGE`."""
    disk = await place.disk()
    await place.write(disk, SPARSE)
    first = await place.snapshot(disk)
    await place.write(disk, CHANGE)
    return disk, first, await place.snapshot(disk)


async def _snapshot(place: Place) -> str:
    disk, first, second = await written_on(place)
    before, after = content(disk.virtual_size, SPARSE), content(disk.virtual_size, SPARSE, CHANGE)
    expect(await place.read(first), before, "the snapshot")
    expect(await place.read(second), after, "the later snapshot")
    expect(await place.read(disk), after, "the disk")
    return "as it was"


async def _delta(place: Place) -> str:
    disk, first, second = await written_on(place)
    exported = await place.read_vhd(second, first)
    if not exported.differencing:
        raise Otherwise("all of the disk came, not what changed: the SR does not keep it as VHD")
    expect(
        content(disk.virtual_size, SPARSE, exported.parts),
        content(disk.virtual_size, SPARSE, CHANGE),
        "the first snapshot with what changed laid over it",
    )
    if exported.present > _CHANGED * BLOCK:
        raise Otherwise(f"{exported.present} bytes came, where {_CHANGED} blocks of {BLOCK} had changed")
    return f"{exported.present} bytes"


async def _clone(place: Place) -> str:
    disk = await place.disk()
    await place.write(disk, SPARSE)
    clone = await place.clone(disk)
    await place.write(clone, CHANGE)
    expect(await place.read(disk), content(disk.virtual_size, SPARSE), "the disk after its clone was written")
    expect(await place.read(clone), content(disk.virtual_size, SPARSE, CHANGE), "the clone")
    return "each its own"


async def _config(place: Place) -> str:
    disk = await place.disk(BLOCK)
    key = "storage-agent:selftest"
    await place.pool.call("VDI.add_to_other_config", disk.handle, key, disk.uuid)
    for what, copy in (("snapshot", await place.snapshot(disk)), ("clone", await place.clone(disk))):
        if copy.config.get(key) != disk.uuid:
            raise Otherwise(f"the {what} has {copy.config.get(key)!r} where its source has {disk.uuid!r}")
    return "copied"


COPIES = (
    Check(
        "snapshot",
        "a snapshot keeps what was there when it was made",
        "snapshots and backups are of no use: do not take any from this SR",
        _snapshot,
    ),
    Check(
        "delta",
        "base= gives exactly the blocks that changed, those that were zeroed included",
        "take whole backups only from this SR",
        _delta,
    ),
    Check(
        "clone",
        "a clone and its source are written apart",
        "volumes of one template spoil each other: do not use this SR",
        _clone,
    ),
    Check(
        "marks",
        "snapshots and clones carry the other_config of their source from the first moment",
        "a crash while a copy is made leaves a disk that nobody removes",
        _config,
    ),
)
