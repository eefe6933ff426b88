"""The bridge against the tools that use it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stores.bridge import Memory, serve
from stores.contract import MiB, ObjectInfo
from stores.errors import ObjectChanged
from stores.transfer.engine import TransferEngine
from stores.transfer.http import HttpPatience, HttpRangeReader, HttpTarget
from tests.flows.bridge.place import HOLE, Source, disk, sha256, tool, url
from tests.servers import NginxServer


async def test_nbdinfo_sees_a_read_only_export_for_many_connections(socket: Path) -> None:
    async with serve(Source(disk()), socket) as export:
        assert (export.socket, export.export, export.info.size) == (socket, "", len(disk()))
        found = json.loads(await tool("nbdinfo", "--json", url(socket)))
        listed = json.loads(await tool("nbdinfo", "--list", "--json", url(socket)))
    assert found["protocol"] == "newstyle-fixed"
    assert found["structured"] is True
    (seen,) = found["exports"]
    assert seen["export-size"] == len(disk())
    assert seen["is_read_only"] is True
    assert seen["can_multi_conn"] is True
    assert seen["contexts"] == ["base:allocation"]
    assert (seen["block_size_minimum"], seen["block_size_maximum"]) == (1, 32 * MiB)
    assert [one["export-name"] for one in listed["exports"]] == [""]


async def test_nbdinfo_maps_the_holes(socket: Path) -> None:
    async with serve(Source(disk(), [(4 * MiB, 7 * MiB)]), socket):
        found = json.loads(await tool("nbdinfo", "--map", "--json", url(socket)))
    assert [(e["offset"], e["length"], e["type"]) for e in found] == [
        (0, 4 * MiB, 0),
        (4 * MiB, 3 * MiB, 3),
        (7 * MiB, 3 * MiB + 512, 0),
    ]


@pytest.mark.parametrize("holes", [[], [(4 * MiB, 7 * MiB)]])
@pytest.mark.parametrize("connections", [1, 4])
async def test_nbdcopy_gets_every_byte(
    socket: Path, tmp_path: Path, connections: int, holes: list[tuple[int, int]]
) -> None:
    source = Source(disk(), holes)
    async with serve(source, socket, memory=Memory(4 * MiB)) as export:
        await tool("nbdcopy", f"--connections={connections}", url(socket), tmp_path / "copy")
        assert export.failure() is None
    assert sha256((tmp_path / "copy").read_bytes()) == sha256(disk())
    assert source.most <= 4 * MiB
    for start, stop in holes:
        assert all(offset + length <= start or offset >= stop for offset, length in source.reads)


async def test_nbdkit_is_a_client_too(socket: Path) -> None:
    async with serve(Source(disk()), socket):
        copy = 'nbdinfo --size "$uri"; nbdcopy "$uri" - | sha256sum'
        output = await tool("nbdkit", "-U", "-", "nbd", f"socket={socket}", "--run", copy)
    assert output.decode().split()[:2] == [str(len(disk())), sha256(disk())]


async def test_qemu_img_reads_a_raw_object(socket: Path, tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.write_bytes(disk())
    source = Source(disk(), [(4 * MiB, 7 * MiB)])
    async with serve(source, socket):
        info = json.loads(await tool("qemu-img", "info", "--output=json", "-f", "raw", url(socket)))
        assert info["virtual-size"] == len(disk())
        mapped = json.loads(await tool("qemu-img", "map", "--output=json", "-f", "raw", url(socket)))
        assert [(e["start"], e["length"], e["zero"]) for e in mapped] == [
            (0, 4 * MiB, False),
            (4 * MiB, 3 * MiB, True),
            (7 * MiB, 3 * MiB + 512, False),
        ]
        await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", url(socket), original)
        source.reads.clear()
        convert = ("qemu-img", "convert", "-W", "-m", 8, "-f", "raw", "-O", "qcow2")
        await tool(*convert, url(socket), tmp_path / "volume")
    assert source.fetched <= 1.02 * (len(disk()) - HOLE)
    await tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", original, tmp_path / "volume")


FORMATS = {
    "qcow2": ["-O", "qcow2"],
    "vpc": ["-O", "vpc", "-o", "subformat=dynamic,force_size=on"],
    "vhdx": ["-O", "vhdx"],
    "vmdk": ["-O", "vmdk"],
    "vmdk-stream": ["-O", "vmdk", "-o", "subformat=streamOptimized"],
}


@pytest.mark.parametrize("name", FORMATS)
async def test_qemu_img_reads_any_format(socket: Path, tmp_path: Path, name: str) -> None:
    driver = name.partition("-")[0]
    original, image = tmp_path / "original", tmp_path / "image"
    original.write_bytes(disk()[: 10 * MiB])
    await tool("qemu-img", "convert", "-f", "raw", *FORMATS[name], original, image)
    source = Source(image.read_bytes())
    async with serve(source, socket):
        options = f"driver={driver},file.driver=nbd,file.server.type=unix,file.server.path={socket}"
        await tool("qemu-img", "info", "--image-opts", options)
        assert source.fetched <= 1.5 * MiB, "looking at the metadata must not fetch the image"
        source.reads.clear()
        await tool("qemu-img", "convert", "-W", "-m", 8, "--image-opts", options, "-O", "raw", tmp_path / "volume")
    # Reading ahead of a small image may fetch some of it twice, as metadata and as data.
    assert source.fetched <= 1.25 * len(source.content) + MiB
    await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", original, tmp_path / "volume")


async def test_an_object_on_an_http_server_becomes_a_volume(socket: Path, tmp_path: Path, nginx: NginxServer) -> None:
    original = nginx.root / "bridge.raw"
    original.write_bytes(disk())
    engine = TransferEngine()
    try:
        async with serve(http_reader(engine, nginx, "bridge.raw", None), socket) as export:
            await tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", url(socket), tmp_path / "volume")
            assert export.failure() is None
    finally:
        await engine.aclose()
    await tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", original, tmp_path / "volume")


async def test_an_object_that_changes_under_a_tool_is_named_as_the_cause(
    socket: Path, tmp_path: Path, nginx: NginxServer
) -> None:
    (nginx.root / "changing.raw").write_bytes(disk())
    engine = TransferEngine()
    try:
        async with serve(http_reader(engine, nginx, "changing.raw", '"another-etag"'), socket) as export:
            with pytest.raises(AssertionError, match=r"Input/output error"):
                await tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", url(socket), tmp_path / "volume")
            assert isinstance(export.failure(), ObjectChanged)
    finally:
        await engine.aclose()


def http_reader(engine: TransferEngine, nginx: NginxServer, path: str, version: str | None) -> HttpRangeReader:
    target = HttpTarget("127.0.0.1", nginx.port, "127.0.0.1", None, f"/{path}")

    async def where() -> HttpTarget:
        return target

    info = ObjectInfo(path, len(disk()), version=version)
    return HttpRangeReader(engine, info, where, patience=HttpPatience(attempts=1))
