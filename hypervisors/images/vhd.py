"""VHD: fixed, dynamic and differencing.

Layout and constants: Microsoft's Virtual Hard Disk Image Format Specification 1.0; all numbers big-endian. The footer is the
last sector; dynamic disks begin with a copy of it. A fixed disk's first bytes are the guest's own, so only its end tells
that it is one. The size is `current_size` whoever wrote the disk (the geometry beside it is rounded), and qemu must be told
so: see `formats.OPEN_OPTIONS`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from uuid import UUID

from hypervisors.images.parsing import HEAD, SECTOR, Layout, check_within, refuse, truncated, unpacked
from stores.contract import GiB, MiB
from stores.to import ImageFormat

COOKIE = b"conectix"
HEADER_COOKIE = b"cxsparse"
VERSION = 0x00010000
DYNAMIC, DIFFERENCING = 3, 4
_FIXED = 2

FOOTER = struct.Struct(">8sIIQI4sI4sQQIII16sB427x")
"""Cookie, features, version, place of the header, time (seconds since 2000), creator, its version, its system, original size,
current size, geometry, disk type, checksum, id, whether a machine is suspended."""
FOOTER_CHECKSUM_AT = 64

HEADER = struct.Struct(">8sQQIIII16sI4x512s192s256x")
"""Of dynamic and differencing disks: cookie, nothing, place of the table, version, blocks, block size, checksum, and of the
parent: id, time, name (UTF-16), locators."""
HEADER_CHECKSUM_AT = 36

LARGEST_DISK = 2040 * GiB
"""What the 32-bit sector numbers of the allocation table leave room for."""

UNALLOCATED = 0xFFFFFFFF
"""In the allocation table: a block that is not there."""

_LARGEST_TABLE = 64 * MiB


@dataclass(frozen=True, slots=True)
class Footer:
    """What the last sector says."""

    header_offset: int
    creator: bytes
    virtual_size: int
    kind: int
    unique_id: UUID


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a dynamic or differencing disk says. `names_parent`: in any of the ways that there are."""

    table_offset: int
    entries: int
    block: int
    parent_id: UUID
    names_parent: bool


def parse(head: bytes, tail: bytes | None, size: int | None) -> Layout:
    """Refuses differencing disks, and every disagreement between the copies of the footer, checksums and sizes.

    With `tail` None (it has not arrived) the verdict is provisional; of a fixed disk nothing at all has been seen then.
    """
    if size is not None and size % SECTOR:
        # qemu rounds a file's size up to sectors and would look for the footer elsewhere than we do.
        raise refuse("vhd-size", f"a VHD of {size} bytes is not whole sectors: it was cut off or added to", size=size)
    last = tail[-SECTOR:] if tail is not None else None
    if head.startswith(COOKIE):
        if last is not None:
            check_copies(head[:SECTOR], last)
        return _dynamic(head, size, provisional=last is None)
    if last is None:
        assumed = size - SECTOR if size is not None else None
        return Layout(ImageFormat.VHD, "fixed", assumed, ("its footer has not arrived",), provisional=True)
    return _fixed(last, size)


def _fixed(last: bytes, size: int | None) -> Layout:
    footer = read_footer(last)
    _check_merged(footer)
    if footer.kind != _FIXED:
        raise refuse(
            "vhd-footer", "the VHD is no fixed disk and yet has no footer at its beginning", disk_type=footer.kind
        )
    if size is not None and size != footer.virtual_size + SECTOR:
        raise refuse(
            "vhd-size",
            f"a fixed VHD of {footer.virtual_size} bytes cannot be a file of {size} bytes: it was cut off or added to",
            virtual_size=footer.virtual_size,
            size=size,
        )
    return Layout(ImageFormat.VHD, "fixed", footer.virtual_size, (_note("fixed", footer),))


def _dynamic(head: bytes, size: int | None, *, provisional: bool) -> Layout:
    footer = read_footer(head)
    _check_merged(footer)
    check_leading(footer)
    header = read_header(head[footer.header_offset : footer.header_offset + HEADER.size], footer.virtual_size)
    if header.names_parent:
        raise refuse("vhd-parent", "the VHD names a parent disk: send it merged")
    check_within("VHD block table", header.table_offset + header.entries * 4, size)
    return Layout(
        ImageFormat.VHD,
        "dynamic",
        footer.virtual_size,
        (_note("dynamic", footer), f"blocks of {header.block} bytes, no parent disk"),
        provisional,
    )


def read_footer(sector: bytes) -> Footer:
    """The footer, or its copy, in the first `SECTOR` bytes. `ImageRefused` unless it is whole and can be."""
    if len(sector) < SECTOR:
        raise truncated("VHD footer")
    cookie, _, version, header_offset, _, creator, _, _, _, virtual_size, _, kind, _, unique_id, _ = FOOTER.unpack_from(
        sector
    )
    if cookie != COOKIE or version != VERSION:
        raise refuse("vhd-footer", "the VHD has no footer of version 1.0: it was cut off, or is no VHD")
    if not _checksum_holds(sector[:SECTOR], FOOTER_CHECKSUM_AT):
        raise refuse("vhd-checksum", "the checksum of the VHD's footer is wrong")
    if kind not in (_FIXED, DYNAMIC, DIFFERENCING):
        raise refuse("vhd-type", f"disk type {kind} of the VHD is not fixed, dynamic or differencing", disk_type=kind)
    if virtual_size % SECTOR or virtual_size > LARGEST_DISK:
        raise refuse(
            "vhd-size", f"the VHD says that it has {virtual_size} bytes, which cannot be", virtual_size=virtual_size
        )
    return Footer(header_offset, creator, virtual_size, kind, UUID(bytes=unique_id))


def check_leading(footer: Footer) -> None:
    """`ImageRefused` unless a disk that begins with this footer can be: dynamic or differencing, its header nearby."""
    if footer.kind == _FIXED:
        raise refuse(
            "vhd-footer", "the VHD is a fixed disk and yet has a footer at its beginning", disk_type=footer.kind
        )
    if footer.header_offset > HEAD - HEADER.size:
        raise refuse(
            "vhd-header",
            f"the VHD's dynamic disk header is at {footer.header_offset}, not near its beginning",
            offset=footer.header_offset,
        )


def check_copies(first: bytes, last: bytes) -> None:
    """`ImageRefused` where the first and the last sector are not one footer."""
    if first != last:
        raise refuse("vhd-footer", "the footer of the VHD and its copy at the beginning differ")


def read_header(sector: bytes, virtual_size: int) -> Header:
    """The header of a disk of `virtual_size` bytes. `ImageRefused` unless it is whole and can be."""
    cookie, _, table_offset, version, entries, block, _, parent, _, parent_name, locators = unpacked(
        HEADER, sector, "VHD dynamic disk header"
    )
    if cookie != HEADER_COOKIE or version != VERSION:
        raise refuse("vhd-header", "the VHD has no dynamic disk header of version 1.0 where its footer says")
    if not _checksum_holds(sector, HEADER_CHECKSUM_AT):
        raise refuse("vhd-checksum", "the checksum of the VHD's dynamic disk header is wrong")
    if block < SECTOR or block & (block - 1):
        raise refuse("vhd-blocks", f"the VHD has blocks of {block} bytes, which is no power of two", block=block)
    if entries * block < virtual_size or entries * 4 > _LARGEST_TABLE:
        raise refuse("vhd-table", f"the VHD has {entries} blocks of {block} bytes for its {virtual_size}")
    if table_offset % SECTOR or not table_offset:
        raise refuse("vhd-table", f"the VHD's block table is at {table_offset}, which cannot be", offset=table_offset)
    names_parent = any(parent) or any(parent_name) or any(locators)
    return Header(table_offset, entries, block, UUID(bytes=parent), names_parent)


def checksum(data: bytes, at: int) -> bytes:
    """Four bytes, for the place `at`: the one's complement of the sum of all bytes but those there."""
    return (~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF).to_bytes(4, "big")


def _checksum_holds(data: bytes, at: int) -> bool:
    return data[at : at + 4] == checksum(data, at)


def _check_merged(footer: Footer) -> None:
    if footer.kind == DIFFERENCING:
        raise refuse("vhd-parent", "the VHD is a differencing disk: send it merged with its parents")


def _note(kind: str, footer: Footer) -> str:
    creator = "".join(chr(code) if 32 < code < 127 else "." for code in footer.creator)
    return f"{kind} VHD by creator {creator}, size taken from current_size, checksums right"
