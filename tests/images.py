"""Disk images for tests, made by qemu's own tools, and ways to change single fields of them (`hostile_images` does).

Sizes and offsets are bytes. Everything is reproducible: content depends on the seed alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path

from awscrt.checksums import crc32c

from hypervisors.contract import ImageSpec, Source
from hypervisors.images.formats import DRIVERS, file_node, image_node, json_filename
from stores.contract import Ahead, BlockingCalls, KiB, LocalPath, MiB, ObjectInfo, RangeReader
from stores.errors import IntegrityError
from stores.to import ImageFormat

SECTOR = 512
Extents = Sequence[tuple[int, int]]


# ------------------------------------------------------------------------------------------------ real images


@lru_cache(maxsize=8)
def content(length: int, *, seed: int = 0) -> bytes:
    """What disks are full of: text, binaries, compressed files, and some zeroes between; compresses to about a half."""
    source = random.Random(seed)
    words = [source.randbytes(source.randint(2, 9)).hex().encode() for _ in range(500)]
    parts: list[bytes] = []
    made = 0
    while made < length:
        kind = source.random()
        if kind < 0.4:
            part = b" ".join(source.choices(words, k=4000)) + b"\n"
        elif kind < 0.9:
            part = source.randbytes(32 * KiB)
        else:
            part = bytes(16 * KiB)
        parts.append(part)
        made += len(part)
    return b"".join(parts)[:length]


def make_raw(path: Path, size: int, *, extents: Extents | None = None, seed: int = 0) -> Path:
    """A sparse raw disk with data in `extents` (offset, length), and holes elsewhere.

    Without `extents`: data in the first eighth, in the middle and in the last sector, at most 4 MiB each.
    """
    if extents is None:
        part = min(size // 8, 4 * MiB) // SECTOR * SECTOR
        extents = [(0, part), (size // 2 // SECTOR * SECTOR, part), (size - SECTOR, SECTOR)]
    with path.open("wb") as file:
        file.truncate(size)
        for number, (offset, length) in enumerate(extents):
            file.seek(offset)
            file.write(content(length, seed=seed * 1000 + number))
    return path


def make_image(
    path: Path,
    image_format: ImageFormat,
    size: int,
    *,
    extents: Extents | None = None,
    seed: int = 0,
    options: str = "",
    compressed: bool = False,
) -> Path:
    """The disk of `make_raw` in another format; `options` as `qemu-img convert -o` takes them."""
    raw = make_raw(path.with_name(path.name + ".making"), size, extents=extents, seed=seed)
    command = ["qemu-img", "convert", "-f", "raw", "-O", DRIVERS[image_format]]
    command += ["-o", options] if options else []
    command += ["-c"] if compressed else []
    subprocess.run([*command, str(raw), str(path)], check=True, capture_output=True)
    raw.unlink()
    return path


def make_qcow2(
    path: Path,
    size: int,
    *,
    extents: Extents | None = None,
    seed: int = 0,
    options: str = "",
    compressed: bool = False,
) -> Path:
    """The disk of `make_raw` as qcow2."""
    return make_image(path, ImageFormat.QCOW2, size, extents=extents, seed=seed, options=options, compressed=compressed)


def make_iso(path: Path, *, hybrid: bool = False, seed: int = 0) -> Path:
    """An ISO 9660 image with a file or two; `hybrid`: with a partition table in its system area."""
    tree = path.with_name(path.name + ".making")
    tree.mkdir()
    (tree / "data.bin").write_bytes(content(300 * KiB, seed=seed))
    (tree / "readme.txt").write_text("an image for tests\n")
    subprocess.run(["genisoimage", "-quiet", "-r", "-o", str(path), str(tree)], check=True, capture_output=True)
    for file in tree.iterdir():
        file.unlink()
    tree.rmdir()
    if hybrid:
        patch(path, 446, mbr_partition(1, path.stat().st_size // SECTOR - 1))
        patch(path, 510, b"\x55\xaa")
    return path


def mbr_partition(start: int, sectors: int) -> bytes:
    """A partition table entry of type Linux, active."""
    return struct.pack("<B3sB3sII", 0x80, b"\0\2\0", 0x83, b"\xff\xff\xff", start, sectors)


def opened(path: Path, image_format: ImageFormat) -> str:
    """The image as a file name for qemu's tools, with driver and options explicit."""
    return json_filename(image_node(image_format, file_node(str(path))))


def file_source(path: Path, image_format: ImageFormat, *backing: Source) -> Source:
    """The image as a handler gets it from a directory. `backing`: its parents, nearest first."""
    return Source(LocalPath(path, ObjectInfo(path.name, None)), ImageSpec(image_format), backing)


def qemu_io(path: Path, image_format: ImageFormat, *commands: str) -> None:
    """What a guest does to its disk: `write -P 1 0 64k`, `discard 0 64k`, ..."""
    told = [part for command in commands for part in ("-c", command)]
    subprocess.run(
        ["qemu-io", "-d", "unmap", "-f", DRIVERS[image_format], *told, str(path)], check=True, capture_output=True
    )


@asynccontextmanager
async def open_for_writing(path: Path | str, image_format: ImageFormat) -> AsyncIterator[None]:
    """As a guest has its disk open, of any format. `path`, or an address of qemu's."""
    process = await asyncio.create_subprocess_exec(
        *("qemu-io", "-f", DRIVERS[image_format], str(path)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(b"length\n")
        await process.stdout.readline()
        yield
    finally:
        process.stdin.write(b"quit\n")
        await process.communicate()


def virtual_size(path: Path, image_format: ImageFormat) -> int:
    """What qemu says, told the format."""
    command = ["qemu-img", "info", "--output=json", opened(path, image_format)]
    return int(json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["virtual-size"])


def disk_digest(path: Path, image_format: ImageFormat) -> str:
    """SHA-256 of what a guest would read, from the first to the last byte."""
    raw = path.with_name(path.name + ".reading")
    command = ["qemu-img", "convert", "-O", "raw", opened(path, image_format), str(raw)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        with raw.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    finally:
        raw.unlink()


def patch(path: Path, offset: int, data: bytes) -> Path:
    """Overwrite bytes; a negative offset counts from the end."""
    with path.open("r+b") as file:
        file.seek(offset if offset >= 0 else path.stat().st_size + offset)
        file.write(data)
    return path


class BytesReader(RangeReader):
    """An object in memory, with a list of what was read of it."""

    def __init__(self, data: bytes, *, ref: str = "image") -> None:
        self.info = ObjectInfo(ref=ref, size=len(data))
        self.reads: list[tuple[int, int]] = []
        self._data = data

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reads.append((offset, len(buffer)))
        if offset + len(buffer) > len(self._data):
            raise IntegrityError("the object ends early")
        buffer[:] = self._data[offset : offset + len(buffer)]


class AskedReader(BytesReader):
    """As a server reads: `asked` has each request, for as much as is known to be read on without a gap."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.asked: list[tuple[int, int]] = []

    async def read_each(
        self,
        take: Callable[[], tuple[int, memoryview] | None],
        put: Callable[[int, memoryview], None],
        threads: BlockingCalls,
        *,
        ahead: Ahead = lambda: (),
    ) -> None:
        def read() -> None:
            at = end = -1
            while (wanted := take()) is not None:
                offset, buffer = wanted
                if offset != at or at == end:
                    assert at == end, "a request was not read to its end"
                    end = offset + len(buffer)
                    for following, length in ahead():
                        if following != end:
                            break
                        end += length
                    self.asked.append((offset, end - offset))
                buffer[:] = self._data[offset : offset + len(buffer)]
                at = offset + len(buffer)
                put(offset, buffer)

        await threads.run(read)


def field(path: Path, offset: int, length: int) -> bytes:
    """Read bytes; a negative offset counts from the end."""
    with path.open("rb") as file:
        file.seek(offset if offset >= 0 else path.stat().st_size + offset)
        return file.read(length)


# -------------------------------------------------------------------------------------------------------- VHD


def set_vhd_footer(path: Path, offset: int, data: bytes) -> Path:
    """Change a field of the footer, in all its copies, and make the checksums right again."""
    places = [-SECTOR] + ([0] if field(path, 0, 8) == b"conectix" else [])
    for place in places:
        footer = bytearray(field(path, place, SECTOR))
        footer[offset : offset + len(data)] = data
        footer[64:68] = bytes(4)
        footer[64:68] = (~sum(footer) & 0xFFFFFFFF).to_bytes(4, "big")
        patch(path, place, bytes(footer))
    return path


def set_vhd_header(path: Path, offset: int, data: bytes) -> Path:
    """Change a field of the dynamic disk header, and make its checksum right again."""
    place = int.from_bytes(field(path, 16, 8), "big")
    header = bytearray(field(path, place, 1024))
    header[offset : offset + len(data)] = data
    header[36:40] = bytes(4)
    header[36:40] = (~sum(header) & 0xFFFFFFFF).to_bytes(4, "big")
    return patch(path, place, bytes(header))


def make_vhd_by(path: Path, creator: bytes, size: int, *, fixed: bool = False, seed: int = 0) -> Path:
    """A VHD of exactly `size`, as another program (`creator`, four bytes) would have written it: the geometry is rounded
    down, so that only `current_size` is right. XAPI writes such disks as `caml`."""
    options = "force_size=on" + (",subformat=fixed" if fixed else "")
    make_image(path, ImageFormat.VHD, size, seed=seed, options=options)
    cylinders, heads, sectors = size // SECTOR // (16 * 63), 16, 63
    set_vhd_footer(path, 28, creator)
    return set_vhd_footer(path, 56, struct.pack(">HBB", min(cylinders, 65535), heads, sectors))


# ------------------------------------------------------------------------------------------------------- VHDX


VHDX_HEADERS = (64 * KiB, 128 * KiB)


def set_vhdx_headers(path: Path, offset: int, data: bytes, *, places: Sequence[int] = VHDX_HEADERS) -> Path:
    """Change a field of both headers, or of those at `places`, and make their checksums right again."""
    for place in places:
        header = bytearray(field(path, place, 4 * KiB))
        header[offset : offset + len(data)] = data
        header[4:8] = bytes(4)
        header[4:8] = crc32c(bytes(header)).to_bytes(4, "little")
        patch(path, place, bytes(header))
    return path


def set_vhdx_regions(path: Path, offset: int, data: bytes) -> Path:
    """Change a field of both region tables, and make their checksums right again."""
    for place in (192 * KiB, 256 * KiB):
        table = bytearray(field(path, place, 64 * KiB))
        table[offset : offset + len(data)] = data
        table[4:8] = bytes(4)
        table[4:8] = crc32c(bytes(table)).to_bytes(4, "little")
        patch(path, place, bytes(table))
    return path


VHDX_METADATA = 3 * MiB
"""Where qemu puts it: the table there, the items 64 KiB further on, file parameters first."""


# ------------------------------------------------------------------------------------------------------- VMDK


def set_vmdk_descriptor(path: Path, old: str, new: str) -> Path:
    """Replace text in the descriptor, which keeps its room."""
    room = 20 * SECTOR
    text = field(path, SECTOR, room).partition(b"\0")[0].decode()
    assert old in text
    return patch(path, SECTOR, text.replace(old, new).encode().ljust(room, b"\0")[:room])


def add_vmdk_footer(path: Path) -> Path:
    """Turn a streamOptimized VMDK into one that keeps its grain directory's place in a footer, as VMware's tools write it."""
    header = field(path, 0, SECTOR)
    with path.open("ab") as file:
        file.write(bytes(-path.stat().st_size % SECTOR))
        file.write(struct.pack("<QII496x", 1, 0, 3) + header + bytes(SECTOR))
    return patch(path, 56, b"\xff" * 8)
