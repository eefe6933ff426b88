"""qcow2, versions 2 and 3, as a file that stands alone.

Layout and constants: QEMU's docs/interop/qcow2.txt; all numbers big-endian. The bounds are those with which QEMU itself
opens an image (block/qcow2.h), or narrower. What the tables point at is not followed here: `qemu-img check` does that after
the copy. Compressed clusters, which may share their bytes, can expand any file to its virtual size, and never further: the
limit on the virtual size bounds them, and whoever converts reserves that much.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hypervisors.images.parsing import HEAD, SECTOR, Layout, check_within, refuse, truncated, unpacked
from stores.contract import MiB
from stores.to import ImageFormat

MAGIC = b"QFI\xfb"

HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
HEADER_3 = struct.Struct(">QQQII")  # follows in version 3
_COMPRESSION_TYPE_AT = 104  # a byte, present when the header is longer than this
_EXTENSION = struct.Struct(">II")

CLUSTER_BITS = range(9, 22)  # 512 bytes to 2 MiB
LARGEST_L1 = 32 * MiB
LARGEST_REFCOUNT_TABLE = 8 * MiB
_LARGEST_REFCOUNT_ORDER = 6
_MOST_SNAPSHOTS = 1024  # QEMU stops at 65536 only; each has an L1 table of its own

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION_TYPE, _EXTENDED_L2 = (1 << bit for bit in range(5))
_REFUSED_FEATURES = (
    (_DIRTY, "qcow2-dirty", "was not closed: repair it first (qemu-img check -r all)"),
    (_CORRUPT, "qcow2-corrupt", "is marked corrupt: repair it first (qemu-img check -r all)"),
    (_DATA_FILE, "qcow2-data-file", "keeps its data in another file: convert it into one"),
    # oslo.utils does not know this one, and a second opinion is worth more than a feature that hardly any template has.
    (_EXTENDED_L2, "qcow2-extended-l2", "has extended L2 entries: convert it with -o extended_l2=off"),
)

_END = 0
_DATA_FILE_NAME = 0x44415441
_ENCRYPTION_HEADER = 0x0537BE77

_COMPRESSIONS = {0: "zlib", 1: "zstd"}


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of the header, with version 3's values where version 2 has none."""

    version: int
    backing_offset: int
    backing_length: int
    cluster_bits: int
    virtual_size: int
    encryption: int
    l1_entries: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    snapshots_offset: int
    incompatible: int = 0
    refcount_order: int = 4
    length: int = HEADER.size
    compression: int = 0

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits


def parse(head: bytes, size: int | None) -> Layout:
    """Refuses whatever makes a qcow2 file refer to another one, and what these versions of the format do not define."""
    header = read_header(head)
    _check_references(header)
    _check_features(header)
    _check_extensions(head, header)
    _check_sizes(header, size)
    return Layout(
        ImageFormat.QCOW2,
        f"version {header.version}",
        header.virtual_size,
        notes=(
            f"qcow2 version {header.version}: clusters of {header.cluster} bytes,"
            f" compression {_COMPRESSIONS[header.compression]}, {header.snapshots} internal snapshots",
            "no backing file, no data file, no encryption, no unknown features",
        ),
    )


def read_header(head: bytes) -> Header:
    """The fields of the header, refused only where they cannot be read. Whether they make sense is for `parse` to say."""
    _, version, *fields = unpacked(HEADER, head, "qcow2 header")
    cluster_bits = fields[2]
    if cluster_bits not in CLUSTER_BITS:
        raise refuse(
            "qcow2-clusters", f"the qcow2 image has clusters of 2^{cluster_bits} bytes", cluster_bits=cluster_bits
        )
    if version not in (2, 3):
        raise refuse("qcow2-version", f"qcow2 version {version} is not 2 or 3: convert the image", version=version)
    if version == 2:
        return Header(version, *fields)
    incompatible, _, _, refcount_order, length = unpacked(HEADER_3, head[HEADER.size :], "qcow2 header")
    if length % 8 or not _COMPRESSION_TYPE_AT <= length <= min(1 << cluster_bits, HEAD):
        raise refuse("qcow2-header", f"the qcow2 image has a header of {length} bytes, which cannot be", length=length)
    if length > len(head):
        raise truncated("qcow2 header")
    compression = head[_COMPRESSION_TYPE_AT] if length > _COMPRESSION_TYPE_AT else 0
    return replace(
        Header(version, *fields),
        incompatible=incompatible,
        refcount_order=refcount_order,
        length=length,
        compression=compression,
    )


def _check_references(header: Header) -> None:
    if header.backing_offset or header.backing_length:
        raise refuse(
            "qcow2-backing-file", "the qcow2 image depends on a backing file: send it flattened (qemu-img convert)"
        )
    if header.encryption:
        raise refuse("qcow2-encrypted", "the qcow2 image is encrypted: send it decrypted", method=header.encryption)


def _check_features(header: Header) -> None:
    for bit, rule, why in _REFUSED_FEATURES:
        if header.incompatible & bit:
            raise refuse(rule, f"the qcow2 image {why}")
    if unknown := header.incompatible & ~_COMPRESSION_TYPE:
        raise refuse(
            "qcow2-features", f"the qcow2 image needs features that are not known here: bits {unknown:#x}", bits=unknown
        )
    if header.compression not in _COMPRESSIONS:
        raise refuse(
            "qcow2-compression",
            f"compression type {header.compression} of the qcow2 image is neither zlib nor zstd",
            compression=header.compression,
        )
    if bool(header.compression) != bool(header.incompatible & _COMPRESSION_TYPE):
        raise refuse("qcow2-compression", "the qcow2 image contradicts itself about its compression type")


def _check_extensions(head: bytes, header: Header) -> None:
    for kind in _extensions(head, header):
        if kind == _DATA_FILE_NAME:
            raise refuse("qcow2-data-file", "the qcow2 image names another file for its data: convert it into one")
        if kind == _ENCRYPTION_HEADER:
            raise refuse("qcow2-encrypted", "the qcow2 image has an encryption header: send it decrypted")


def _extensions(head: bytes, header: Header) -> Iterator[int]:
    """The types of the header extensions: those that are not known are to be ignored, says the format."""
    area = head[: header.cluster]
    position = header.length
    while position + _EXTENSION.size <= len(area):
        kind, length = _EXTENSION.unpack_from(area, position)
        if kind == _END:
            return
        position += _EXTENSION.size + length + -length % 8
        if position > len(area):
            raise refuse("qcow2-extensions", "the header extensions of the qcow2 image do not end where they must")
        yield kind


def _check_sizes(header: Header, size: int | None) -> None:
    if header.virtual_size % SECTOR:
        raise refuse(
            "qcow2-size", "the virtual size of the qcow2 image is not whole sectors", virtual_size=header.virtual_size
        )
    mapped_by_l1_entry = header.cluster * (header.cluster // 8)
    needed = -(-header.virtual_size // mapped_by_l1_entry)
    if not needed <= header.l1_entries <= LARGEST_L1 // 8:
        raise refuse(
            "qcow2-l1",
            f"the qcow2 image has {header.l1_entries} L1 entries: {needed} are needed for its size,"
            f" {LARGEST_L1 // 8} are the most",
            l1_entries=header.l1_entries,
            needed=needed,
        )
    refcount_length = header.refcount_clusters * header.cluster
    if not 0 < refcount_length <= LARGEST_REFCOUNT_TABLE or header.refcount_order > _LARGEST_REFCOUNT_ORDER:
        raise refuse(
            "qcow2-refcounts",
            f"the qcow2 image has {refcount_length} bytes of reference count table, of order {header.refcount_order}",
            length=refcount_length,
            order=header.refcount_order,
        )
    if header.snapshots > _MOST_SNAPSHOTS:
        raise refuse(
            "qcow2-snapshots",
            f"the qcow2 image has {header.snapshots} internal snapshots, {_MOST_SNAPSHOTS} are the most: flatten it",
            snapshots=header.snapshots,
        )
    tables = [
        ("L1 table", header.l1_offset, header.l1_entries * 8),
        ("reference count table", header.refcount_offset, refcount_length),
    ]
    if header.snapshots:
        tables.append(("snapshot table", header.snapshots_offset, 0))
    for what, offset, length in tables:
        if offset % header.cluster or not offset:
            raise refuse(
                "qcow2-tables", f"the {what} of the qcow2 image is at {offset}, which cannot be", offset=offset
            )
        check_within(f"qcow2 {what}", offset + length, size)
