"""VHD as the host's own tools write and read it on a stream; shares nothing with the agent's code.

Written: header at 512, table at 2048, creator "caml", geometry rounded down as the VHD specification says, every sector
marked as present, blocks in order. Read: forward only, a footer first, blocks in the order of the file, sector bitmaps
honoured, the trailing footer demanded at its place.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from tests.doubles.xapi.disks import BLOCK, Disk

SECTOR = 512
LARGEST = 2040 << 30
_TABLE_AT = 2048
_BITMAP = BLOCK // SECTOR // 8  # 512 bytes: one sector exactly
_UNUSED = 0xFFFFFFFF
_DYNAMIC, _DIFFERENCING = 3, 4
_MAC_ABSOLUTE_URL = b"MacX"

Read = Callable[[int], Awaitable[bytes | memoryview]]
"""Exactly so many bytes of the stream, valid until the next are read."""
Write = Callable[[int, bytes | memoryview], None]


class BadVhd(Exception):
    """The stream is not one that the host's reader takes."""


@dataclass(frozen=True)
class Parent:
    number: uuid.UUID
    path: str


@dataclass(frozen=True)
class Plan:
    """A VHD before it is sent: what precedes the blocks, the blocks, what follows them."""

    head: bytes
    blocks: list[int]
    footer: bytes

    @property
    def size(self) -> int:
        return len(self.head) + len(self.blocks) * (_BITMAP + BLOCK) + SECTOR

    def pieces(self, disk: Disk) -> Iterator[bytes]:
        yield self.head
        for block in self.blocks:
            data = disk.read(block * BLOCK, min(BLOCK, disk.size - block * BLOCK))
            yield b"\xff" * _BITMAP
            yield data
            if len(data) < BLOCK:
                yield bytes(BLOCK - len(data))
        yield self.footer


def planned(size: int, blocks: list[int], number: uuid.UUID, parent: Parent | None) -> Plan:
    """A dynamic VHD of `blocks`, or a differencing one over `parent`."""
    entries = -(-size // BLOCK)
    table_size = -(-entries * 4 // SECTOR) * SECTOR
    locator_at = _TABLE_AT + table_size
    locator = b"" if parent is None else f"file://{parent.path}".encode()
    locator_room = -(-len(locator) // SECTOR) * SECTOR
    first = locator_at + locator_room
    table = [_UNUSED] * entries
    for place, block in enumerate(blocks):
        table[block] = (first + place * (_BITMAP + BLOCK)) // SECTOR
    footer = _footer(size, _DYNAMIC if parent is None else _DIFFERENCING, number)
    header = _header(entries, parent, locator, locator_at)
    packed = struct.pack(f">{entries}I", *table).ljust(table_size, b"\xff")
    head = footer + header + bytes(_TABLE_AT - SECTOR - 1024) + packed + locator.ljust(locator_room, b"\0")
    return Plan(head, blocks, footer)


def _footer(size: int, kind: int, number: uuid.UUID) -> bytes:
    cylinders, heads, sectors = _geometry(size // SECTOR)
    fields = struct.pack(
        ">8sIIQI4sI4sQQHBBII16sB427x",
        b"conectix", 2, 0x00010000, SECTOR, 0, b"caml", 1, b"\0\0\0\0", size, size, cylinders, heads, sectors, kind, 0,
        number.bytes, 0,
    )  # fmt: skip
    return _with_sum(fields, 64)


def _header(entries: int, parent: Parent | None, locator: bytes, locator_at: int) -> bytes:
    name = "" if parent is None else parent.path.rpartition("/")[2]
    places = bytes(192)
    if parent is not None:
        room = -(-len(locator) // SECTOR)
        places = struct.pack(">4sIIIQ", _MAC_ABSOLUTE_URL, room, len(locator), 0, locator_at).ljust(192, b"\0")
    fields = struct.pack(
        ">8sQQIIII16sII512s192s256x",
        b"cxsparse", 0xFFFFFFFFFFFFFFFF, _TABLE_AT, 0x00010000, entries, BLOCK, 0,
        parent.number.bytes if parent is not None else bytes(16), 0, 0, name.encode("utf-16-be"), places,
    )  # fmt: skip
    return _with_sum(fields, 36)


def _with_sum(fields: bytes, at: int) -> bytes:
    return fields[:at] + struct.pack(">I", ~sum(fields) & 0xFFFFFFFF) + fields[at + 4 :]


def _geometry(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors per track by the calculation of the specification's appendix."""
    sectors = min(sectors, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    per_track, tracks = 17, sectors // 17
    heads = max(4, (tracks + 1023) // 1024)
    if tracks >= heads * 1024 or heads > 16:
        per_track, tracks, heads = 31, sectors // 31, 16
    if tracks >= heads * 1024:
        per_track, tracks = 63, sectors // 63
    return tracks // heads, heads, per_track


async def receive(read: Read, write: Write, *, length: int | None) -> None:
    """Write the disk of a stream of `length` bytes; without one the reader looks for the last footer where a full disk of the
    size said would end, and finds nothing there."""
    at = 0

    async def take(count: int) -> bytes | memoryview:
        nonlocal at
        at += count
        return await read(count)

    async def skip_to(offset: int) -> None:
        if offset < at:
            raise BadVhd(f"the stream is at {at}, and {offset} was wanted")
        while at < offset:
            await take(min(BLOCK, offset - at))

    first = bytes(await take(SECTOR))
    cookie, header_at, size = struct.unpack_from(">8s8xQ24xQ", first)
    if cookie != b"conectix" or _with_sum(first[:64] + bytes(4) + first[68:], 64) != first:
        raise BadVhd("there is no footer at the beginning")
    await skip_to(header_at)
    header = bytes(await take(1024))
    if header[:8] != b"cxsparse" or _with_sum(header[:36] + bytes(4) + header[40:], 36) != header:
        raise BadVhd("there is no header where the footer says")
    table_at, entries, block_size = struct.unpack_from(">16xQ4xII", header)
    if block_size != BLOCK:
        raise BadVhd(f"blocks of {block_size} bytes")
    await skip_to(table_at)
    table = struct.unpack(f">{entries}I", await take(entries * 4))
    for place, block in sorted((place, block) for block, place in enumerate(table) if place != _UNUSED):
        await skip_to(place * SECTOR)
        await _receive_block(take, write, block, size)
    ends_at = (length if length is not None else entries * (_BITMAP + BLOCK) + size) - 1 & ~(SECTOR - 1)
    await skip_to(ends_at)
    if await take(SECTOR) != first:
        raise BadVhd("there is no footer at the end")


async def _receive_block(take: Read, write: Write, block: int, size: int) -> None:
    present = bytes(await take(_BITMAP))
    data = await take(BLOCK)
    for start, end in _runs(present):
        offset = block * BLOCK + start
        end = min(end, size - block * BLOCK)
        if end > start:
            write(offset, data[start:end])


def _runs(bitmap: bytes) -> Iterator[tuple[int, int]]:
    """Byte ranges of a block whose sectors are marked; the first sector is the highest bit of the first byte."""
    if bitmap == b"\xff" * _BITMAP:
        yield 0, BLOCK
        return
    marks = [bitmap[number // 8] >> (7 - number % 8) & 1 for number in range(BLOCK // SECTOR)]
    start: int | None = None
    for number, mark in enumerate([*marks, 0]):
        if mark and start is None:
            start = number
        elif not mark and start is not None:
            yield start * SECTOR, number * SECTOR
            start = None
