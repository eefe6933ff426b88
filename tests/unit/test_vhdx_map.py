"""Maps of VHDX that stand for themselves: what they say of a disk, and what is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given

from hypervisors.contract import ImageRefused
from hypervisors.images.vhdx_map import VhdxMap, read_map
from hypervisors.images.vhdx_stream import layout
from stores.contract import Extent, MiB
from stores.transfer.engine import TransferEngine
from tests.disk_histories import finished, sha
from tests.images import BytesReader
from tests.vhdx_histories import BLOCK, VhdxHistory, identity_of, parent_of, vhdx_histories
from tests.vhdx_made import SOME, TABLE


async def mapped(image: bytes) -> VhdxMap:
    engine = TransferEngine()
    try:
        return await read_map(BytesReader(image), engine)
    finally:
        await engine.aclose()


@SOME
@given(history=vhdx_histories())
async def test_what_it_maps_is_the_disk(history: VhdxHistory) -> None:
    (image,), (version,) = history.images(), history.versions
    found = await mapped(image)
    disk, end = bytearray(found.virtual_size), -1
    for run in found.runs():
        assert run.offset > end  # neighbours are one
        assert run.host is not None
        disk[run.offset : run.offset + run.length] = image[run.host : run.host + run.length]
        end = run.offset
    assert found.block == BLOCK
    assert sha(bytes(disk)) == sha(version.content)


async def test_a_differencing_disk_has_no_map_of_its_own() -> None:
    made = layout(2 * MiB, [], identity=identity_of(1), block=BLOCK, parent=parent_of(1))
    with pytest.raises(ImageRefused, match="parent"):
        await mapped(finished(made, b""))


async def test_two_blocks_in_one_place() -> None:
    made = layout(2 * MiB, [Extent(0, 2 * MiB, zero=False)], identity=identity_of(0), block=BLOCK)
    image = bytearray(finished(made, b"1" * 2 * MiB))
    assert [run.length for run in (await mapped(bytes(image))).runs()] == [2 * MiB]
    struct.pack_into("<Q", image, TABLE + 8, struct.unpack_from("<Q", image, TABLE)[0])
    with pytest.raises(ImageRefused, match="one place"):
        await mapped(bytes(image))
