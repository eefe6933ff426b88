"""Images of a qemu disk, made from what its NBD export tells: a full one, and one of what a dirty bitmap saw change."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from hypervisors.images.qcow2_stream import layout
from hypervisors.images.streaming import LayoutReader
from hypervisors.nbd import connect
from hypervisors.nbd.client import DIRTY_BITMAP
from hypervisors.qemu.exports import exported
from stores.bridge.wire import ALLOCATION
from stores.contract import Extent, KiB, MiB
from stores.to import ImageFormat
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from tests.disk_histories import chained
from tests.images import disk_digest, file_source, make_qcow2, opened

SIZE = 64 * MiB
BITMAP = "changes"


async def backup(disk: Path, target: Path, engine: TransferEngine, *, bitmap: str | None = None) -> int:
    """The size of the image that was made of all of `disk`, or of what changed."""
    context = [DIRTY_BITMAP + bitmap] if bitmap else []
    with tempfile.TemporaryDirectory(prefix="nbd") as runtime:
        export = exported(ToolRunner(), file_source(disk, ImageFormat.QCOW2), bitmap=bitmap, runtime_dir=Path(runtime))
        async with (
            export as (socket, name),
            connect(socket, name, engine=engine, contexts=[ALLOCATION, *context]) as served,
        ):
            parts = await served.dirty(context[0], 0, served.size) if bitmap else [(0, served.size)]
            extents: list[Extent] = []
            for part in parts:
                extents += await served.extents(*part)
            made = layout(served.size, extents, delta=bool(bitmap))
            reader = LayoutReader(made, served, engine.network.of(served))
            with target.open("wb") as file:
                async for piece in engine.stream(reader):
                    file.write(piece)
            return made.size


def qemu(*argv: str | Path) -> None:
    subprocess.run(argv, check=True, capture_output=True)


async def test_full_and_incremental(engine: TransferEngine, tmp_path: Path) -> None:
    disk, full, delta = (tmp_path / name for name in ("disk.qcow2", "full.qcow2", "delta.qcow2"))
    make_qcow2(disk, SIZE, extents=[(0, 5 * MiB), (20 * MiB + 512, 3 * MiB), (SIZE - 512, 512)])
    assert await backup(disk, full, engine) < 10 * MiB
    assert disk_digest(full, ImageFormat.QCOW2) == disk_digest(disk, ImageFormat.QCOW2)

    qemu("qemu-img", "bitmap", "--add", "-f", "qcow2", disk, BITMAP)
    changes = ["write -P 7 1M 64k", "write -P 8 40M 4k", "discard 21M 1M", "write -z 4M 512k"]
    qemu(
        "qemu-io",
        "-d",
        "unmap",
        *(word for change in changes for word in ("-c", change)),
        opened(disk, ImageFormat.QCOW2),
    )
    assert await backup(disk, delta, engine, bitmap=BITMAP) < 1 * MiB
    for image in (full, delta):
        qemu("qemu-img", "check", opened(image, ImageFormat.QCOW2))
    restored = tmp_path / "restored.qcow2"
    qemu("qemu-img", "convert", "-O", "qcow2", chained([full, delta]), restored)
    assert disk_digest(restored, ImageFormat.QCOW2) == disk_digest(disk, ImageFormat.QCOW2)


async def test_a_disk_without_data_is_a_header_and_tables(engine: TransferEngine, tmp_path: Path) -> None:
    disk, full = tmp_path / "disk.qcow2", tmp_path / "full.qcow2"
    make_qcow2(disk, SIZE, extents=[])
    assert await backup(disk, full, engine) == full.stat().st_size == 4 * 64 * KiB
    assert disk_digest(full, ImageFormat.QCOW2) == disk_digest(disk, ImageFormat.QCOW2)
