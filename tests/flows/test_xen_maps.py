"""What hosts of the fake pool export, read at random by its map: the disk, and one over the other what changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hypervisors.images.overlay import Layer, Overlay
from hypervisors.images.vhd_map import read_map
from stores.contract import MiB
from stores.transfer.engine import TransferEngine
from tests.doubles.xapi import Pool, Settings, running
from tests.images import BytesReader, content
from tests.xapi_agent import SIZE, agent, sha256


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[Pool]:
    async with running(tmp_path / "p", Settings()) as pool:
        yield pool


async def test_exports_by_their_maps(pool: Pool, engine: TransferEngine, tmp_path: Path) -> None:
    async with agent(pool) as ours:
        disk = await ours.disk()
        number = await ours.client.call("VDI.get_uuid", disk)
        images: list[bytes] = []
        base = None
        for seed, offset in enumerate((0, 5 * MiB, MiB)):
            (tmp_path / "data").write_bytes(content(2 * MiB, seed=seed))
            await pool.controls.write(number, offset, str(tmp_path / "data"))
            snapshot = await ours.client.call("VDI.snapshot", disk)
            async with ours.streams.download(snapshot, image_format="vhd", base=base) as pieces:
                images.insert(0, b"".join([piece async for piece in pieces]))
            base = snapshot
        expected = await ours.digest(disk)
    layers = []
    for image in images:
        reader = BytesReader(image)
        found = await read_map(reader, engine, whole=True)
        assert len(reader.reads) == 3, "bitmaps need not be read"
        assert list(found.runs()) == list((await read_map(reader, engine, whole=False)).runs())
        assert (found.parent_id is None) == (image is images[-1])
        layers.append(Layer(found.virtual_size, found.runs()))
    read = bytearray(SIZE)
    for part in Overlay(layers, SIZE).parts(0, SIZE):
        assert part.host is not None
        read[part.offset : part.end] = images[part.layer][part.host : part.host + part.length]
    assert sha256(bytes(read)) == expected
