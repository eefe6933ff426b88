"""VHDX: fixed, dynamic and differencing. What the gate lets pass was closed cleanly and has no parent.

Layout and constants: Microsoft's [MS-VHDX]; all numbers little-endian, checksums CRC-32C. The metadata is somewhere in the
file: `metadata_region` tells where, from the first `HEADERS` bytes. The block table: `hypervisors.images.vhdx_table`.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from typing import Any

from awscrt.checksums import crc32c

from hypervisors.images import vhdx_table
from hypervisors.images.parsing import Layout, check_within, refuse, truncated, unpacked
from stores.contract import GiB, KiB, MiB
from stores.to import ImageFormat

MAGIC = b"vhdxfile"

HEADERS = 320 * KiB
"""The file type identifier, two headers and two region tables, 64 KiB each."""

HEADERS_AT = (64 * KiB, 128 * KiB)
HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
"""Signature, checksum, sequence number, ids of the last opening for writing, of the content and of the log, version of the
log, version, length and place of the log."""
HEADER_LENGTH = 4 * KiB
HEADER_SIGNATURE = b"head"
REGIONS_AT = (192 * KiB, 256 * KiB)
REGIONS_LENGTH = 64 * KiB
REGIONS_SIGNATURE = b"regi"
REGION_TABLE = struct.Struct("<4sIII")
REGION = struct.Struct("<16sQII")
METADATA_SIGNATURE = b"metadata"
METADATA_TABLE = struct.Struct("<8s2xH20x")
ITEM = struct.Struct("<16sIII4x")
ITEMS_AT = 64 * KiB
"""The least place of an item in the metadata."""
VERSION = 1

TABLE_REGION = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
METADATA_REGION = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
FILE_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
VIRTUAL_DISK_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
VIRTUAL_DISK_ID = uuid.UUID("beca12ab-b2e6-4523-93ef-c309e000c746").bytes_le
LOGICAL_SECTOR_SIZE = uuid.UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f").bytes_le
PHYSICAL_SECTOR_SIZE = uuid.UUID("cda348c7-445d-4471-9cc9-e9885251c556").bytes_le
PARENT_LOCATOR = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le

REQUIRED_REGION = 1
VIRTUAL_DISK_ITEM, REQUIRED_ITEM = 2, 4
HAS_PARENT = 2

LARGEST_DISK = 64 * 1024 * GiB
BLOCKS = tuple((1 << power) * MiB for power in range(9))
SECTORS = (512, 4096)

_MOST_ENTRIES = 2047
_USER_ITEM = 1
_LEAVE_BLOCKS_ALLOCATED = 1
_LARGEST_METADATA = 1 * MiB  # what every known writer reserves for it
_FARTHEST_METADATA = 1 * GiB


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the file, in bytes."""

    offset: int
    length: int

    def overlaps(self, offset: int, length: int) -> bool:
        return self.offset < offset + length and offset < self.offset + self.length


@dataclass(frozen=True, slots=True)
class Header:
    """What the newer header says. `data_write_id`: of the disk's content, by which children name it as their parent's.
    `log_id` is all zeroes where there is no log to replay."""

    data_write_id: uuid.UUID
    log_id: bytes
    log: Region


@dataclass(frozen=True, slots=True)
class Regions:
    table: Region
    metadata: Region


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the metadata says of the disk. `locator`: of its parent, if there is one (`hypervisors.images.vhdx_parent`)."""

    virtual_size: int
    block: int
    sector: int
    disk_id: uuid.UUID | None
    leaves_blocks_allocated: bool
    differencing: bool
    locator: bytes | None


def metadata_region(headers: bytes, size: int | None) -> Region:
    """Where the metadata is. Refuses a log that has to be replayed, and regions that are not known."""
    _check_clean(headers)
    return read_regions(headers, size).metadata


def parse(headers: bytes, metadata: bytes | None, size: int | None) -> Layout:
    """`headers` are the first `HEADERS` bytes, `metadata` those of `metadata_region`.

    With `metadata` None (it has not arrived) the verdict is provisional and has no size.
    """
    _check_clean(headers)
    regions = read_regions(headers, size)
    if metadata is None:
        return Layout(ImageFormat.VHDX, None, None, ("its metadata has not arrived",), provisional=True)
    found = read_parameters(metadata, regions)
    if found.differencing or found.locator is not None:
        raise refuse("vhdx-parent", "the VHDX is a differencing disk: send it merged with its parents")
    subformat = "fixed" if found.leaves_blocks_allocated else "dynamic"
    return Layout(
        ImageFormat.VHDX,
        subformat,
        found.virtual_size,
        (
            f"{subformat} VHDX: blocks of {found.block} bytes, sectors of {found.sector} bytes, checksums right",
            "no parent disk, no log to replay, no unknown regions or metadata",
        ),
    )


def read_header(headers: bytes) -> Header:
    """The newer of the two that are right. `headers` are the first `HEADERS` bytes."""
    if len(headers) < HEADERS:
        raise truncated("VHDX headers")
    valid: dict[int, list[Any]] = {}
    for offset in HEADERS_AT:
        data = headers[offset : offset + HEADER_LENGTH]
        signature, sum_in_it, sequence, *rest = HEADER.unpack_from(data)
        if signature == HEADER_SIGNATURE and sum_in_it == checksum(data) and valid.setdefault(sequence, rest) != rest:
            raise refuse("vhdx-header", "the two headers of the VHDX differ, and none is the newer one")
    if not valid:
        raise refuse("vhdx-header", "neither of the two headers of the VHDX has a right checksum: it was damaged")
    _, data_write_id, log_id, log_version, version, log_length, log_offset = valid[max(valid)]
    if version != VERSION or log_version:
        raise refuse("vhdx-version", f"version {version} of VHDX is not known here", version=version)
    return Header(uuid.UUID(bytes_le=data_write_id), log_id, Region(log_offset, log_length))


def read_regions(headers: bytes, size: int | None) -> Regions:
    """Where they are. Both copies of the table must agree: not every reader takes the same."""
    first, second = (headers[offset : offset + REGIONS_LENGTH] for offset in REGIONS_AT)
    signature, sum_in_it, count, _ = REGION_TABLE.unpack_from(first)
    if signature != REGIONS_SIGNATURE or count > _MOST_ENTRIES or sum_in_it != checksum(first) or first != second:
        raise refuse("vhdx-regions", "the region tables of the VHDX are damaged or differ")
    regions: dict[bytes, Region] = {}
    for index in range(count):
        kind, offset, length, flags = REGION.unpack_from(first, REGION_TABLE.size + index * REGION.size)
        if kind not in (TABLE_REGION, METADATA_REGION):
            if flags & REQUIRED_REGION:
                raise refuse("vhdx-regions", "the VHDX needs a region that is not known here")
            continue
        overlaps = any(region.overlaps(offset, length) for region in regions.values())
        if kind in regions or overlaps or offset % MiB or offset < MiB or length % MiB or not length:
            raise refuse("vhdx-regions", "the VHDX has a region twice, over another, or where none can be")
        check_within("VHDX regions", offset + length, size)
        regions[kind] = Region(offset, length)
    if len(regions) != 2:
        raise refuse("vhdx-regions", "the VHDX lacks its block table or its metadata")
    metadata = regions[METADATA_REGION]
    if metadata.length > _LARGEST_METADATA or metadata.offset > _FARTHEST_METADATA:
        raise refuse(
            "vhdx-metadata",
            f"the VHDX has {metadata.length} bytes of metadata at {metadata.offset}: too many or too far",
        )
    return Regions(regions[TABLE_REGION], metadata)


def read_parameters(metadata: bytes, regions: Regions) -> Parameters:
    """What the metadata region says, held against the room that the block table has."""
    items = _items(metadata, regions.metadata.length)
    block, flags = _value(items, FILE_PARAMETERS, "<II", "file parameters")
    (virtual_size,) = _value(items, VIRTUAL_DISK_SIZE, "<Q", "virtual disk size")
    (sector,) = _value(items, LOGICAL_SECTOR_SIZE, "<I", "logical sector size")
    if block not in BLOCKS or sector not in SECTORS:
        raise refuse("vhdx-blocks", f"the VHDX has blocks of {block} and sectors of {sector} bytes, which cannot be")
    if virtual_size % sector or virtual_size > LARGEST_DISK:
        raise refuse(
            "vhdx-size", f"the VHDX says that it has {virtual_size} bytes, which cannot be", virtual_size=virtual_size
        )
    differencing = bool(flags & HAS_PARENT)
    shape = vhdx_table.Shape(virtual_size, block, sector)
    if regions.table.length < shape.entries(differencing=differencing) * vhdx_table.ENTRY:
        raise refuse(
            "vhdx-table",
            f"the block table of the VHDX has {regions.table.length} bytes, too few for {shape.blocks} blocks",
        )
    disk_id = items.get(VIRTUAL_DISK_ID, b"")
    return Parameters(
        virtual_size,
        block,
        sector,
        uuid.UUID(bytes_le=disk_id) if len(disk_id) == 16 else None,
        bool(flags & _LEAVE_BLOCKS_ALLOCATED),
        differencing,
        items.get(PARENT_LOCATOR),
    )


def _check_clean(headers: bytes) -> None:
    if any(read_header(headers).log_id):
        raise refuse(
            "vhdx-log", "the VHDX was not closed and has a log to replay: attach and detach it once where it comes from"
        )


def _items(metadata: bytes, length: int) -> dict[bytes, bytes]:
    """The metadata items, by kind."""
    if len(metadata) < length:
        raise truncated("VHDX metadata")
    signature, count = unpacked(METADATA_TABLE, metadata, "VHDX metadata")
    if signature != METADATA_SIGNATURE or count > _MOST_ENTRIES:
        raise refuse("vhdx-metadata", "the metadata table of the VHDX is damaged")
    known = {
        FILE_PARAMETERS,
        VIRTUAL_DISK_SIZE,
        VIRTUAL_DISK_ID,
        LOGICAL_SECTOR_SIZE,
        PHYSICAL_SECTOR_SIZE,
        PARENT_LOCATOR,
    }
    items: dict[bytes, bytes] = {}
    for index in range(count):
        kind, offset, size, flags = ITEM.unpack_from(metadata, METADATA_TABLE.size + index * ITEM.size)
        if kind not in known or flags & _USER_ITEM:
            if flags & REQUIRED_ITEM:
                raise refuse("vhdx-metadata", "the VHDX needs metadata that is not known here")
            continue
        if kind in items or offset < ITEMS_AT or offset + size > len(metadata):
            raise refuse("vhdx-metadata", "the VHDX has a metadata item twice, or outside of its metadata")
        items[kind] = metadata[offset : offset + size]
    return items


def _value(items: dict[bytes, bytes], kind: bytes, layout: str, what: str) -> tuple[int, ...]:
    data = items.get(kind, b"")
    if len(data) != struct.calcsize(layout):
        raise refuse("vhdx-metadata", f"the VHDX lacks its {what}")
    return struct.unpack(layout, data)


def checksum(data: bytes) -> int:
    """Of a structure that carries its own checksum in bytes 4 to 7, counted as zeroes."""
    return int(crc32c(data[:4] + bytes(4) + data[8:]))
