"""VHD, fixed and dynamic.

Layout and constants: Microsoft's Virtual Hard Disk Image Format Specification 1.0; all numbers big-endian. The footer is the
last sector; dynamic disks begin with a copy of it. A fixed disk's first bytes are the guest's own, so only its end tells
that it is one. The size is `current_size` whoever wrote the disk (the geometry beside it is rounded), and qemu must be told
so: see `formats.OPEN_OPTIONS`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hypervisors.images.parsing import HEAD, SECTOR, Layout, check_within, refuse, truncated, unpacked
from stores.contract import GiB, MiB
from stores.to import ImageFormat

COOKIE = b"conectix"

_FOOTER = struct.Struct(">8s4xIQ4x4s8x8xQ4xII16x428x")
_FOOTER_CHECKSUM_AT = 64
_HEADER = struct.Struct(">8s8xQIIII16s4x4x512s192s256x")
_HEADER_COOKIE = b"cxsparse"
_HEADER_CHECKSUM_AT = 36
_VERSION = 0x00010000
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4

_LARGEST_DISK = 2040 * GiB  # what the 32-bit sector numbers of the allocation table leave room for
_LARGEST_TABLE = 64 * MiB


@dataclass(frozen=True, slots=True)
class _Footer:
    header_offset: int
    creator: bytes
    virtual_size: int
    kind: int


def parse(head: bytes, tail: bytes | None, size: int | None) -> Layout:
    """Refuses differencing disks, and every disagreement between the copies of the footer, checksums and sizes.

    With `tail` None (it has not arrived) the verdict is provisional; of a fixed disk nothing at all has been seen then.
    """
    if size is not None and size % SECTOR:
        # qemu rounds a file's size up to sectors and would look for the footer elsewhere than we do.
        raise refuse("vhd-size", f"a VHD of {size} bytes is not whole sectors: it was cut off or added to", size=size)
    last = tail[-SECTOR:] if tail is not None else None
    if head.startswith(COOKIE):
        if last is not None and last != head[:SECTOR]:
            raise refuse("vhd-footer", "the footer of the VHD and its copy at the beginning differ")
        return _dynamic(head, size, provisional=last is None)
    if last is None:
        assumed = size - SECTOR if size is not None else None
        return Layout(ImageFormat.VHD, "fixed", assumed, ("its footer has not arrived",), provisional=True)
    return _fixed(last, size)


def _fixed(last: bytes, size: int | None) -> Layout:
    footer = _footer(last)
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
    footer = _footer(head)
    if footer.kind != _DYNAMIC:
        raise refuse(
            "vhd-footer", "the VHD is no dynamic disk and yet has a footer at its beginning", disk_type=footer.kind
        )
    if footer.header_offset > HEAD - _HEADER.size:
        raise refuse(
            "vhd-header",
            f"the VHD's dynamic disk header is at {footer.header_offset}, not near its beginning",
            offset=footer.header_offset,
        )
    sector = head[footer.header_offset : footer.header_offset + _HEADER.size]
    cookie, table_offset, version, entries, block, _, parent, parent_name, locators = unpacked(
        _HEADER, sector, "VHD dynamic disk header"
    )
    if cookie != _HEADER_COOKIE or version != _VERSION:
        raise refuse("vhd-header", "the VHD has no dynamic disk header of version 1.0 where its footer says")
    if not _checksum_holds(sector, _HEADER_CHECKSUM_AT):
        raise refuse("vhd-checksum", "the checksum of the VHD's dynamic disk header is wrong")
    if any(parent) or any(parent_name) or any(locators):
        raise refuse("vhd-parent", "the VHD names a parent disk: send it merged")
    if block < SECTOR or block & (block - 1):
        raise refuse("vhd-blocks", f"the VHD has blocks of {block} bytes, which is no power of two", block=block)
    if entries * block < footer.virtual_size or entries * 4 > _LARGEST_TABLE:
        raise refuse("vhd-table", f"the VHD has {entries} blocks of {block} bytes for its {footer.virtual_size}")
    if table_offset % SECTOR or not table_offset:
        raise refuse("vhd-table", f"the VHD's block table is at {table_offset}, which cannot be", offset=table_offset)
    check_within("VHD block table", table_offset + entries * 4, size)
    return Layout(
        ImageFormat.VHD,
        "dynamic",
        footer.virtual_size,
        (_note("dynamic", footer), f"blocks of {block} bytes, no parent disk"),
        provisional,
    )


def _footer(sector: bytes) -> _Footer:
    if len(sector) < SECTOR:
        raise truncated("VHD footer")
    cookie, version, header_offset, creator, virtual_size, kind, _ = unpacked(_FOOTER, sector, "VHD footer")
    if cookie != COOKIE or version != _VERSION:
        raise refuse("vhd-footer", "the VHD has no footer of version 1.0: it was cut off, or is no VHD")
    if not _checksum_holds(sector[:SECTOR], _FOOTER_CHECKSUM_AT):
        raise refuse("vhd-checksum", "the checksum of the VHD's footer is wrong")
    if kind == _DIFFERENCING:
        raise refuse("vhd-parent", "the VHD is a differencing disk: send it merged with its parents")
    if kind not in (_FIXED, _DYNAMIC):
        raise refuse("vhd-type", f"disk type {kind} of the VHD is neither fixed nor dynamic", disk_type=kind)
    if virtual_size % SECTOR or virtual_size > _LARGEST_DISK:
        raise refuse(
            "vhd-size", f"the VHD says that it has {virtual_size} bytes, which cannot be", virtual_size=virtual_size
        )
    return _Footer(header_offset, creator, virtual_size, kind)


def _checksum_holds(data: bytes, at: int) -> bool:
    """The one's complement of the sum of all bytes but those of the checksum itself."""
    stored = int.from_bytes(data[at : at + 4], "big")
    return stored == ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF


def _note(kind: str, footer: _Footer) -> str:
    creator = "".join(chr(code) if 32 < code < 127 else "." for code in footer.creator)
    return f"{kind} VHD by creator {creator}, size taken from current_size, checksums right"
