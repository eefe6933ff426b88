"""Images that are only laid out, for tests: written where room is dear, and read by libvhdi."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import pyvhdi

from hypervisors.contract import ImageRefused
from hypervisors.images import gate
from hypervisors.images.gate import GateLimits
from hypervisors.images.pieces import Data, ImageLayout, Metadata
from hypervisors.images.streaming import LayoutReader
from stores.contract import KiB
from stores.to import ImageFormat
from stores.transfer.engine import TransferEngine
from tests.disk_histories import finished, sha
from tests.images import BytesReader, qemu_io, virtual_size


@contextmanager
def libvhdi(images: Sequence[bytes | Path]) -> Iterator[pyvhdi.file]:
    """The last of the images, over those before it."""
    files: list[pyvhdi.file] = []
    for image in images:
        file = pyvhdi.file()
        if isinstance(image, Path):
            file.open(str(image))
        else:
            file.open_file_object(io.BytesIO(image))
        if files:
            assert file.parent_identifier == files[-1].identifier
            file.set_parent(files[-1])
        files.append(file)
    try:
        yield files[-1]
    finally:
        for file in reversed(files):
            file.close()


def write_sparse(made: ImageLayout, path: Path, pattern: bytes) -> Path:
    """The image of a disk that is full of one byte, with holes where the image is zero."""
    with path.open("wb") as file:
        for piece in made.pieces():
            match piece:
                case Metadata(content) if any(content):
                    file.write(content)
                case Metadata(content):
                    file.seek(len(content), io.SEEK_CUR)
                case Data(_, length):
                    file.write(pattern * length)
        file.truncate(made.size)
    return path


async def expect_gate_for_whole_images(images: Sequence[bytes], image_format: ImageFormat, size: int) -> None:
    """The first of the images, of a disk of `size` bytes, is let in; those after it, which are differences, are not."""
    whole, *differences = images
    verdict = await gate.inspect(BytesReader(whole), declared=image_format, limits=GateLimits())
    assert (verdict.subformat, verdict.virtual_size) == ("dynamic", size)
    for image in differences:
        with pytest.raises(ImageRefused) as raised:
            await gate.inspect(BytesReader(image), declared=image_format, limits=GateLimits())
        assert raised.value.details["rule"] == f"{image_format.lower()}-parent"


def expect_others_read(
    disk: ImageLayout, child: ImageLayout, folder: Path, image_format: ImageFormat, places: Sequence[int]
) -> None:
    """By libvhdi and qemu: `disk` has 8 KiB of data at each of `places`, the last of them at its end; `child`, a difference,
    zeroes the first half of the second, and has data in the second half of the last."""
    size = places[-1] + 8 * KiB
    path = write_sparse(disk, folder / "0.image", b"P")
    assert path.stat().st_size == disk.size
    assert virtual_size(path, image_format) == size
    with libvhdi([path]) as seen:
        assert seen.media_size == size
        assert seen.read_buffer_at_offset(16 * KiB, size - 16 * KiB) == bytes(8 * KiB) + b"P" * 8192
    with libvhdi([path, write_sparse(child, folder / "1.image", b"C")]) as seen:
        assert seen.media_size == size
        assert seen.read_buffer_at_offset(8 * KiB, places[1]) == bytes(4 * KiB) + b"P" * 4 * KiB
        assert seen.read_buffer_at_offset(16 * KiB, size - 16 * KiB) == bytes(8 * KiB) + b"P" * 4096 + b"C" * 4096
    qemu_io(path, image_format, *(f"read -P 80 {at} 8k" for at in places), f"read -P 0 {size - 16 * KiB} 8k")


async def expect_stream_and_digest(made: ImageLayout, disk: bytes) -> None:
    """Read as if it were finished, the image is what it would be."""
    image = finished(made, disk)
    engine = TransferEngine()
    try:
        reader = LayoutReader(made, BytesReader(disk), engine.network.of(BytesReader(disk)))
        assert reader.info.size == len(image)
        assert sha(b"".join([bytes(piece) async for piece in engine.stream(reader)])) == sha(image)
        assert await engine.digest(reader, ["sha256"]) == {"sha256": sha(image)}
    finally:
        await engine.aclose()
