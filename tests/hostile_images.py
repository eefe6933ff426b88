"""Images that the gate must refuse: each a good one with one thing changed, so that only that can be the reason."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from stores.contract import GiB, KiB, MiB
from stores.to import ImageFormat
from tests.images import (
    SECTOR,
    VHDX_METADATA,
    add_vmdk_footer,
    field,
    make_image,
    make_iso,
    make_qcow2,
    make_raw,
    patch,
    set_vhd_footer,
    set_vhd_header,
    set_vhdx_headers,
    set_vhdx_regions,
    set_vmdk_descriptor,
)

TiB = 1024 * GiB


@dataclass(frozen=True, slots=True)
class Hostile:
    """An image that the gate must refuse: how to make it, what it pretends to be, and by which rule it is refused."""

    format: ImageFormat
    rule: str
    make: Callable[[Path], Path]


def _qcow2(*patches: tuple[int, bytes], options: str = "") -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        make_qcow2(path, 4 * MiB, options=options)
        for offset, data in patches:
            patch(path, offset, data)
        return path

    return make


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def qcow2_extension(kind: int, data: bytes) -> bytes:
    """A header extension of version 3."""
    return u32(kind) + u32(len(data)) + data + bytes(-len(data) % 8)


def _giant(path: Path) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "128T"], check=True)
    return path


def _backing_file(path: Path) -> Path:
    subprocess.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", str(path), "4M"], check=True
    )
    return path


def _data_file(path: Path) -> Path:
    other = path.with_name(path.name + ".data")
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={other},data_file_raw=on"]
    subprocess.run([*command, str(path), "4M"], check=True)
    other.unlink()
    return path


def _encrypted(path: Path) -> Path:
    command = ["qemu-img", "create", "-q", "--object", "secret,id=s,data=secret", "-f", "qcow2"]
    subprocess.run(
        [*command, "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", str(path), "4M"], check=True
    )
    return path


def _vmdk(
    old: str = "", new: str = "", *, subformat: str = "monolithicSparse", patches: Sequence[tuple[int, bytes]] = ()
) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        make_image(path, ImageFormat.VMDK, 4 * MiB, options=f"subformat={subformat}")
        if old:
            set_vmdk_descriptor(path, old, new)
        for offset, data in patches:
            patch(path, offset, data)
        return path

    return make


def _vmdk_footer(*patches: tuple[int, bytes]) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        add_vmdk_footer(_vmdk(subformat="streamOptimized")(path))
        for offset, data in patches:
            patch(path, offset, data)
        return path

    return make


def _flat_vmdk(path: Path) -> Path:
    path.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
        'createType="monolithicFlat"\n\n# Extent description\nRW 8192 FLAT "/etc/passwd" 0\n\n'
        '# The Disk Data Base\n#DDB\nddb.virtualHWVersion = "4"\nddb.geometry.cylinders = "8"\n'
        'ddb.geometry.heads = "16"\nddb.geometry.sectors = "63"\nddb.adapterType = "ide"\n'
    )
    return path


def _vhd(change: Callable[[Path], object], *, options: str = "force_size=on") -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        change(make_image(path, ImageFormat.VHD, 4 * MiB, options=options))
        return path

    return make


def _vhdx(change: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        change(make_image(path, ImageFormat.VHDX, 4 * MiB))
        return path

    return make


def _polyglot(*signs: tuple[int, bytes]) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        make_raw(path, 1 * MiB)
        for offset, data in signs:
            patch(path, offset, data)
        return path

    return make


def _cut(path: Path, size: int) -> Path:
    with path.open("r+b") as file:
        file.truncate(size)
    return path


def _with_vhd_footer(path: Path) -> Path:
    vhd = make_image(path.with_name(path.name + ".vhd"), ImageFormat.VHD, 4 * MiB, options="subformat=fixed")
    footer = field(vhd, -SECTOR, SECTOR)
    vhd.unlink()
    return patch(path, path.stat().st_size, footer)


def _nothing(path: Path) -> Path:
    path.touch()
    return path


QCOW2 = {
    "backing file": Hostile(ImageFormat.QCOW2, "qcow2-backing-file", _backing_file),
    "backing offset only": Hostile(ImageFormat.QCOW2, "qcow2-backing-file", _qcow2((8, u64(512)))),
    "backing length only": Hostile(ImageFormat.QCOW2, "qcow2-backing-file", _qcow2((16, u32(11)))),
    "data file": Hostile(ImageFormat.QCOW2, "qcow2-data-file", _data_file),
    "data file bit only": Hostile(ImageFormat.QCOW2, "qcow2-data-file", _qcow2((72, u64(4)))),
    "data file name only": Hostile(
        ImageFormat.QCOW2, "qcow2-data-file", _qcow2((112, qcow2_extension(0x44415441, b"/etc/passwd") + bytes(8)))
    ),
    "data file name behind an unknown extension": Hostile(
        ImageFormat.QCOW2,
        "qcow2-data-file",
        _qcow2((112, qcow2_extension(0x12345678, b"odd") + qcow2_extension(0x44415441, b"json:{}") + bytes(8))),
    ),
    "data file name in version 2": Hostile(
        ImageFormat.QCOW2,
        "qcow2-data-file",
        _qcow2((72, qcow2_extension(0x44415441, b"/etc/passwd") + bytes(8)), options="compat=0.10"),
    ),
    "encrypted": Hostile(ImageFormat.QCOW2, "qcow2-encrypted", _encrypted),
    "AES": Hostile(ImageFormat.QCOW2, "qcow2-encrypted", _qcow2((32, u32(1)))),
    "encryption header only": Hostile(
        ImageFormat.QCOW2, "qcow2-encrypted", _qcow2((112, qcow2_extension(0x0537BE77, bytes(16)) + bytes(8)))
    ),
    "dirty": Hostile(ImageFormat.QCOW2, "qcow2-dirty", _qcow2((72, u64(1)))),
    "corrupt": Hostile(ImageFormat.QCOW2, "qcow2-corrupt", _qcow2((72, u64(2)))),
    "extended L2": Hostile(ImageFormat.QCOW2, "qcow2-extended-l2", _qcow2(options="extended_l2=on")),
    "unknown feature": Hostile(ImageFormat.QCOW2, "qcow2-features", _qcow2((72, u64(1 << 5)))),
    "unknown feature in the last bit": Hostile(ImageFormat.QCOW2, "qcow2-features", _qcow2((72, u64(1 << 63)))),
    "unknown compression": Hostile(ImageFormat.QCOW2, "qcow2-compression", _qcow2((72, u64(8)), (104, b"\x07"))),
    "compression without its bit": Hostile(ImageFormat.QCOW2, "qcow2-compression", _qcow2((104, b"\x01"))),
    "version 1": Hostile(ImageFormat.QCOW2, "qcow2-version", _qcow2((4, u32(1)))),
    "version 4": Hostile(ImageFormat.QCOW2, "qcow2-version", _qcow2((4, u32(4)))),
    "short header": Hostile(ImageFormat.QCOW2, "qcow2-header", _qcow2((100, u32(72)))),
    "giant header": Hostile(ImageFormat.QCOW2, "qcow2-header", _qcow2((100, u32(0xFFFFFFF8)))),
    "endless extension": Hostile(
        ImageFormat.QCOW2, "qcow2-extensions", _qcow2((112, u32(0x12345678) + u32(0xFFFFFFFF)))
    ),
    "giant virtual size": Hostile(ImageFormat.QCOW2, "virtual-size", _giant),
    "virtual size beyond its L1 table": Hostile(ImageFormat.QCOW2, "qcow2-l1", _qcow2((24, u64(1 * TiB)))),
    "no virtual size": Hostile(ImageFormat.QCOW2, "virtual-size", _qcow2((24, u64(0)))),
    "half a sector": Hostile(ImageFormat.QCOW2, "qcow2-size", _qcow2((24, u64(4 * MiB + 256)))),
    "giant L1 table": Hostile(ImageFormat.QCOW2, "qcow2-l1", _qcow2((36, u32(0x7FFFFFFF)))),
    "L1 table outside": Hostile(ImageFormat.QCOW2, "truncated", _qcow2((40, u64(1 * TiB)))),
    "L1 table in the header": Hostile(ImageFormat.QCOW2, "qcow2-tables", _qcow2((40, u64(0)))),
    "L1 table between clusters": Hostile(ImageFormat.QCOW2, "qcow2-tables", _qcow2((40, u64(512)))),
    "giant reference count table": Hostile(ImageFormat.QCOW2, "qcow2-refcounts", _qcow2((56, u32(0xFFFFFFFF)))),
    "no reference count table": Hostile(ImageFormat.QCOW2, "qcow2-refcounts", _qcow2((56, u32(0)))),
    "giant reference counts": Hostile(ImageFormat.QCOW2, "qcow2-refcounts", _qcow2((96, u32(7)))),
    "giant clusters": Hostile(ImageFormat.QCOW2, "qcow2-clusters", _qcow2((20, u32(0xFFFFFFFF)))),
    "tiny clusters": Hostile(ImageFormat.QCOW2, "qcow2-clusters", _qcow2((20, u32(8)))),
    "many snapshots": Hostile(ImageFormat.QCOW2, "qcow2-snapshots", _qcow2((60, u32(65536)))),
    "snapshots outside": Hostile(ImageFormat.QCOW2, "truncated", _qcow2((60, u32(1)), (64, u64(1 * TiB)))),
    "boot sector": Hostile(ImageFormat.QCOW2, "polyglot", _qcow2((510, b"\x55\xaa"))),
    "ISO": Hostile(ImageFormat.QCOW2, "polyglot", _qcow2((32 * KiB, b"\x01CD001\x01"))),
}

VMDK = {
    "flat, naming a host path": Hostile(ImageFormat.VMDK, "vmdk-subformat", _flat_vmdk),
    "old kind": Hostile(ImageFormat.VMDK, "vmdk-subformat", _vmdk(patches=[(0, b"COWD")])),
    "sparse parts": Hostile(
        ImageFormat.VMDK, "vmdk-subformat", _vmdk('createType="monolithicSparse"', 'createType="twoGbMaxExtentSparse"')
    ),
    "no create type": Hostile(ImageFormat.VMDK, "vmdk-subformat", _vmdk('createType="monolithicSparse"\n', "")),
    "extent naming a host path": Hostile(
        ImageFormat.VMDK, "vmdk-descriptor", _vmdk('SPARSE "', 'SPARSE "/etc/shadow/')
    ),
    "extent naming a path upwards": Hostile(ImageFormat.VMDK, "vmdk-descriptor", _vmdk('SPARSE "', 'SPARSE "../')),
    "flat extent": Hostile(ImageFormat.VMDK, "vmdk-descriptor", _vmdk("SPARSE", "FLAT")),
    "two extents": Hostile(
        ImageFormat.VMDK, "vmdk-extents", _vmdk("RW 8192 SPARSE", 'RW 8192 SPARSE "other.vmdk"\nRW 8192 SPARSE')
    ),
    "no extent": Hostile(ImageFormat.VMDK, "vmdk-extents", _vmdk("RW 8192 SPARSE", "# RW 8192 SPARSE")),
    "extent of another size": Hostile(ImageFormat.VMDK, "vmdk-extents", _vmdk("RW 8192", "RW 8193")),
    "parent": Hostile(ImageFormat.VMDK, "vmdk-parent", _vmdk("parentCID=ffffffff", "parentCID=12345678")),
    "parent named": Hostile(
        ImageFormat.VMDK,
        "vmdk-parent",
        _vmdk("parentCID=ffffffff", 'parentCID=ffffffff\nparentFileNameHint="/etc/shadow"'),
    ),
    "parent named in a comment": Hostile(
        ImageFormat.VMDK, "vmdk-parent", _vmdk("# Extent", '# parentFileNameHint="/etc/shadow"\n# Extent')
    ),
    "create type twice": Hostile(
        ImageFormat.VMDK, "vmdk-descriptor", _vmdk("createType=", 'createType="vmfs"\ncreateType=')
    ),
    "field in a comment": Hostile(ImageFormat.VMDK, "vmdk-descriptor", _vmdk("# Extent", "# CID=12345678\n# Extent")),
    "unknown line": Hostile(ImageFormat.VMDK, "vmdk-descriptor", _vmdk("# Extent", "include other\n# Extent")),
    "descriptor without an end": Hostile(
        ImageFormat.VMDK, "vmdk-descriptor", _vmdk("#DDB\n", "#DDB\n" + "#" * (21 * SECTOR))
    ),
    "descriptor elsewhere": Hostile(ImageFormat.VMDK, "vmdk-descriptor", _vmdk(patches=[(28, struct.pack("<Q", 2))])),
    "giant descriptor": Hostile(ImageFormat.VMDK, "vmdk-descriptor", _vmdk(patches=[(36, struct.pack("<Q", 1 << 40))])),
    "no capacity, so that qemu follows the descriptor": Hostile(
        ImageFormat.VMDK, "vmdk-capacity", _vmdk(patches=[(12, bytes(8))])
    ),
    "giant capacity": Hostile(ImageFormat.VMDK, "vmdk-header", _vmdk(patches=[(12, struct.pack("<Q", 1 << 60))])),
    "odd grains": Hostile(ImageFormat.VMDK, "vmdk-header", _vmdk(patches=[(20, struct.pack("<Q", 1 << 50))])),
    "odd tables": Hostile(ImageFormat.VMDK, "vmdk-header", _vmdk(patches=[(44, struct.pack("<I", 1 << 30))])),
    "unknown version": Hostile(ImageFormat.VMDK, "vmdk-version", _vmdk(patches=[(4, struct.pack("<I", 4))])),
    "transferred as text": Hostile(ImageFormat.VMDK, "vmdk-header", _vmdk(patches=[(73, b"\n \n\n")])),
    "compressed without saying so": Hostile(
        ImageFormat.VMDK, "vmdk-header", _vmdk(patches=[(8, struct.pack("<I", 3 | 1 << 16))])
    ),
    "grain directory outside": Hostile(
        ImageFormat.VMDK, "truncated", _vmdk(patches=[(56, struct.pack("<Q", 1 << 40))])
    ),
    "footer of a sparse disk": Hostile(ImageFormat.VMDK, "vmdk-footer", _vmdk(patches=[(56, b"\xff" * 8)])),
    "no footer": Hostile(
        ImageFormat.VMDK, "vmdk-footer", _vmdk(subformat="streamOptimized", patches=[(56, b"\xff" * 8)])
    ),
    "footer with another capacity": Hostile(
        ImageFormat.VMDK, "vmdk-footer", _vmdk_footer((-2 * SECTOR + 12, struct.pack("<Q", 1 << 30)))
    ),
    "footer with another descriptor": Hostile(
        ImageFormat.VMDK, "vmdk-footer", _vmdk_footer((-2 * SECTOR + 28, struct.pack("<Q", 40)))
    ),
    "footer pointing to a footer": Hostile(
        ImageFormat.VMDK, "vmdk-footer", _vmdk_footer((-2 * SECTOR + 56, b"\xff" * 8))
    ),
    "no end marker": Hostile(ImageFormat.VMDK, "vmdk-footer", _vmdk_footer((-1, b"\x01"))),
}

VHD = {
    "differencing": Hostile(ImageFormat.VHD, "vhd-parent", _vhd(lambda path: set_vhd_footer(path, 60, u32(4)))),
    "parent named": Hostile(
        ImageFormat.VHD, "vhd-parent", _vhd(lambda path: set_vhd_header(path, 64, "base.vhd".encode("utf-16-be")))
    ),
    "parent locator": Hostile(
        ImageFormat.VHD, "vhd-parent", _vhd(lambda path: set_vhd_header(path, 576, b"W2ku" + u32(1) + u32(8)))
    ),
    "parent id": Hostile(ImageFormat.VHD, "vhd-parent", _vhd(lambda path: set_vhd_header(path, 40, b"\x01" * 16))),
    "unknown type": Hostile(ImageFormat.VHD, "vhd-type", _vhd(lambda path: set_vhd_footer(path, 60, u32(6)))),
    "fixed and dynamic at once": Hostile(
        ImageFormat.VHD, "vhd-footer", _vhd(lambda path: set_vhd_footer(path, 60, u32(2)))
    ),
    "footers that differ": Hostile(ImageFormat.VHD, "vhd-footer", _vhd(lambda path: patch(path, 48, u64(8 * MiB)))),
    "wrong footer checksum": Hostile(
        ImageFormat.VHD,
        "vhd-checksum",
        _vhd(lambda path: [patch(path, place, u64(8 * MiB)) for place in (48, -SECTOR + 48)]),
    ),
    "wrong header checksum": Hostile(
        ImageFormat.VHD, "vhd-checksum", _vhd(lambda path: patch(path, 512 + 28, u32(4096)))
    ),
    "unknown version": Hostile(
        ImageFormat.VHD, "vhd-footer", _vhd(lambda path: set_vhd_footer(path, 12, u32(0x20000)))
    ),
    "unknown header version": Hostile(
        ImageFormat.VHD, "vhd-header", _vhd(lambda path: set_vhd_header(path, 24, u32(0x20000)))
    ),
    "header elsewhere": Hostile(
        ImageFormat.VHD, "vhd-header", _vhd(lambda path: set_vhd_footer(path, 16, u64(1 << 40)))
    ),
    "giant size": Hostile(ImageFormat.VHD, "vhd-size", _vhd(lambda path: set_vhd_footer(path, 48, u64(1 << 60)))),
    "no size": Hostile(ImageFormat.VHD, "virtual-size", _vhd(lambda path: set_vhd_footer(path, 48, u64(0)))),
    "size beyond its table": Hostile(
        ImageFormat.VHD, "vhd-table", _vhd(lambda path: set_vhd_footer(path, 48, u64(1 * TiB)))
    ),
    "giant table": Hostile(ImageFormat.VHD, "vhd-table", _vhd(lambda path: set_vhd_header(path, 28, u32(0xFFFFFFFF)))),
    "table outside": Hostile(ImageFormat.VHD, "truncated", _vhd(lambda path: set_vhd_header(path, 16, u64(1 << 40)))),
    "odd blocks": Hostile(ImageFormat.VHD, "vhd-blocks", _vhd(lambda path: set_vhd_header(path, 32, u32(3 * MiB)))),
    "fixed with something behind its footer": Hostile(
        ImageFormat.VHD,
        "vhd-footer",
        _vhd(lambda path: patch(path, path.stat().st_size, bytes(SECTOR)), options="subformat=fixed,force_size=on"),
    ),
    "fixed and shorter than it says": Hostile(
        ImageFormat.VHD,
        "vhd-size",
        _vhd(lambda path: set_vhd_footer(path, 48, u64(8 * MiB)), options="subformat=fixed,force_size=on"),
    ),
    "not whole sectors": Hostile(
        ImageFormat.VHD, "vhd-size", _vhd(lambda path: patch(path, path.stat().st_size, b"\0"))
    ),
}

VHDX = {
    "parent": Hostile(
        ImageFormat.VHDX, "vhdx-parent", _vhdx(lambda path: patch(path, VHDX_METADATA + 64 * KiB + 4, b"\x02"))
    ),
    "log to replay": Hostile(
        ImageFormat.VHDX, "vhdx-log", _vhdx(lambda path: set_vhdx_headers(path, 48, b"\x01" * 16))
    ),
    "unknown version": Hostile(
        ImageFormat.VHDX, "vhdx-version", _vhdx(lambda path: set_vhdx_headers(path, 66, b"\x02\0"))
    ),
    "no valid header": Hostile(
        ImageFormat.VHDX,
        "vhdx-header",
        _vhdx(lambda path: [patch(path, place, b"\xff") for place in (64 * KiB + 100, 128 * KiB + 100)]),
    ),
    "wrong region checksum": Hostile(
        ImageFormat.VHDX, "vhdx-regions", _vhdx(lambda path: patch(path, 192 * KiB + 100, b"\xff"))
    ),
    "region tables that differ": Hostile(
        ImageFormat.VHDX, "vhdx-regions", _vhdx(lambda path: patch(path, 256 * KiB + 100, b"\xff"))
    ),
    "unknown required region": Hostile(
        ImageFormat.VHDX,
        "vhdx-regions",
        _vhdx(
            lambda path: set_vhdx_regions(path, 8, b"\x03\0\0\0" + bytes(4 + 64) + b"\x07" * 16 + bytes(12) + b"\x01")
        ),
    ),
    "region twice": Hostile(
        ImageFormat.VHDX,
        "vhdx-regions",
        _vhdx(lambda path: set_vhdx_regions(path, 48, field(path, 192 * KiB + 16, 16))),
    ),
    "regions over one another": Hostile(
        ImageFormat.VHDX,
        "vhdx-regions",
        _vhdx(lambda path: set_vhdx_regions(path, 64, field(path, 192 * KiB + 32, 8))),
    ),
    "headers that differ": Hostile(
        ImageFormat.VHDX,
        "vhdx-header",
        _vhdx(lambda path: set_vhdx_headers(set_vhdx_headers(path, 8, bytes(8)), 32, b"other", places=[64 * KiB])),
    ),
    "metadata outside": Hostile(
        ImageFormat.VHDX,
        "truncated",
        _vhdx(lambda path: set_vhdx_regions(path, 64, struct.pack("<Q", 1 * TiB))),
    ),
    "giant metadata": Hostile(
        ImageFormat.VHDX,
        "vhdx-metadata",
        _vhdx(lambda path: set_vhdx_regions(path, 72, struct.pack("<I", 2 * MiB))),
    ),
    "metadata twice": Hostile(
        ImageFormat.VHDX,
        "vhdx-metadata",
        _vhdx(lambda path: patch(path, VHDX_METADATA + 64, field(path, VHDX_METADATA + 32, 16))),
    ),
    "unknown required metadata": Hostile(
        ImageFormat.VHDX, "vhdx-metadata", _vhdx(lambda path: patch(path, VHDX_METADATA + 64, b"\x07" * 16))
    ),
    "no metadata table": Hostile(
        ImageFormat.VHDX, "vhdx-metadata", _vhdx(lambda path: patch(path, VHDX_METADATA, b"nonsense"))
    ),
    "metadata item outside": Hostile(
        ImageFormat.VHDX, "vhdx-metadata", _vhdx(lambda path: patch(path, VHDX_METADATA + 48, b"\xff" * 4))
    ),
    "giant size": Hostile(
        ImageFormat.VHDX,
        "vhdx-size",
        _vhdx(lambda path: patch(path, VHDX_METADATA + 64 * KiB + 8, struct.pack("<Q", 1 << 62))),
    ),
    "size beyond its table": Hostile(
        ImageFormat.VHDX,
        "vhdx-table",
        _vhdx(lambda path: patch(path, VHDX_METADATA + 64 * KiB + 8, struct.pack("<Q", 16 * TiB))),
    ),
    "no size": Hostile(
        ImageFormat.VHDX, "virtual-size", _vhdx(lambda path: patch(path, VHDX_METADATA + 64 * KiB + 8, bytes(8)))
    ),
    "odd blocks": Hostile(
        ImageFormat.VHDX,
        "vhdx-blocks",
        _vhdx(lambda path: patch(path, VHDX_METADATA + 64 * KiB, struct.pack("<I", 3 * MiB))),
    ),
}

ISO = {
    "shorter than its volume": Hostile(ImageFormat.ISO, "truncated", lambda path: _cut(make_iso(path), 200 * KiB)),
    "sizes that differ": Hostile(
        ImageFormat.ISO, "iso-descriptor", lambda path: patch(make_iso(path), 32 * KiB + 84, b"\x07")
    ),
    "no primary descriptor": Hostile(
        ImageFormat.ISO, "iso-descriptor", lambda path: patch(make_iso(path), 32 * KiB, b"\xff")
    ),
    "qcow2 in its system area": Hostile(
        ImageFormat.ISO, "polyglot", lambda path: patch(make_iso(path), 0, b"QFI\xfb\0\0\0\x03")
    ),
    "VHD footer at its end": Hostile(ImageFormat.ISO, "polyglot", lambda path: _with_vhd_footer(make_iso(path))),
}

RAW = {
    "qcow2": Hostile(ImageFormat.RAW, "declared-mismatch", _qcow2()),
    "VMDK": Hostile(ImageFormat.RAW, "declared-mismatch", _vmdk()),
    "VMDK descriptor": Hostile(ImageFormat.RAW, "declared-mismatch", _flat_vmdk),
    "VHD": Hostile(ImageFormat.RAW, "declared-mismatch", _vhd(lambda path: path)),
    "fixed VHD": Hostile(ImageFormat.RAW, "declared-mismatch", _vhd(lambda path: path, options="subformat=fixed")),
    "VHDX": Hostile(ImageFormat.RAW, "declared-mismatch", _vhdx(lambda path: path)),
    "plain ISO": Hostile(ImageFormat.RAW, "declared-mismatch", make_iso),
    "VDI": Hostile(ImageFormat.RAW, "format", _polyglot((0x40, b"\x7f\x10\xda\xbe"))),
    "QED": Hostile(ImageFormat.RAW, "format", _polyglot((0, b"QED\0"))),
    "LUKS": Hostile(ImageFormat.RAW, "format", _polyglot((0, b"LUKS\xba\xbe"))),
    "DMG": Hostile(ImageFormat.RAW, "format", _polyglot((MiB - SECTOR, b"koly"))),
    "tar": Hostile(ImageFormat.RAW, "format", _polyglot((257, b"ustar"))),
    "gzip": Hostile(ImageFormat.RAW, "compressed", _polyglot((0, b"\x1f\x8b\x08"))),
    "qcow2 and VDI": Hostile(ImageFormat.RAW, "polyglot", _polyglot((0, b"QFI\xfb"), (0x40, b"\x7f\x10\xda\xbe"))),
    "nothing": Hostile(ImageFormat.RAW, "empty", _nothing),
}

HOSTILE: Mapping[str, Hostile] = MappingProxyType(
    {
        f"{name}: {what}": hostile
        for name, images in (
            ("qcow2", QCOW2),
            ("VMDK", VMDK),
            ("VHD", VHD),
            ("VHDX", VHDX),
            ("ISO", ISO),
            ("raw", RAW),
        )
        for what, hostile in images.items()
    }
)
