"""Images of every kind into new disks of the fake pool: what a guest would read is what the image holds, no zeroes are sent,
and whatever goes wrong leaves no task, attached disk, process, socket or buffer."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import random
import tempfile
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from backports import zstd

from hypervisors.contract import ImageRefused, ImageSpec, OperationUnsupported, Source
from hypervisors.images.vhd_stream import layout
from hypervisors.local_file import open_file
from hypervisors.xen.errors import XapiBusy, XapiFailure, XapiRefused
from hypervisors.xen.importing import Imported, Importer, NewDisk
from stores.bridge.server import serve
from stores.contract import ByteStream, Extent, KiB, MiB, ObjectInfo, Presentation, RangeReader, Silent
from stores.errors import ChecksumMismatch, IntegrityError, NotFound, StorageError, TooLarge, Unavailable
from stores.to import ImageFormat
from stores.tools.process import ToolFailed, ToolRunner
from stores.transfer.digests import Checksum
from stores.transfer.engine import TransferEngine
from tests.disk_histories import finished
from tests.doubles.disk_images import COMPRESSORS, qemu_img
from tests.doubles.xapi import Pool, Settings, running
from tests.images import BytesReader, content, disk_digest, file_source, make_image, make_raw, make_vhd_by, qemu_io
from tests.processes import children
from tests.vhd_histories import id_of, parent_of
from tests.xapi_agent import PATIENCE, Agent, agent, sha256, until_detached

RAW, VHD, QCOW2, VMDK, VHDX = (ImageFormat(name) for name in ("RAW", "VHD", "QCOW2", "VMDK", "VHDX"))
LIMIT = 512 * MiB
SIZE = 24 * MiB
DATA = [(0, 1 * MiB), (5 * MiB + 4096, 70 * KiB), (12 * MiB, 3 * MiB), (SIZE - 512, 512)]
DATA_BYTES = sum(length for _, length in DATA)


class Stream(ByteStream):
    """An object in order, which may end early, or in an error."""

    def __init__(self, data: bytes, *, error: Exception | None = None, piece: int = 300_000) -> None:
        self.info = ObjectInfo("object", len(data))
        self._data = data
        self._error = error
        self._piece = piece

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        buffer = bytearray(self._piece)
        for offset in range(0, len(self._data), self._piece):
            part = self._data[offset : offset + self._piece]
            buffer[: len(part)] = part
            yield memoryview(buffer)[: len(part)]
            await asyncio.sleep(0)
        if self._error is not None:
            raise self._error


class Desk:
    """An importer, and the disks that were made for it."""

    def __init__(self, ours: Agent, importer: Importer) -> None:
        self.ours = ours
        self.importer = importer
        self.made: list[tuple[str, int]] = []

    async def make(self, size: int) -> str:
        sr = (await self.ours.client.call("SR.get_by_name_label", "shared"))[0]
        told = {"SR": sr, "virtual_size": size, "type": "user", "sharable": False, "read_only": False}
        disk = str(await self.ours.client.call("VDI.create", told))
        self.made.append((disk, size))
        return disk

    @property
    def target(self) -> NewDisk:
        return NewDisk(self.ours.streams, self.make)

    async def bring(self, source: Source, checksum: Checksum | None = None) -> Imported:
        return await self.importer.bring(source, self.target, checksum=checksum, progress=Silent())

    async def content(self) -> tuple[int, str]:
        """Size and digest of the disk that was made, up to the size that was asked for."""
        ((disk, size),) = self.made
        with tempfile.NamedTemporaryFile(prefix="disk-") as raw:
            await self.ours.pool.controls.save(await self.ours.client.call("VDI.get_uuid", disk), raw.name)
            held = Path(raw.name).read_bytes()
        assert held[size:].strip(b"\0") == b""
        return size, hashlib.sha256(held[:size]).hexdigest()

    async def sent(self) -> int:
        """Bytes of the body."""
        (transfer,) = await self.ours.pool.controls.transfers()
        return int(transfer["body"])


@pytest.fixture
def run() -> Iterator[Path]:
    """A runtime directory: a short path, as sockets want."""
    with tempfile.TemporaryDirectory(prefix="xen") as directory:
        yield Path(directory)


@pytest.fixture
async def pool(tmp_path: Path, run: Path) -> AsyncIterator[Pool]:
    before = children()
    async with running(tmp_path / "p", Settings()) as pool:
        yield pool
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [path for path in run.rglob("*") if not path.is_dir()] == []
    assert children() == before


@pytest.fixture
async def desk(pool: Pool, engine: TransferEngine, run: Path) -> AsyncIterator[Desk]:
    async with agent(pool) as ours:
        yield Desk(ours, Importer(engine, ToolRunner(grace_s=0.5), run, limit=LIMIT))
        await until_detached(pool)


def of(presentation: Presentation, image_format: ImageFormat, compression: str | None = None) -> Source:
    return Source(presentation, ImageSpec(image_format, compression=compression))


def vhd_of(disk: bytes, extents: Sequence[tuple[int, int]]) -> bytes:
    parts = [Extent(offset, length, zero=False) for offset, length in extents]
    return finished(layout(len(disk), parts, unique_id=id_of(0)), disk)


# ------------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("size", [SIZE, SIZE - 512, SIZE - 1, 5 * MiB + 100, 512, 1])
@pytest.mark.parametrize("to_the_end", [True, False])
async def test_ranges_of_a_disk(
    desk: Desk, engine: TransferEngine, tmp_path: Path, size: int, to_the_end: bool
) -> None:
    """Of any size, with data in its last byte, and with none at its end."""
    extents = [(0, min(size, 700 * KiB)), *([(size - 1, 1)] if to_the_end else [])]
    path = make_raw(tmp_path / "disk", size, extents=extents)
    async with open_file(path, engine) as reader:
        found = await desk.bring(of(reader, RAW))
    assert found == Imported(size, {})
    assert await desk.content() == (size, sha256(path.read_bytes()))


async def test_holes_are_not_read_and_zeroes_not_sent(desk: Desk, engine: TransferEngine, tmp_path: Path) -> None:
    path = make_raw(tmp_path / "disk", 300 * MiB, extents=[(0, MiB), (200 * MiB, MiB)])
    with path.open("r+b") as file:
        file.seek(100 * MiB)
        file.write(bytes(4 * MiB))
    reads: list[tuple[int, int]] = []
    async with open_file(path, engine) as reader:
        reader_read = reader.read_into

        async def counted(offset: int, buffer: memoryview) -> None:
            reads.append((offset, len(buffer)))
            await reader_read(offset, buffer)

        reader.read_into = counted  # type: ignore[method-assign]
        await desk.bring(of(reader, RAW))
    assert sorted(reads) == [(offset * MiB, 2 * MiB) for offset in (0, 100, 102, 200)]
    assert await desk.sent() < 2 * MiB + 10 * KiB
    assert (await desk.content())[1] == sha256(path.read_bytes())


@pytest.mark.parametrize("compression", [None, "gz", "zst"])
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "stream"])
@pytest.mark.parametrize("image_format", [RAW, VHD])
async def test_objects_that_are_read_in_order(
    desk: Desk, image_format: ImageFormat, ranges: bool, compression: str | None
) -> None:
    disk = bytearray(SIZE)
    for number, (offset, length) in enumerate(DATA):
        disk[offset : offset + length] = content(length, seed=number)
    data = bytes(disk) if image_format is RAW else vhd_of(bytes(disk), DATA)
    stored = data if compression is None else COMPRESSORS[compression](data)
    named = {None: None, "gz": "gzip", "zst": "zstd"}[compression]
    given: RangeReader | ByteStream = BytesReader(stored) if ranges else Stream(stored)
    source = of(given, image_format, named)
    checksum = Checksum("sha256", sha256(stored))
    if image_format is RAW and compression is not None and not ranges:
        with pytest.raises(OperationUnsupported, match="shows only at the end"):
            await desk.bring(source, checksum)
        assert desk.made == []
        source = replace(source, spec=replace(source.spec, virtual_size=SIZE))
    found = await desk.bring(source, checksum)
    assert found == Imported(SIZE, {"sha256": sha256(stored)})
    assert await desk.content() == (SIZE, sha256(bytes(disk)))
    assert await desk.sent() < DATA_BYTES + 512 * KiB


@pytest.mark.parametrize(
    ("image_format", "options"),
    [(QCOW2, ""), (QCOW2, "compat=0.10"), (VMDK, ""), (VHDX, ""), (VHD, "force_size=on,subformat=fixed"), (RAW, "")],
)
@pytest.mark.parametrize("way", ["file", "bridge"])
async def test_images_that_qemu_reads(
    desk: Desk,
    engine: TransferEngine,
    run: Path,
    tmp_path: Path,
    image_format: ImageFormat,
    options: str,
    way: str,
) -> None:
    path = make_image(tmp_path / "image", image_format, SIZE, extents=DATA, options=options)
    if way == "file":
        found = await desk.bring(file_source(path, image_format))
    else:
        async with open_file(path, engine) as reader, serve(reader, run / "bridge" / "b.sock") as export:
            found = await desk.bring(of(export, image_format))
    assert found == Imported(SIZE, {})
    assert await desk.content() == (SIZE, disk_digest(path, image_format))
    assert await desk.sent() < DATA_BYTES + 512 * KiB


async def test_parents_that_we_recorded(desk: Desk, tmp_path: Path) -> None:
    parent = make_image(tmp_path / "parent", QCOW2, SIZE, extents=DATA)
    child = tmp_path / "child"
    qemu_img("create", "-q", "-f", "qcow2", "-b", str(parent), "-F", "qcow2", str(child))
    qemu_io(child, QCOW2, "write -P 7 1M 64k", "write -z 12M 1M")
    await desk.bring(file_source(child, QCOW2, file_source(parent, QCOW2)))
    assert await desk.content() == (SIZE, disk_digest(child, QCOW2))


async def test_disks_that_xapi_exported(desk: Desk, tmp_path: Path) -> None:
    """By another creator than qemu knows, whose size qemu gets wrong."""
    path = make_vhd_by(tmp_path / "image", b"caml", SIZE)
    expected = disk_digest(path, VHD)
    await desk.bring(of(Stream(path.read_bytes()), VHD))
    assert await desk.content() == (SIZE, expected)


# ------------------------------------------------------------------------------------------------------- what is wrong

ZEROES = "0" * 64


@pytest.mark.parametrize("image_format", [RAW, VHD])
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "stream"])
async def test_another_checksum(desk: Desk, image_format: ImageFormat, ranges: bool) -> None:
    """The host is never told that it has all."""
    disk = content(SIZE)
    data = disk if image_format is RAW else vhd_of(disk, [(0, SIZE)])
    given: RangeReader | ByteStream = BytesReader(data) if ranges else Stream(data)
    with pytest.raises(ChecksumMismatch):
        await desk.bring(of(given, image_format), Checksum("sha256", ZEROES))
    assert (await desk.ours.pool.controls.transfers())[0]["body"] > 0


async def test_checksums_of_disks_with_holes(desk: Desk, engine: TransferEngine, tmp_path: Path) -> None:
    path = make_raw(tmp_path / "disk", SIZE + 100, extents=DATA)
    expected = sha256(path.read_bytes())
    async with open_file(path, engine) as reader:
        found = await desk.bring(of(reader, RAW), Checksum("sha256", expected))
    assert found.digests == {"sha256": expected}


def damaged_vhds() -> dict[str, tuple[bytes, str]]:
    disk = content(SIZE)
    whole = vhd_of(disk, [(0, SIZE)])
    delta = layout(SIZE, [Extent(0, MiB, zero=False)], unique_id=id_of(1), parent=parent_of(1))
    return {
        "delta": (finished(delta, disk), "differencing"),
        "cut in its head": (whole[:1000], "cut off"),
        "cut in a block": (whole[: 5 * MiB], "cut off"),
        "without its footer": (whole[:-512], "cut off"),
        "with something behind": (whole + bytes(512), "differ"),
        "empty": (b"", "cut off"),
        "no VHD": (disk, "no footer"),
    }


@pytest.mark.parametrize("name", damaged_vhds())
async def test_vhds_that_are_refused(desk: Desk, name: str) -> None:
    image, match = damaged_vhds()[name]
    with pytest.raises(ImageRefused, match=match):
        await desk.bring(of(Stream(image), VHD))


async def test_streams_of_another_size(desk: Desk) -> None:
    disk = content(SIZE)
    for size in (SIZE - 1, SIZE + 1):
        stream = Stream(disk)
        stream.info = replace(stream.info, size=size)
        with pytest.raises(IntegrityError, match="was said to hold"):
            await desk.bring(of(stream, RAW))


async def test_what_is_refused_before_a_disk_is_made(desk: Desk, engine: TransferEngine, tmp_path: Path) -> None:
    huge = make_raw(tmp_path / "huge", LIMIT + 512, extents=[])
    async with open_file(huge, engine) as reader:
        with pytest.raises(TooLarge):
            await desk.bring(of(reader, RAW))
    with pytest.raises(TooLarge):
        await desk.bring(of(Stream(finished(layout(LIMIT + 512, [], unique_id=id_of(0)), b"")), VHD))
    with pytest.raises(TooLarge):
        await desk.bring(of(BytesReader(zstd.compress(bytes(LIMIT + 1))), RAW, "zstd"))
    for image_format in (QCOW2, VMDK, VHDX):
        with pytest.raises(OperationUnsupported, match="read at random"):
            await desk.bring(of(Stream(b""), image_format))
    with pytest.raises(ToolFailed, match="not in qcow2 format"):
        await desk.bring(file_source(make_raw(tmp_path / "raw", SIZE), QCOW2))
    assert desk.made == []


@pytest.mark.parametrize("image_format", [RAW, VHD])
async def test_sources_that_fail_in_the_middle(desk: Desk, image_format: ImageFormat) -> None:
    disk = content(SIZE)
    data = disk if image_format is RAW else vhd_of(disk, [(0, SIZE)])
    stream = Stream(data[: 9 * MiB], error=Unavailable("gone"))
    stream.info = replace(stream.info, size=len(data))
    with pytest.raises(Unavailable, match="gone"):
        await desk.bring(of(stream, image_format))


class Failing(RangeReader):
    """From some offset on."""

    parallel = 4

    def __init__(self, size: int) -> None:
        self.info = ObjectInfo("object", size)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await asyncio.sleep(0)
        if offset >= 9 * MiB:
            raise NotFound("gone")
        buffer[:] = random.Random(offset).randbytes(len(buffer))


async def test_readers_that_fail_in_the_middle(desk: Desk, run: Path) -> None:
    with pytest.raises(NotFound, match="gone"):
        await desk.bring(of(Failing(SIZE), RAW))
    async with serve(Failing(SIZE), run / "bridge" / "b.sock") as export:
        with pytest.raises(StorageError):
            await desk.bring(of(export, RAW))
        assert isinstance(export.failure(), NotFound)


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
        ({"step": "body", "action": "fail", "at_byte": 3 * MiB, "error": ["SR_BACKEND_FAILURE_44", ""]}, XapiRefused, "_44"),
        ({"step": "body", "action": "cancel", "at_byte": 3 * MiB}, XapiBusy, "TASK_CANCELLED"),
        ({"step": "body", "action": "hang", "at_byte": 3 * MiB, "seconds": 1.5}, Unavailable, "moved no byte"),
        ({"step": "body", "action": "silent-end", "at_byte": 3 * MiB}, Unavailable, "XAPI is stuck"),
        ({"step": "end", "action": "fail", "error": ["HANDLE_INVALID", "VDI", "x"]}, XapiFailure, "HANDLE_INVALID"),
        ({"step": "end", "action": "drop"}, XapiBusy, "VDI_IO_ERROR"),
        ({"step": "end", "action": "lose-task"}, Unavailable, "does not know the task"),
    ],
)  # fmt: skip
async def test_every_disturbance_of_the_host(
    pool: Pool, engine: TransferEngine, run: Path, fault: dict[str, object], error: type[StorageError], match: str
) -> None:
    """The host's reason is told."""
    waits = {"hang": replace(PATIENCE, **{"head_s" if fault["step"] == "head" else "stall_s": 0.5})}
    patience = waits.get(str(fault["action"]), PATIENCE)
    async with agent(pool, patience=patience, grace_s=1.0 if fault["action"] == "silent-end" else 10.0) as ours:
        desk = Desk(ours, Importer(engine, ToolRunner(grace_s=0.5), run, limit=LIMIT))
        await pool.controls.arm(where="import", **fault)
        with pytest.raises(error, match=match):
            await desk.bring(of(BytesReader(content(SIZE)), RAW))
        await until_detached(pool)


@pytest.fixture(params=["ranges", "vhd", "qemu"])
def slow_source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    """A full disk, in one of the ways in which it may come."""
    disk = content(SIZE)
    if request.param == "ranges":
        return of(BytesReader(disk), RAW)
    if request.param == "vhd":
        return of(BytesReader(gzip.compress(vhd_of(disk, [(0, SIZE)]), 1)), VHD, "gzip")
    return file_source(make_image(tmp_path / "image", QCOW2, SIZE, extents=[(0, SIZE)]), QCOW2)


@pytest.mark.parametrize("action", ["drop", "fail"])
async def test_a_host_that_gives_up_in_the_middle(desk: Desk, slow_source: Source, action: str) -> None:
    await desk.ours.pool.controls.arm(where="import", step="body", action=action, at_byte=3 * MiB)
    with pytest.raises(XapiBusy, match="VDI_IO_ERROR"):
        await desk.bring(slow_source)


@pytest.mark.parametrize("steps", [0, 2, 8, 32])
async def test_cancelled_at_any_moment(desk: Desk, slow_source: Source, steps: int) -> None:
    await desk.ours.client.call("host.get_all")  # has logged in: the session of a login that is cancelled nobody knows
    task = asyncio.create_task(desk.bring(slow_source))
    for _ in range(steps):
        await asyncio.sleep(0.004)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_memory_does_not_follow_the_size(desk: Desk) -> None:
    """What the engine's buffers take is its own, and bounded."""
    disk = bytes(content(4 * MiB)) * 50
    image = vhd_of(disk, [(0, len(disk))])
    for source in (of(BytesReader(disk), RAW), of(Stream(image), VHD)):
        tracemalloc.start()
        try:
            await desk.bring(source)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 40 * MiB
