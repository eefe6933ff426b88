"""Checks of what not every pool has: ISOs that are uploaded, NBD, changed block tracking."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from hypervisors.xen.changed_blocks import GRAIN, changed_blocks
from hypervisors.xen.errors import XapiFailure, XapiRefused
from hypervisors.xen.nbd import nbd_disk
from hypervisors.xen.selftest.checks import SPARSE, Check, NotTried, Otherwise, expect, pattern
from hypervisors.xen.selftest.place import Place, content
from stores.contract import MiB

_LICENCE = ("LICENCE_RESTRICTION", "FEATURE_RESTRICTED", "SR_OPERATION_NOT_SUPPORTED")

TRACKED = (0, 9, 100)
"""Numbers of the blocks of 64 KiB that are written; told from their mirror images."""


async def _iso(place: Place) -> str:
    if place.iso is None:
        raise NotTried("no ISO SR was named")
    data = pattern(6, MiB)
    name = place.label.replace(" ", "-") + ".iso"
    record = place.record(len(data), place.iso, sm_config={"path": name})
    disk = await place.iso.disk(await place.made("VDI.create", record))
    streams = (await place.pool.connection()).streams

    async def body() -> AsyncGenerator[bytes, None]:
        yield data

    async with aclosing(body()) as pieces:
        await streams.upload(disk.handle, pieces, image_format="raw", length=len(data))
    expect((await place.read(disk, seen_by=place.iso))[: len(data)], data, "read back")
    return name


async def _nbd(place: Place) -> str:
    disk = await place.disk()
    await place.write(disk, SPARSE)
    frozen = await place.snapshot(disk)
    client = (await place.pool.connection()).client
    try:
        async with nbd_disk(client, frozen.handle, engine=place.engine) as reader:
            expect(await reader.read(0, disk.virtual_size), content(disk.virtual_size, SPARSE), "read by NBD")
            return f"{disk.virtual_size} bytes"
    except XapiRefused as problem:
        if problem.code == "NO_NBD":
            raise NotTried("no network of the pool has the purpose nbd") from problem
        raise


async def _tracked(place: Place) -> str:
    disk = await place.disk()
    await place.write(disk, SPARSE)
    try:
        await place.pool.call("VDI.enable_cbt", disk.handle)
    except XapiFailure as problem:
        if problem.code in _LICENCE:
            raise NotTried(problem.message) from problem
        raise
    first = await place.snapshot(disk)
    await place.write(disk, {number * GRAIN: pattern(number, GRAIN) for number in TRACKED})
    second = await place.snapshot(disk)
    told = await changed_blocks((await place.pool.connection()).client, first.handle, second.handle)
    if told is None:
        raise Otherwise("the pool does not know what changed, although it was to keep track")
    seen = {at // GRAIN for start, length in told for at in range(start, start + length, GRAIN)}
    if seen != set(TRACKED):
        mirrored = seen == {number ^ 7 for number in TRACKED}
        raise Otherwise(
            "the bits of each byte are in the opposite order"
            if mirrored
            else f"blocks {sorted(seen)[:20]}, where {list(TRACKED)} were written"
        )
    return f"blocks {', '.join(map(str, sorted(seen)))}"


EXTRAS = (
    Check(
        "iso",
        "VDI.create and PUT make an ISO in an ISO SR",
        "put ISOs into the SR's folder by other means",
        _iso,
    ),
    Check(
        "nbd",
        "a snapshot is read by NBD over TLS, from a host that shows the certificate which XAPI names",
        "backups after changed block tracking fail: remove the purpose nbd from the network",
        _nbd,
    ),
    Check(
        "tracking",
        "list_changed_blocks names exactly the blocks that were written, the first one by the highest bit",
        "do not use changed block tracking in this pool: backups would miss changes",
        _tracked,
    ),
)
