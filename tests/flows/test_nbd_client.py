"""Images out of real servers: qemu-nbd as the agent runs it, qemu-storage-daemon, nbdkit."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import select
import signal
import socket as socket_module
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hypervisors.contract import ImageLocked
from hypervisors.nbd import connect
from hypervisors.nbd.client import DIRTY_BITMAP
from hypervisors.qemu.exports import exported
from stores.bridge.wire import ALLOCATION
from stores.contract import Extent, GiB, KiB, MiB
from stores.errors import DeviceFault, InvalidReference, NotFound, PolicyRefused, Unavailable
from stores.to import ImageFormat
from stores.tools.process import ToolFailed, ToolRunner, ToolTimeout
from stores.transfer.engine import TransferEngine
from tests.images import disk_digest, file_source, make_image, make_qcow2, make_raw, opened
from tests.processes import children

QCOW2, RAW = ImageFormat.QCOW2, ImageFormat.RAW
CLUSTER = 64 * KiB
SIZE = 24 * MiB + 3 * CLUSTER
DATA = [(0, 3 * MiB), (5 * MiB + 4096, 70 * KiB), (16 * MiB, 4 * MiB + 512), (SIZE - 512, 512)]
TOOLS = ToolRunner(grace_s=0.5)  # qemu-nbd does not hear a SIGTERM while it starts


@pytest.fixture
def run() -> Iterator[Path]:
    """A runtime directory: a short path, as sockets want."""
    with tempfile.TemporaryDirectory(prefix="nbd") as directory:
        yield Path(directory)


@pytest.fixture(autouse=True)
async def nothing_is_left(run: Path) -> AsyncIterator[None]:
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), children()
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [path for path in run.rglob("*") if not path.is_dir()] == []
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), children()) == before


def listens(path: Path) -> bool:
    """Whether somebody takes connections there. The file is there a moment earlier."""
    with socket_module.socket(socket_module.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@asynccontextmanager
async def served(argv: Sequence[str], socket: Path) -> AsyncIterator[None]:
    """Another server than the agent's own."""
    async with TOOLS.running(argv) as server:
        while not listens(socket):
            assert (failure := await server.ended(within_s=0.01)) is None, failure
        yield
    socket.unlink(missing_ok=True)


@asynccontextmanager
async def nbdkit(run: Path, *arguments: str) -> AsyncIterator[Path]:
    socket = run / "kit.sock"
    async with served(["nbdkit", "-f", "-r", "-U", str(socket), *arguments], socket):
        yield socket


def storage_daemon(socket: Path, image: Path, image_format: str, *options: str) -> list[str]:
    return [
        "qemu-storage-daemon",
        *("--blockdev", f"driver=file,node-name=file,filename={image},read-only=on"),
        *("--blockdev", f"driver={image_format},node-name=disk,file=file,read-only=on"),
        *("--nbd-server", f"addr.type=unix,addr.path={socket},max-connections=20"),
        *("--export", ",".join(["type=nbd,id=e,node-name=disk,name=disk", *options])),
    ]


def qemu_io(image: Path, *commands: str) -> None:
    argv = ["qemu-io", "-f", "qcow2", *(part for command in commands for part in ("-c", command)), str(image)]
    assert b"error" not in subprocess.run(argv, check=True, capture_output=True).stdout


def qemu_img(*argv: object) -> bytes:
    return subprocess.run(["qemu-img", *map(str, argv)], check=True, capture_output=True).stdout


def mapped(image: Path, image_format: ImageFormat) -> list[Extent]:
    """What qemu-img says about data and zeroes, neighbours joined."""
    found: list[Extent] = []
    for one in json.loads(qemu_img("map", "--output=json", opened(image, image_format))):
        if found and found[-1].zero == one["zero"]:
            one["start"], one["length"] = found[-1].offset, found.pop().length + one["length"]
        found.append(Extent(one["start"], one["length"], one["zero"]))
    return found


async def copied(engine: TransferEngine, run: Path, socket: Path, name: str) -> tuple[str, list[Extent]]:
    """Digest of the copy of an export, and its extents."""
    async with connect(socket, name, engine=engine) as disk:
        copy = run / "copy"
        told = await engine.fetch(disk, copy, digests=["sha256"])
        try:
            with copy.open("rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == told.digests["sha256"]
            assert copy.stat().st_size == disk.size
        finally:
            copy.unlink()
        return told.digests["sha256"], list(await disk.extents(0, disk.size))


# --------------------------------------------------------------------------------------------- content and extents


@pytest.mark.parametrize(
    ("image_format", "options", "compressed"),
    [
        (QCOW2, "", False),
        (QCOW2, "cluster_size=4096", False),
        (QCOW2, "", True),
        (RAW, "", False),
        (ImageFormat.VHD, "", False),
    ],
    ids=["qcow2", "small clusters", "compressed", "raw", "vhd"],
)
async def test_content_and_extents(
    engine: TransferEngine, run: Path, tmp_path: Path, image_format: ImageFormat, options: str, compressed: bool
) -> None:
    image = make_image(
        tmp_path / "image", image_format, SIZE, extents=DATA, options=options, compressed=compressed, seed=3
    )
    async with exported(TOOLS, file_source(image, image_format), runtime_dir=run) as (socket, name):
        assert await copied(engine, run, socket, name) == (
            disk_digest(image, image_format),
            mapped(image, image_format),
        )


async def test_zeroes_that_were_written_are_zeroes(engine: TransferEngine, run: Path, tmp_path: Path) -> None:
    image = make_qcow2(tmp_path / "image", SIZE, extents=DATA)
    qemu_io(image, f"write -z 1M {CLUSTER}", "write -z -u 2M 128k", f"write -P 0 10M {CLUSTER}", "discard 17M 1M")
    async with exported(TOOLS, file_source(image, QCOW2), runtime_dir=run) as (socket, name):
        digest, extents = await copied(engine, run, socket, name)
    assert digest == disk_digest(image, QCOW2)
    assert extents == mapped(image, QCOW2)
    assert Extent(1 * MiB, CLUSTER, zero=True) in extents
    assert Extent(10 * MiB, CLUSTER, zero=False) in extents, "nobody said that these zeroes are zeroes"


async def test_from_a_storage_daemon(engine: TransferEngine, run: Path, tmp_path: Path) -> None:
    image, socket = make_qcow2(tmp_path / "image", SIZE, extents=DATA), run / "daemon.sock"
    async with served(storage_daemon(socket, image, "qcow2"), socket):
        assert await copied(engine, run, socket, "disk") == (disk_digest(image, QCOW2), mapped(image, QCOW2))


async def test_from_nbdkit(engine: TransferEngine, run: Path, tmp_path: Path) -> None:
    image = make_raw(tmp_path / "image", SIZE, extents=DATA)
    async with nbdkit(run, "file", str(image)) as socket:
        assert await copied(engine, run, socket, "") == (disk_digest(image, RAW), mapped(image, RAW))


async def test_from_a_server_that_allows_one_connection_only(engine: TransferEngine, run: Path, tmp_path: Path) -> None:
    """Reading and asking for extents take turns."""
    image, socket = make_raw(tmp_path / "image", SIZE, extents=DATA), run / "single.sock"
    async with served(["qemu-nbd", "-r", "-t", "-f", "raw", "-e", "1", "-k", str(socket), str(image)], socket):
        assert await copied(engine, run, socket, "") == (disk_digest(image, RAW), mapped(image, RAW))
        async with connect(socket, "", engine=engine) as disk, asyncio.TaskGroup() as group:
            assert disk.parallel == 1
            reading = [group.create_task(disk.read(number * MiB, 1 * MiB)) for number in range(3)]
            asking = [group.create_task(disk.extents(0, SIZE)) for _ in range(3)]
    content = image.read_bytes()
    assert [task.result() for task in reading] == [content[n * MiB : (n + 1) * MiB] for n in range(3)]
    assert [task.result() for task in asking] == [mapped(image, RAW)] * 3


async def test_an_8_tib_disk_with_little_in_it(engine: TransferEngine, run: Path, tmp_path: Path) -> None:
    size = 8192 * GiB
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, size)
    written = [0, 5 * GiB - CLUSTER, 4096 * GiB, size - CLUSTER]
    qemu_io(image, *(f"write -P 7 {at} {CLUSTER}" for at in written))
    async with (
        exported(TOOLS, file_source(image, QCOW2), runtime_dir=run) as (socket, name),
        connect(socket, name, engine=engine) as disk,
    ):
        assert [extent.offset async for extent in disk.each_extent(0, size) if not extent.zero] == written
        assert await disk.read(size - 10, 10) == b"\7" * 10


# ------------------------------------------------------------------------------------------- snapshots, bitmaps, chains


async def test_an_internal_snapshot(engine: TransferEngine, run: Path, tmp_path: Path) -> None:
    image = make_qcow2(tmp_path / "image", SIZE, extents=DATA)
    before, extents = disk_digest(image, QCOW2), mapped(image, QCOW2)
    qemu_img("snapshot", "-c", "monday, early", image)
    qemu_io(image, "write -P 9 0 5M", "write -P 9 12M 1M")
    async with exported(TOOLS, file_source(image, QCOW2), snapshot="monday, early", runtime_dir=run) as (socket, name):
        assert await copied(engine, run, socket, name) == (before, extents)
    async with exported(TOOLS, file_source(image, QCOW2), runtime_dir=run) as (socket, name):
        assert await copied(engine, run, socket, name) == (disk_digest(image, QCOW2), mapped(image, QCOW2))


@pytest.mark.parametrize("recording", [True, False], ids=["recording", "stopped"])
async def test_a_dirty_bitmap_tells_what_was_written(
    engine: TransferEngine, run: Path, tmp_path: Path, recording: bool
) -> None:
    image, context = make_qcow2(tmp_path / "image", SIZE, extents=DATA), DIRTY_BITMAP + "since monday"
    qemu_img("bitmap", "--add", "-g", CLUSTER, image, "since monday")
    qemu_io(
        image,
        "write -P 9 1M 4k",
        "write -P 9 6M 100k",
        "write -z 9M 64k",
        "discard 16M 1M",
        f"write -P 1 {SIZE - 512} 512",
    )
    if not recording:
        qemu_img("bitmap", "--disable", image, "since monday")
        qemu_io(image, "write -P 9 20M 1M")
    async with (
        exported(TOOLS, file_source(image, QCOW2), bitmap="since monday", runtime_dir=run) as (socket, name),
        connect(socket, name, engine=engine, contexts=(ALLOCATION, context)) as disk,
    ):
        assert await disk.dirty(context, 0, SIZE) == [
            (1 * MiB, CLUSTER),
            (6 * MiB, 2 * CLUSTER),
            (9 * MiB, CLUSTER),
            (16 * MiB, 1 * MiB),
            (SIZE - CLUSTER, CLUSTER),
        ]
        assert await disk.dirty(context, 6 * MiB + 512, 4 * CLUSTER) == [(6 * MiB + 512, 2 * CLUSTER - 512)]
        assert list(await disk.extents(0, SIZE)) == mapped(image, QCOW2)


async def test_a_snapshot_and_a_bitmap_in_one_export(engine: TransferEngine, run: Path, tmp_path: Path) -> None:
    """The content of the one, the changes of the other up to now."""
    image, context = make_qcow2(tmp_path / "image", SIZE, extents=DATA), DIRTY_BITMAP + "b0"
    qemu_img("bitmap", "--add", image, "b0")
    qemu_io(image, "write -P 9 7M 64k")
    before = disk_digest(image, QCOW2)
    qemu_img("snapshot", "-c", "s1", image)
    qemu_img("bitmap", "--disable", image, "b0")
    qemu_io(image, "write -P 5 0 20M")
    async with exported(TOOLS, file_source(image, QCOW2), snapshot="s1", bitmap="b0", runtime_dir=run) as (
        socket,
        name,
    ):
        assert (await copied(engine, run, socket, name))[0] == before
        async with connect(socket, name, engine=engine, contexts=(context,)) as disk:
            assert await disk.dirty(context, 0, SIZE) == [(7 * MiB, CLUSTER)]


async def test_a_chain_is_that_of_our_records(engine: TransferEngine, run: Path, tmp_path: Path) -> None:
    """Whatever the images say."""
    base = make_raw(tmp_path / "base", SIZE, extents=DATA, seed=1)
    (tmp_path / "other").write_bytes(bytes(SIZE))
    middle, top = tmp_path / "middle", tmp_path / "top"
    qemu_img("create", "-q", "-f", "qcow2", "-b", tmp_path / "other", "-F", "raw", middle)
    qemu_img("create", "-q", "-f", "qcow2", "-b", middle, "-F", "qcow2", top)
    qemu_io(middle, "write -P 3 1M 1M")
    qemu_io(top, "write -P 4 8M 64k")
    expected = bytearray(base.read_bytes())
    expected[1 * MiB : 2 * MiB] = b"\3" * MiB
    expected[8 * MiB : 8 * MiB + CLUSTER] = b"\4" * CLUSTER
    backing = file_source(middle, QCOW2), file_source(base, RAW)
    async with exported(TOOLS, file_source(top, QCOW2, *backing), runtime_dir=run) as (socket, name):
        assert (await copied(engine, run, socket, name))[0] == hashlib.sha256(expected).hexdigest()
    async with exported(TOOLS, file_source(top, QCOW2), runtime_dir=run) as (socket, name):
        _, extents = await copied(engine, run, socket, name)
        assert [extent for extent in extents if not extent.zero] == [Extent(8 * MiB, CLUSTER, zero=False)]


# --------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("missing", [{"snapshot": "s9"}, {"bitmap": "b9"}], ids=["snapshot", "bitmap"])
async def test_what_is_not_in_the_image(run: Path, tmp_path: Path, missing: dict[str, str]) -> None:
    image = make_qcow2(tmp_path / "image", 1 * MiB)
    with pytest.raises(NotFound, match="image cannot be exported"):
        async with exported(
            TOOLS,
            file_source(image, QCOW2),
            snapshot=missing.get("snapshot"),
            bitmap=missing.get("bitmap"),
            runtime_dir=run,
        ):
            pass


async def test_no_image_of_that_format(run: Path, tmp_path: Path) -> None:
    image = make_raw(tmp_path / "image", 1 * MiB)
    with pytest.raises(ToolFailed, match="not in qcow2 format"):
        async with exported(TOOLS, file_source(image, QCOW2), runtime_dir=run):
            pass


async def test_an_image_that_somebody_writes(run: Path, tmp_path: Path) -> None:
    image = make_qcow2(tmp_path / "image", 1 * MiB)
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as guest:
        assert guest.stdin is not None
        assert guest.stdout is not None
        guest.stdin.write(b"write 0 512\n")
        guest.stdin.flush()
        while b"wrote" not in guest.stdout.readline():
            pass
        with pytest.raises(ImageLocked):
            async with exported(TOOLS, file_source(image, QCOW2), runtime_dir=run):
                pass
        guest.stdin.close()


async def test_an_image_that_takes_too_long_to_open(run: Path, tmp_path: Path) -> None:
    image = make_qcow2(tmp_path / "image", 1 * MiB)
    with pytest.raises(ToolTimeout, match="had not opened"):
        async with exported(TOOLS, file_source(image, QCOW2), runtime_dir=run, start_s=0):
            pass


async def test_sockets_only_where_nobody_else_gets_in(run: Path, tmp_path: Path) -> None:
    (run / "nbd").mkdir(mode=0o755)
    with pytest.raises(PolicyRefused):
        async with exported(TOOLS, file_source(tmp_path / "image", QCOW2), runtime_dir=run):
            pass
    with pytest.raises(InvalidReference):
        async with exported(TOOLS, file_source(tmp_path / "image", QCOW2), runtime_dir=tmp_path / ("long" * 30)):
            pass


async def test_errors_of_the_disk_below(engine: TransferEngine, run: Path) -> None:
    broken = ("--filter=error", "memory", "8M", "error-pread=EIO", "error-pread-rate=100%")
    async with nbdkit(run, *broken) as socket, connect(socket, "", engine=engine) as disk:
        with pytest.raises(DeviceFault):
            await disk.read(0, 4 * MiB)


async def test_kill_9_of_the_server_in_mid_read(engine: TransferEngine, run: Path, tmp_path: Path) -> None:
    image = make_qcow2(tmp_path / "image", SIZE, extents=[(0, SIZE)])
    reads: list[bytes] = []

    async def work() -> None:
        async with (
            exported(TOOLS, file_source(image, QCOW2), runtime_dir=run) as (socket, name),
            connect(socket, name, engine=engine) as disk,
        ):
            while True:
                reads.append(await disk.read(len(reads) % 20 * MiB, 1 * MiB))
                if len(reads) == 5:
                    os.kill(int(socket.with_suffix(".pid").read_text()), signal.SIGKILL)

    with pytest.raises(Unavailable, match="qemu-nbd was killed by signal 9") as failure:
        await work()
    assert failure.value.details["tool"] == "qemu-nbd"


async def test_cancelled_in_mid_read(engine: TransferEngine, run: Path) -> None:
    """The server takes its time: what it sends later reaches nobody."""
    async with nbdkit(run, "--filter=delay", "pattern", "64M", "delay-read=300ms") as socket:
        buffers = [memoryview(bytearray(1 * MiB)) for _ in range(6)]
        async with connect(socket, "", engine=engine) as disk:
            reads = [asyncio.create_task(disk.read_into(n * MiB, buffer)) for n, buffer in enumerate(buffers)]
            await asyncio.sleep(0.1)
            for read in reads:
                read.cancel()
            assert all(
                isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*reads, return_exceptions=True)
            )
            before = [bytes(buffer) for buffer in buffers]
            await disk.read(0, 4096)
            assert [bytes(buffer) for buffer in buffers] == before


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 10, 30])
async def test_cancelled_at_any_moment(engine: TransferEngine, run: Path, tmp_path: Path, steps: int) -> None:
    image = make_qcow2(tmp_path / "image", 4 * MiB)

    async def work() -> None:
        async with (
            exported(TOOLS, file_source(image, QCOW2), runtime_dir=run) as (socket, name),
            connect(socket, name, engine=engine) as disk,
        ):
            while True:
                await disk.extents(0, disk.size)
                await disk.read(0, disk.size)

    task = asyncio.create_task(work())
    for _ in range(steps):
        await asyncio.sleep(0.003)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_kill_9_of_the_agent_ends_the_export(run: Path, tmp_path: Path) -> None:
    image = make_qcow2(tmp_path / "image", 1 * MiB)
    agent = textwrap.dedent(
        f"""
        import asyncio
        from pathlib import Path
        from hypervisors.qemu.exports import exported
        from stores.tools.process import ToolRunner
        from stores.to import ImageFormat
        from tests.images import file_source
        async def main():
            image = file_source(Path({str(image)!r}), ImageFormat.QCOW2)
            async with exported(ToolRunner(), image, runtime_dir=Path({str(run)!r})):
                print("ready", flush=True)
                await asyncio.sleep(1000)
        asyncio.run(main())
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", agent], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        (ready,) = (run / "nbd").glob("*.pid")
        server = os.pidfd_open(int(ready.read_text()))
        parent.kill()
    try:
        with open(server, "rb", closefd=False) as ended:
            assert select.select([ended], [], [], 30)[0], "qemu-nbd is still there"
    finally:
        os.close(server)
    for leftover in (run / "nbd").iterdir():  # as the daemon's next start does
        leftover.unlink()
