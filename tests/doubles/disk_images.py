"""One small disk in every format, made by qemu's and the archivers' own tools, plus images that mean harm."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import random
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from backports import zstd

from stores.contract import KiB, MiB
from stores.to import ImageFormat

VIRTUAL_SIZE = 12 * MiB

DRIVERS = {
    ImageFormat.QCOW2: "qcow2",
    ImageFormat.RAW: "raw",
    ImageFormat.ISO: "raw",
    ImageFormat.VHD: "vpc",
    ImageFormat.VHDX: "vhdx",
    ImageFormat.VMDK: "vmdk",
}

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gz": partial(gzip.compress, compresslevel=1),
    "bz2": partial(bz2.compress, compresslevel=1),
    "xz": partial(lzma.compress, preset=0),
    "zst": zstd.compress,
}

_FORMATS: dict[str, tuple[ImageFormat, str, str]] = {
    "qcow2": (ImageFormat.QCOW2, "qcow2", ""),
    "vhd": (ImageFormat.VHD, "vpc", "subformat=dynamic,force_size=on"),
    "vhd-fixed": (ImageFormat.VHD, "vpc", "subformat=fixed,force_size=on"),
    "vhdx": (ImageFormat.VHDX, "vhdx", ""),
    "vmdk": (ImageFormat.VMDK, "vmdk", "subformat=monolithicSparse"),
    "vmdk-stream": (ImageFormat.VMDK, "vmdk", "subformat=streamOptimized"),
}


@dataclass(frozen=True)
class DiskImage:
    path: Path
    format: ImageFormat
    content: str  # SHA-256 of what a guest sees
    virtual_size: int


DiskImages = dict[str, DiskImage]


def make_disk_images(directory: Path) -> DiskImages:
    """By name: raw, iso and those of `_FORMATS`. All but the ISO hold the same disk."""
    raw = directory / "disk.raw"
    raw.write_bytes(disk_content())
    found = {
        "raw": DiskImage(raw, ImageFormat.RAW, file_hash(raw), VIRTUAL_SIZE),
        "iso": _iso(directory),
    }
    for name, (image_format, driver, options) in _FORMATS.items():
        path = directory / f"disk.{name}"
        arguments = ["-o", options] if options else []
        qemu_img("convert", "-f", "raw", "-O", driver, *arguments, str(raw), str(path))
        found[name] = DiskImage(path, image_format, found["raw"].content, VIRTUAL_SIZE)
    return found


def disk_content(seed: int = 1) -> bytes:
    """Data and holes in turn, also at odd places, with something in the last sector."""
    rng = random.Random(seed)
    disk = bytearray(VIRTUAL_SIZE)
    for at, length in ((0, 512), (64 * KiB, 1 * MiB), (3 * MiB + 512, 2 * MiB), (9 * MiB, 100 * KiB)):
        disk[at : at + length] = rng.randbytes(length)
    disk[-512:] = rng.randbytes(512)
    return bytes(disk)


def _iso(directory: Path) -> DiskImage:
    tree = directory / "iso"
    tree.mkdir()
    (tree / "data").write_bytes(random.Random(2).randbytes(500 * KiB))
    path = directory / "disc.iso"
    subprocess.run(["genisoimage", "-quiet", "-r", "-o", str(path), str(tree)], check=True)
    return DiskImage(path, ImageFormat.ISO, file_hash(path), path.stat().st_size)


# ----------------------------------------------------------------------------------------------- looking at images


def qemu_img(*argv: str) -> bytes:
    done = subprocess.run(["qemu-img", *argv], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_of(path: Path, image_format: ImageFormat, *, size: int | None = None) -> str:
    """SHA-256 of what a guest sees, parents included; with `size`, grown to that."""
    node = f"driver={DRIVERS[image_format]},file.driver=file,file.filename={path}"
    if image_format is ImageFormat.VHD:
        node += ",force_size_calc=current_size"
    with tempfile.NamedTemporaryFile(prefix="sa-content-") as raw:
        qemu_img("convert", "-O", "raw", "--image-opts", node, raw.name)
        if size is not None:
            os.truncate(raw.name, size)
        return file_hash(Path(raw.name))


def virtual_size(path: Path, image_format: ImageFormat) -> int:
    return int(json.loads(qemu_img("info", "-f", DRIVERS[image_format], "--output=json", str(path)))["virtual-size"])


# --------------------------------------------------------------------------------------------------- hostile ones


def qcow2_with_backing_file(path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", str(path), "64M")


def qcow2_with_data_file(path: Path) -> None:
    data = path.with_suffix(".data")
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", str(path), "64M")
    data.unlink()


def qcow2_with_unknown_bits(path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", str(path), "64M")
    _patch(path, 72, (1 << 40).to_bytes(8, "big"))  # incompatible_features, docs/interop/qcow2.txt


def qcow2_of_giant_size(path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", str(path), "64M")
    _patch(path, 24, (1 << 62).to_bytes(8, "big"))  # size


def vmdk_of_host_file(path: Path) -> None:
    """A descriptor whose extent is a file of the host."""
    path.write_text(
        '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n\n'
        '# Extent description\nRW 131072 FLAT "/etc/passwd" 0\n\n# The Disk Data Base\nddb.adapterType = "ide"\n'
    )


def _patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


HOSTILE: dict[str, tuple[Callable[[Path], None], ImageFormat]] = {
    "backing file": (qcow2_with_backing_file, ImageFormat.QCOW2),
    "data file": (qcow2_with_data_file, ImageFormat.QCOW2),
    "unknown bits": (qcow2_with_unknown_bits, ImageFormat.QCOW2),
    "giant size": (qcow2_of_giant_size, ImageFormat.QCOW2),
    "host file": (vmdk_of_host_file, ImageFormat.VMDK),
}
