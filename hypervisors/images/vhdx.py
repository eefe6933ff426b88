"""VHDX, fixed and dynamic, closed cleanly and without a parent.

Layout and constants: Microsoft's [MS-VHDX]; all numbers little-endian, checksums CRC-32C. The metadata is somewhere in the
file: `metadata_region` tells where, from the first `HEADERS` bytes.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from awscrt.checksums import crc32c

from hypervisors.images.parsing import Layout, check_within, refuse, truncated, unpacked
from stores.contract import GiB, KiB, MiB
from stores.to import ImageFormat

MAGIC = b"vhdxfile"

HEADERS = 320 * KiB
"""The file type identifier, two headers and two region tables, 64 KiB each."""

_HEADERS_AT = (64 * KiB, 128 * KiB)
_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_HEADER_LENGTH = 4 * KiB
_REGIONS_AT = (192 * KiB, 256 * KiB)
_REGIONS_LENGTH = 64 * KiB
_REGION_TABLE = struct.Struct("<4sIII")
_REGION = struct.Struct("<16sQII")
_METADATA_TABLE = struct.Struct("<8s2xH20x")
_ITEM = struct.Struct("<16sIII4x")
_MOST_ENTRIES = 2047
_VERSION = 1

_BAT_REGION = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
_METADATA_REGION = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_FILE_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_VIRTUAL_DISK_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_VIRTUAL_DISK_ID = uuid.UUID("beca12ab-b2e6-4523-93ef-c309e000c746").bytes_le
_LOGICAL_SECTOR_SIZE = uuid.UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f").bytes_le
_PHYSICAL_SECTOR_SIZE = uuid.UUID("cda348c7-445d-4471-9cc9-e9885251c556").bytes_le
_PARENT_LOCATOR = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le

_REQUIRED_REGION = 1
_USER_ITEM, _REQUIRED_ITEM = 1, 4
_LEAVE_BLOCKS_ALLOCATED, _HAS_PARENT = 1, 2

_LARGEST_METADATA = 1 * MiB  # what every known writer reserves for it
_FARTHEST_METADATA = 1 * GiB
_SMALLEST_ITEM_OFFSET = 64 * KiB
_LARGEST_DISK = 64 * 1024 * GiB
_BLOCKS = tuple((1 << power) * MiB for power in range(9))
_SECTORS = (512, 4096)


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the file, in bytes."""

    offset: int
    length: int


def metadata_region(headers: bytes, size: int | None) -> Region:
    """Where the metadata is. Refuses a log that has to be replayed, and regions that are not known."""
    _check_clean(headers)
    return _regions(headers, size)[_METADATA_REGION]


def parse(headers: bytes, metadata: bytes | None, size: int | None) -> Layout:
    """`headers` are the first `HEADERS` bytes, `metadata` those of `metadata_region`.

    With `metadata` None (it has not arrived) the verdict is provisional and has no size.
    """
    _check_clean(headers)
    regions = _regions(headers, size)
    if metadata is None:
        return Layout(ImageFormat.VHDX, None, None, ("its metadata has not arrived",), provisional=True)
    items = _items(metadata, regions[_METADATA_REGION].length)
    block, flags = _value(items, _FILE_PARAMETERS, "<II", "file parameters")
    (virtual_size,) = _value(items, _VIRTUAL_DISK_SIZE, "<Q", "virtual disk size")
    (sector,) = _value(items, _LOGICAL_SECTOR_SIZE, "<I", "logical sector size")
    if flags & _HAS_PARENT or _PARENT_LOCATOR in items:
        raise refuse("vhdx-parent", "the VHDX is a differencing disk: send it merged with its parents")
    if block not in _BLOCKS or sector not in _SECTORS:
        raise refuse("vhdx-blocks", f"the VHDX has blocks of {block} and sectors of {sector} bytes, which cannot be")
    if virtual_size % sector or virtual_size > _LARGEST_DISK:
        raise refuse(
            "vhdx-size", f"the VHDX says that it has {virtual_size} bytes, which cannot be", virtual_size=virtual_size
        )
    _check_block_table(regions[_BAT_REGION].length, virtual_size, block, sector)
    subformat = "fixed" if flags & _LEAVE_BLOCKS_ALLOCATED else "dynamic"
    return Layout(
        ImageFormat.VHDX,
        subformat,
        virtual_size,
        (
            f"{subformat} VHDX: blocks of {block} bytes, sectors of {sector} bytes, checksums right",
            "no parent disk, no log to replay, no unknown regions or metadata",
        ),
    )


def _check_clean(headers: bytes) -> None:
    if len(headers) < HEADERS:
        raise truncated("VHDX headers")
    valid = []
    for offset in _HEADERS_AT:
        data = headers[offset : offset + _HEADER_LENGTH]
        signature, checksum, sequence, _, _, log, log_version, version, _, _ = _HEADER.unpack_from(data)
        if signature == b"head" and checksum == _checksum(data):
            valid.append((sequence, log, log_version, version))
    if not valid:
        raise refuse("vhdx-header", "neither of the two headers of the VHDX has a right checksum: it was damaged")
    _, log, log_version, version = max(valid)
    if version != _VERSION or log_version:
        raise refuse("vhdx-version", f"version {version} of VHDX is not known here", version=version)
    if any(log):
        raise refuse(
            "vhdx-log", "the VHDX was not closed and has a log to replay: attach and detach it once where it comes from"
        )


def _regions(headers: bytes, size: int | None) -> dict[bytes, Region]:
    """The regions, by kind. Both copies of the table must agree: not every reader takes the same."""
    first, second = (headers[offset : offset + _REGIONS_LENGTH] for offset in _REGIONS_AT)
    signature, checksum, count, _ = _REGION_TABLE.unpack_from(first)
    if signature != b"regi" or count > _MOST_ENTRIES or checksum != _checksum(first) or first != second:
        raise refuse("vhdx-regions", "the region tables of the VHDX are damaged or differ")
    regions: dict[bytes, Region] = {}
    for index in range(count):
        kind, offset, length, flags = _REGION.unpack_from(first, _REGION_TABLE.size + index * _REGION.size)
        if kind not in (_BAT_REGION, _METADATA_REGION):
            if flags & _REQUIRED_REGION:
                raise refuse("vhdx-regions", "the VHDX needs a region that is not known here")
            continue
        if kind in regions or offset % MiB or offset < MiB or length % MiB or not length:
            raise refuse("vhdx-regions", "the VHDX has a region twice, or where none can be")
        check_within("VHDX regions", offset + length, size)
        regions[kind] = Region(offset, length)
    if len(regions) != 2:
        raise refuse("vhdx-regions", "the VHDX lacks its block table or its metadata")
    metadata = regions[_METADATA_REGION]
    if metadata.length > _LARGEST_METADATA or metadata.offset > _FARTHEST_METADATA:
        raise refuse(
            "vhdx-metadata",
            f"the VHDX has {metadata.length} bytes of metadata at {metadata.offset}: too many or too far",
        )
    return regions


def _items(metadata: bytes, length: int) -> dict[bytes, bytes]:
    """The metadata items, by kind."""
    if len(metadata) < length:
        raise truncated("VHDX metadata")
    signature, count = unpacked(_METADATA_TABLE, metadata, "VHDX metadata")
    if signature != b"metadata" or count > _MOST_ENTRIES:
        raise refuse("vhdx-metadata", "the metadata table of the VHDX is damaged")
    known = {
        _FILE_PARAMETERS,
        _VIRTUAL_DISK_SIZE,
        _VIRTUAL_DISK_ID,
        _LOGICAL_SECTOR_SIZE,
        _PHYSICAL_SECTOR_SIZE,
        _PARENT_LOCATOR,
    }
    items: dict[bytes, bytes] = {}
    for index in range(count):
        kind, offset, size, flags = _ITEM.unpack_from(metadata, _METADATA_TABLE.size + index * _ITEM.size)
        if kind not in known or flags & _USER_ITEM:
            if flags & _REQUIRED_ITEM:
                raise refuse("vhdx-metadata", "the VHDX needs metadata that is not known here")
            continue
        if kind in items or offset < _SMALLEST_ITEM_OFFSET or offset + size > len(metadata):
            raise refuse("vhdx-metadata", "the VHDX has a metadata item twice, or outside of its metadata")
        items[kind] = metadata[offset : offset + size]
    return items


def _value(items: dict[bytes, bytes], kind: bytes, layout: str, what: str) -> tuple[int, ...]:
    data = items.get(kind, b"")
    if len(data) != struct.calcsize(layout):
        raise refuse("vhdx-metadata", f"the VHDX lacks its {what}")
    return struct.unpack(layout, data)


def _check_block_table(length: int, virtual_size: int, block: int, sector: int) -> None:
    """One entry of 8 bytes for each block, and one of a sector bitmap between any two chunks of 2^23 sectors."""
    blocks = -(-virtual_size // block)
    chunk = (1 << 23) * sector // block
    if length < (blocks + max(blocks - 1, 0) // chunk) * 8:
        raise refuse("vhdx-table", f"the block table of the VHDX has {length} bytes, too few for {blocks} blocks")


def _checksum(data: bytes) -> int:
    """Of a structure that carries its own checksum in bytes 4 to 7, counted as zeroes."""
    return int(crc32c(data[:4] + bytes(4) + data[8:]))
