"""VMDK, as one file with its descriptor inside: monolithicSparse and streamOptimized.

Layout and constants: VMware's Virtual Disk Format 5.0 ("hosted sparse extent"); all numbers little-endian, in sectors of 512
bytes. A descriptor is text; its extent lines name files, and other subformats name any file of the host.
"""

from __future__ import annotations

import re
import struct

from hypervisors.images.parsing import HEAD, SECTOR, Layout, check_within, refuse, truncated, unpacked
from stores.to import ImageFormat

MAGIC = b"KDMV"

_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_VERSIONS = (1, 2, 3)
_STREAM_FLAGS = 1 << 16 | 1 << 17  # grains are compressed; markers stand between them
_AT_THE_END = 0xFFFFFFFFFFFFFFFF
_GD_OFFSET = slice(56, 64)
_LINE_ENDS = b"\n \r\n"
_DEFLATE = 1
_ENTRIES_PER_TABLE = 512
_GRAINS = tuple(1 << power for power in range(3, 12))  # 4 KiB to 1 MiB
_LARGEST_DIRECTORY = 64 * 1024 * 1024 // 4

_MARKER = struct.Struct("<QII496x")
_END_OF_STREAM, _FOOTER = 0, 3

_CREATE_TYPES = {"monolithicsparse": "monolithicSparse", "streamoptimized": "streamOptimized"}
_FIELD = re.compile(r'([a-z0-9._]+)\s*=\s*(?:"([^"]*)"|(\S*))', re.IGNORECASE)
_EXTENT = re.compile(r'(?:RW|RDONLY)\s+(\d+)\s+SPARSE\s+"([^"/\\]+)"', re.IGNORECASE | re.ASCII)
_NO_PARENT = "ffffffff"


def parse(head: bytes, tail: bytes | None, size: int | None) -> Layout:
    """Refuses every other subformat, more than one extent, a parent, and a footer that says other than the header.

    `tail` are the last `parsing.TAIL` bytes; with None (they have not arrived) a verdict that needs them is provisional.
    """
    if not head.startswith(MAGIC):
        raise refuse(
            "vmdk-subformat",
            "the VMDK is a descriptor that names other files, or of an old kind: export it as streamOptimized",
        )
    fields = unpacked(_HEADER, head, "VMDK header")
    (
        _,
        version,
        flags,
        capacity,
        grain,
        descriptor_at,
        descriptor_length,
        entries,
        _,
        directory_at,
        _,
        _,
        ends,
        method,
    ) = fields
    if version not in _VERSIONS:
        raise refuse("vmdk-version", f"version {version} of VMDK is not known here", version=version)
    if ends != _LINE_ENDS:
        raise refuse("vmdk-header", "the VMDK was damaged by a transfer as text")
    if not capacity:
        # qemu takes that for a header around a descriptor, and opens the extents that the descriptor names.
        raise refuse("vmdk-capacity", "the VMDK says that it has no sectors")
    if grain not in _GRAINS or entries != _ENTRIES_PER_TABLE:
        raise refuse("vmdk-header", f"the VMDK has grains of {grain} sectors in tables of {entries}, which cannot be")
    directory = -(-capacity // (grain * entries))
    if directory > _LARGEST_DIRECTORY:
        raise refuse("vmdk-header", f"the VMDK has a grain directory of {directory} entries, which is too many")
    subformat = _descriptor(head, descriptor_at, descriptor_length, capacity)
    compressed = subformat == "streamOptimized"
    if flags & _STREAM_FLAGS != (_STREAM_FLAGS if compressed else 0) or (compressed and method != _DEFLATE):
        raise refuse("vmdk-header", f"the VMDK calls itself {subformat}, and its header says otherwise")
    provisional = False
    if directory_at == _AT_THE_END:
        if not compressed:
            raise refuse("vmdk-footer", "the VMDK keeps its grain directory at its end, which only streams may")
        provisional = tail is None
        directory_at = _footer(head, tail, size) if tail is not None else 0
    check_within("VMDK grain directory", directory_at * SECTOR + directory * 4, size)
    return Layout(
        ImageFormat.VMDK,
        subformat,
        capacity * SECTOR,
        (
            f"VMDK version {version}, {subformat}: grains of {grain * SECTOR} bytes",
            "one extent, itself; no parent disk",
        ),
        provisional,
    )


def _descriptor(head: bytes, sector: int, sectors: int, capacity: int) -> str:
    """The subformat, from a descriptor of which every line is understood."""
    if sector != 1 or not 1 <= sectors < HEAD // SECTOR:
        raise refuse("vmdk-descriptor", "the descriptor of the VMDK is not where it must be, or too long")
    data = head[SECTOR : (1 + sectors) * SECTOR]
    if len(data) < sectors * SECTOR:
        raise truncated("VMDK descriptor")
    # Behind the first NUL, where every reader stops, qemu itself leaves a rest when it writes a shorter content id.
    text, end, _ = data.partition(b"\0")
    if not end or not text.isascii():
        raise refuse("vmdk-descriptor", "the descriptor of the VMDK is not plain text that ends in a NUL")
    # qemu looks for this word by itself, in comments and values too.
    if b"parentfilenamehint" in text.lower():
        raise refuse("vmdk-parent", "the VMDK names a parent disk: send it flattened")
    fields: dict[str, str] = {}
    extents: list[tuple[int, str]] = []
    for line in (line.strip() for line in text.decode("ascii").split("\n")):
        if not line or (line.startswith("#") and "=" not in line):
            continue
        if extent := _EXTENT.fullmatch(line):
            extents.append((int(extent[1]), extent[2]))
        elif (field := _FIELD.fullmatch(line)) and field[1].lower() not in fields:
            fields[field[1].lower()] = (field[2] or field[3] or "").lower()
        else:
            raise refuse(
                "vmdk-descriptor", "the descriptor of the VMDK has a line that is not allowed in one file alone"
            )
    subformat = _CREATE_TYPES.get(fields.get("createtype", ""))
    if subformat is None:
        raise refuse("vmdk-subformat", "the VMDK is neither monolithicSparse nor streamOptimized: convert it to one")
    if fields.get("parentcid") != _NO_PARENT:
        raise refuse("vmdk-parent", "the VMDK depends on a parent disk: send it flattened")
    if len(extents) != 1:
        raise refuse("vmdk-extents", f"the VMDK has {len(extents)} extents, it must have one", extents=len(extents))
    if extents[0][0] != capacity:
        raise refuse("vmdk-extents", "the descriptor of the VMDK gives its extent another size than its header does")
    return subformat


def _footer(head: bytes, tail: bytes, size: int | None) -> int:
    """The sector of the grain directory, from a footer that agrees with the header in all else."""
    if size is not None and size % SECTOR:
        # qemu rounds a file's size up to sectors and would look for the footer elsewhere than we do.
        raise refuse("vmdk-footer", "the VMDK ends within a sector: it was cut off or added to", size=size)
    if len(tail) < 3 * SECTOR:
        raise truncated("VMDK footer")
    marker, footer, end = (tail[start : start + SECTOR] for start in range(len(tail) - 3 * SECTOR, len(tail), SECTOR))
    if _MARKER.unpack(marker)[1:] != (0, _FOOTER) or any(end):
        raise refuse("vmdk-footer", "the VMDK stream has no footer and end marker at its end: it was cut off")
    directory = footer[_GD_OFFSET]
    if footer != head[: _GD_OFFSET.start] + directory + head[_GD_OFFSET.stop : SECTOR]:
        raise refuse("vmdk-footer", "the footer of the VMDK says other than its header")
    sector = int.from_bytes(directory, "little")
    if sector == _AT_THE_END:
        raise refuse("vmdk-footer", "the footer of the VMDK points to yet another one")
    return sector
