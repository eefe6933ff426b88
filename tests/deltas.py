"""Images as they are sent, read by programs that are not ours: what disk they hold, and what becomes of one below a delta."""

from __future__ import annotations

import io
from pathlib import Path

from hypervisors.images.disk_image import DiskImage
from stores.contract import RangeReader
from stores.to import ImageFormat
from tests.doubles.disk_images import qemu_img
from tests.doubles.xapi import vhd


async def sent(made: DiskImage) -> bytes:
    """The image's bytes."""
    if isinstance(made.content, RangeReader):
        return await made.content.read(0, made.content.info.size or 0)
    return b"".join([bytes(piece) async for piece in made.content])


async def held(made: DiskImage, folder: Path) -> bytes:
    """The disk of an image that is whole."""
    image, raw = folder / "sent", folder / "sent.raw"
    image.write_bytes(await sent(made))
    if made.format is ImageFormat.VHD:
        source = ["--image-opts", f"driver=vpc,force_size_calc=current_size,file.filename={image}"]
    else:
        source = ["-f", made.format.value.lower(), str(image)]
    qemu_img("convert", "-O", "raw", *source, str(raw))
    return raw.read_bytes()


async def applied(below: bytes, made: DiskImage, folder: Path) -> bytes:
    """`below`, with what a delta says over it."""
    image, base = folder / "delta", folder / "below.raw"
    content = await sent(made)
    if made.format is ImageFormat.VHD:
        return await _overlaid(below, content)
    image.write_bytes(content)
    base.write_bytes(below)
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", str(base), str(image))
    qemu_img("convert", "-f", "qcow2", "-O", "raw", str(image), str(folder / "over.raw"))
    return (folder / "over.raw").read_bytes()


async def _overlaid(below: bytes, content: bytes) -> bytes:
    """As XAPI's import does it."""
    disk, stream = bytearray(below), io.BytesIO(content)

    async def read(count: int) -> bytes:
        return stream.read(count)

    def write(offset: int, data: bytes | memoryview) -> None:
        disk[offset : offset + len(data)] = data

    await vhd.receive(read, write, length=len(content))
    return bytes(disk)
