"""Good images pass the gate, as what they are and with the size that qemu sees, whoever wrote them and however they come."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from hypervisors.contract import ImageRefused
from hypervisors.images.gate import HEAD, GateLimits, Verdict, inspect, inspect_head
from stores.contract import GiB, KiB, MiB
from stores.to import ImageFormat
from tests.images import (
    SECTOR,
    BytesReader,
    add_vmdk_footer,
    disk_digest,
    field,
    make_image,
    make_iso,
    make_qcow2,
    make_raw,
    make_vhd_by,
    mbr_partition,
    patch,
    virtual_size,
)

LIMITS = GateLimits()
SIZE = 24 * MiB

WRITTEN_BY_QEMU = {
    "qcow2": (ImageFormat.QCOW2, "", "version 3"),
    "qcow2 version 2": (ImageFormat.QCOW2, "compat=0.10", "version 2"),
    "qcow2 with small clusters": (ImageFormat.QCOW2, "cluster_size=512", "version 3"),
    "qcow2 with large clusters": (ImageFormat.QCOW2, "cluster_size=2M", "version 3"),
    "qcow2 by zstd": (ImageFormat.QCOW2, "compression_type=zstd", "version 3"),
    "qcow2 with lazy refcounts": (ImageFormat.QCOW2, "lazy_refcounts=on", "version 3"),
    "qcow2 with small refcounts": (ImageFormat.QCOW2, "refcount_bits=1", "version 3"),
    "qcow2 with large refcounts": (ImageFormat.QCOW2, "refcount_bits=64", "version 3"),
    "qcow2 preallocated": (ImageFormat.QCOW2, "preallocation=metadata", "version 3"),
    "VHD": (ImageFormat.VHD, "", "dynamic"),
    "VHD of exact size": (ImageFormat.VHD, "force_size=on", "dynamic"),
    "VHD fixed": (ImageFormat.VHD, "subformat=fixed", "fixed"),
    "VHD fixed of exact size": (ImageFormat.VHD, "subformat=fixed,force_size=on", "fixed"),
    "VHDX": (ImageFormat.VHDX, "", "dynamic"),
    "VHDX fixed": (ImageFormat.VHDX, "subformat=fixed", "fixed"),
    "VHDX with small blocks": (ImageFormat.VHDX, "block_size=1M", "dynamic"),
    "VHDX without zero blocks": (ImageFormat.VHDX, "block_state_zero=off", "dynamic"),
    "VMDK": (ImageFormat.VMDK, "", "monolithicSparse"),
    "VMDK of version 6": (ImageFormat.VMDK, "compat6=on", "monolithicSparse"),
    "VMDK for SCSI": (ImageFormat.VMDK, "adapter_type=lsilogic,hwversion=10", "monolithicSparse"),
    "VMDK stream": (ImageFormat.VMDK, "subformat=streamOptimized", "streamOptimized"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Images of `WRITTEN_BY_QEMU`, each made once; to be read only."""
    directory = tmp_path_factory.mktemp("written")

    @cache
    def make(name: str) -> Path:
        image_format, options, _ = WRITTEN_BY_QEMU[name]
        return make_image(directory / name, image_format, SIZE, options=options)

    return make


async def judged(path: Path, declared: ImageFormat | None) -> Verdict:
    """The verdict, from reads that a server far away can bear."""
    reader = BytesReader(path.read_bytes())
    verdict = await inspect(reader, declared=declared, limits=LIMITS)
    assert len(reader.reads) <= 4
    assert sum(length for _, length in reader.reads) <= 1.5 * MiB
    assert not verdict.provisional
    return verdict


@pytest.mark.parametrize("name", WRITTEN_BY_QEMU)
async def test_what_qemu_writes(written: Callable[[str], Path], name: str) -> None:
    image_format, _, subformat = WRITTEN_BY_QEMU[name]
    path = written(name)
    for declared in (None, image_format):
        verdict = await judged(path, declared)
        assert (verdict.format, verdict.subformat) == (image_format, subformat)
        assert verdict.virtual_size == virtual_size(path, image_format)
        assert verdict.notes


@pytest.mark.parametrize("image_format", [ImageFormat.QCOW2, ImageFormat.VMDK])
async def test_compressed_clusters(tmp_path: Path, image_format: ImageFormat) -> None:
    options = "subformat=streamOptimized" if image_format is ImageFormat.VMDK else ""
    path = make_image(tmp_path / "image", image_format, SIZE, options=options, compressed=True)
    assert (await judged(path, image_format)).virtual_size == SIZE


async def test_snapshots_and_bitmaps_inside(tmp_path: Path) -> None:
    path = make_qcow2(tmp_path / "image", SIZE)
    for command in (["snapshot", "-c", "one", str(path)], ["bitmap", "--add", str(path), "changes"]):
        subprocess.run(["qemu-img", *command], check=True)
    assert (await judged(path, ImageFormat.QCOW2)).virtual_size == SIZE


async def test_a_larger_l1_table_than_is_needed(tmp_path: Path) -> None:
    """What `qemu-img resize --shrink` leaves."""
    path = make_qcow2(tmp_path / "image", 8 * GiB, extents=[])
    subprocess.run(["qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", str(path), str(SIZE)], check=True)
    assert (await judged(path, ImageFormat.QCOW2)).virtual_size == SIZE


CREATORS = [b"caml", b"qemu", b"qem2", b"tap\0", b"win ", b"vpc ", b"CTXS", b"vbox", b"d2v ", b"wa\0\0", b"\xff\0\x01 "]


@pytest.mark.parametrize("creator", CREATORS)
@pytest.mark.parametrize("fixed", [False, True], ids=["dynamic", "fixed"])
async def test_vhd_sizes_are_right_whoever_wrote_them(tmp_path: Path, creator: bytes, fixed: bool) -> None:
    size = 17 * MiB + 7 * SECTOR  # no geometry has so many sectors
    path = make_vhd_by(tmp_path / "image", creator, size, fixed=fixed)
    verdict = await judged(path, None)
    assert (verdict.format, verdict.virtual_size) == (ImageFormat.VHD, size)
    assert virtual_size(path, ImageFormat.VHD) == size


async def test_the_end_of_a_vhd_by_xapi_is_read(tmp_path: Path) -> None:
    size = 17 * MiB + 7 * SECTOR
    path = make_vhd_by(tmp_path / "image", b"caml", size)
    assert disk_digest(path, ImageFormat.VHD) == disk_digest(make_raw(tmp_path / "raw", size), ImageFormat.RAW)


async def test_a_vmdk_stream_with_a_footer(tmp_path: Path) -> None:
    path = make_image(tmp_path / "image", ImageFormat.VMDK, SIZE, options="subformat=streamOptimized")
    content = disk_digest(path, ImageFormat.VMDK)
    add_vmdk_footer(path)
    verdict = await judged(path, ImageFormat.VMDK)
    assert (verdict.subformat, verdict.virtual_size) == ("streamOptimized", virtual_size(path, ImageFormat.VMDK))
    assert disk_digest(path, ImageFormat.VMDK) == content


async def test_a_vmdk_descriptor_that_qemu_made_shorter(written: Callable[[str], Path], tmp_path: Path) -> None:
    """qemu writes a random content id without leading zeroes over the one from the creation: a rest stays behind the end."""
    data = bytearray(written("VMDK").read_bytes())
    end = data.index(b"\0", SECTOR)
    data[end - 1 : end + 1] = b"\0\n"
    path = tmp_path / "image"
    path.write_bytes(data)
    assert (await judged(path, None)).virtual_size == virtual_size(path, ImageFormat.VMDK)


@pytest.mark.parametrize("size", [1, 511, 512, 1000, HEAD - 1, HEAD, HEAD + 1, 3 * MiB])
async def test_raw_disks_are_rounded_up_to_sectors(tmp_path: Path, size: int) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\xa5" * size)
    for declared in (None, ImageFormat.RAW):
        verdict = await judged(path, declared)
        assert verdict.format is ImageFormat.RAW
        assert verdict.virtual_size == virtual_size(path, ImageFormat.RAW)


BOOT_SECTORS = {
    "MBR": [(446, mbr_partition(2048, 2048))],
    "MBR with nonsense": [(440, bytes(range(70)))],
    "GPT": [(446, b"\0\0\2\0\xee\xff\xff\xff\1\0\0\0\xff\xff\0\0"), (SECTOR, b"EFI PART\0\0\1\0")],
    "NTFS": [(0, b"\xeb\x52\x90NTFS    ")],
    "FAT": [(0, b"\xeb\x3c\x90mkfs.fat"), (16, b"\2"), (21, b"\xf8")],
}


@pytest.mark.parametrize("name", BOOT_SECTORS)
@pytest.mark.parametrize("container", [ImageFormat.RAW, ImageFormat.VHD])
async def test_what_disks_begin_with(tmp_path: Path, name: str, container: ImageFormat) -> None:
    """In a fixed VHD too: there the guest's first sector is the file's."""
    options = "subformat=fixed,force_size=on" if container is ImageFormat.VHD else ""
    path = make_image(tmp_path / "image", container, 4 * MiB, options=options)
    for offset, data in [(0, bytes(64 * KiB)), *BOOT_SECTORS[name], (510, b"\x55\xaa")]:
        patch(path, offset, data)
    for declared in (None, container):
        verdict = await judged(path, declared)
        assert (verdict.format, verdict.virtual_size) == (container, 4 * MiB)


@pytest.mark.parametrize("text", [b"a line of text\n", "Zeilen mit Umläuten\n".encode(), b"# comment\n", b"\xff\xfe"])
async def test_raw_disks_of_text(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes((text * (MiB // len(text)))[: MiB - 5])
    assert (await judged(path, None)).format is ImageFormat.RAW


@pytest.mark.parametrize("declared", [None, ImageFormat.ISO])
@pytest.mark.parametrize("hybrid", [False, True], ids=["plain", "hybrid"])
async def test_isos(tmp_path: Path, declared: ImageFormat | None, hybrid: bool) -> None:
    path = make_iso(tmp_path / "image", hybrid=hybrid)
    verdict = await judged(path, declared)
    assert (verdict.format, verdict.subformat) == (ImageFormat.ISO, "hybrid" if hybrid else "plain")
    assert verdict.virtual_size == virtual_size(path, ImageFormat.ISO)


async def test_a_hybrid_iso_is_a_raw_disk_when_declared_so(tmp_path: Path) -> None:
    path = make_iso(tmp_path / "image", hybrid=True)
    assert (await judged(path, ImageFormat.RAW)).format is ImageFormat.RAW


async def test_a_fixed_vhd_of_a_hybrid_iso_must_be_declared(tmp_path: Path) -> None:
    iso = make_iso(tmp_path / "iso", hybrid=True).read_bytes()
    path = make_image(tmp_path / "image", ImageFormat.VHD, 4 * MiB, options="subformat=fixed,force_size=on")
    patch(path, 0, iso)
    assert (await judged(path, ImageFormat.VHD)).virtual_size == 4 * MiB
    with pytest.raises(ImageRefused) as caught:
        await judged(path, None)
    assert caught.value.details["rule"] == "polyglot"


async def test_the_last_sector_of_a_container_is_nobodys_footer(tmp_path: Path) -> None:
    """A guest that stores a VHD has its footer somewhere, and that may be the last sector of our file."""
    path = make_qcow2(tmp_path / "image", 4 * MiB)
    patch(path, path.stat().st_size, b"conectix" + bytes(SECTOR - 8))
    assert (await judged(path, None)).format is ImageFormat.QCOW2


async def test_the_limit_on_the_virtual_size_is_exact(tmp_path: Path) -> None:
    reader = BytesReader(make_qcow2(tmp_path / "image", SIZE).read_bytes())
    assert (await inspect(reader, declared=None, limits=GateLimits(virtual_size=SIZE))).virtual_size == SIZE
    with pytest.raises(ImageRefused) as caught:
        await inspect(reader, declared=None, limits=GateLimits(virtual_size=SIZE - 1))
    assert caught.value.details == {"rule": "virtual-size", "virtual_size": SIZE, "limit": SIZE - 1}


async def test_a_large_disk_in_a_small_file(tmp_path: Path) -> None:
    path = make_qcow2(tmp_path / "image", 2048 * GiB, extents=[])
    assert (await judged(path, None)).virtual_size == 2048 * GiB


# ------------------------------------------------------------------------------------------- by the beginning


@pytest.mark.parametrize("name", WRITTEN_BY_QEMU)
@pytest.mark.parametrize("length", [HEAD, 1 * MiB, 5 * MiB])
@pytest.mark.parametrize("size_known", [True, False])
async def test_a_beginning_says_nothing_that_the_whole_denies(
    written: Callable[[str], Path], name: str, length: int, size_known: bool
) -> None:
    image_format = WRITTEN_BY_QEMU[name][0]
    path = written(name)
    data = path.read_bytes()
    total = len(data) if size_known else None
    final = await judged(path, image_format)
    early = inspect_head(data[:length], total_size=total, declared=image_format, limits=LIMITS)
    assert early.format is final.format
    if early.provisional:
        assert early.virtual_size in (None, final.virtual_size)
    else:
        assert (early.subformat, early.virtual_size) == (final.subformat, final.virtual_size)


async def test_which_beginnings_are_enough(written: Callable[[str], Path]) -> None:
    enough = set()
    for name in WRITTEN_BY_QEMU:
        head, size = field(written(name), 0, 4 * MiB), written(name).stat().st_size
        assert inspect_head(head, total_size=None, declared=None, limits=LIMITS).provisional
        if not inspect_head(head, total_size=size + SECTOR, declared=None, limits=LIMITS).provisional:
            enough.add(name)
    assert enough == {name for name in WRITTEN_BY_QEMU if not name.startswith("VHD ") and name != "VHD"}


@pytest.mark.parametrize("size", [1, 512, 40_000])
@pytest.mark.parametrize("size_known", [True, False])
def test_a_beginning_that_is_all_there_is(size: int, size_known: bool) -> None:
    head = b"\xa5" * size
    verdict = inspect_head(head, total_size=size if size_known else None, declared=None, limits=LIMITS)
    assert (verdict.format, verdict.provisional) == (ImageFormat.RAW, False)
    assert verdict.virtual_size == -(-size // SECTOR) * SECTOR


def test_too_short_a_beginning_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="not enough"):
        inspect_head(bytes(1000), total_size=100_000, declared=None, limits=LIMITS)
