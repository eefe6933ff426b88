"""qcow2 images laid out before they are read: what is in them, and what QEMU and libqcow make of that."""

from __future__ import annotations

import io
import json
import random
import subprocess
import tempfile
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyqcow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypervisors.images import gate
from hypervisors.images.gate import GateLimits
from hypervisors.images.pieces import Data, Metadata
from hypervisors.images.qcow2_stream import Run, layout
from stores.contract import Extent, GiB, KiB, MiB
from stores.errors import TooLarge
from stores.to import ImageFormat
from tests.disk_histories import SECTOR, History, chained, expected_kinds, finished, histories, sha
from tests.images import BytesReader, opened

TiB = 1024 * GiB
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# ------------------------------------------------------------------------------------------------ what is laid out


@MANY
@given(history=histories(most=2))
def test_every_cluster_is_what_the_extents_say(history: History) -> None:
    cluster = history.cluster
    for number, (made, version) in enumerate(zip(history.layouts(), history.versions, strict=True)):
        kinds = ["-"] * -(-len(version.content) // cluster)
        host = made.data_at
        for run in made.runs():
            first, count = run.offset // cluster, -(-run.length // cluster)
            assert run.offset % cluster == 0
            assert run.offset + run.length == min((first + count) * cluster, len(version.content))
            assert set(kinds[first : first + count]) == {"-"}
            kinds[first : first + count] = ["z" if run.host is None else "d"] * count
            if run.host is not None:
                assert run.host == host  # the data is in the order of the disk, without gaps
                host += count * cluster
        assert host == made.size
        assert kinds == expected_kinds(version, cluster, delta=number > 0)


@MANY
@given(history=histories(), chance=st.randoms(use_true_random=False))
def test_any_part_is_the_same_as_in_the_whole(history: History, chance: random.Random) -> None:
    made, disk = history.layouts()[0], history.versions[0].content
    whole = finished(made, disk)
    assert len(whole) == made.size
    for _ in range(5):
        start, stop = sorted(chance.randint(0, made.size) for _ in range(2))
        assert sha(finished(made, disk, start, stop)) == sha(whole[start:stop])


def test_neighbouring_data_is_one_piece() -> None:
    extents = [Extent(at, 64 * KiB, zero=False) for at in range(0, 64 * MiB, 64 * KiB)]
    pieces = list(layout(4 * GiB, iter(extents)).pieces())
    assert [piece for piece in pieces if isinstance(piece, Data)] == [Data(0, 64 * MiB)]


def test_last_cluster_is_filled_up() -> None:
    made = layout(100 * KiB, [Extent(70 * KiB, 1, zero=False)])
    *_, data, fill = made.pieces()
    assert data == Data(64 * KiB, 36 * KiB)
    assert fill == Metadata(bytes(28 * KiB))
    assert list(made.runs()) == [Run(64 * KiB, 36 * KiB, made.data_at)]


def test_a_delta_reads_whole_what_changed_in_part() -> None:
    cluster = 64 * KiB
    zeroes = [Extent(10, cluster, zero=True), Extent(3 * cluster, 2 * cluster, zero=True)]
    made = layout(10 * cluster, [*zeroes, Extent(5 * cluster + 5, 1, zero=False)], delta=True)
    assert list(made.runs()) == [
        Run(0, 2 * cluster, made.data_at),
        Run(3 * cluster, 2 * cluster, None),
        Run(5 * cluster, cluster, made.data_at + 2 * cluster),
    ]


def test_nothing_is_left_of_zeroes_in_a_full_image() -> None:
    made = layout(TiB, [Extent(0, 1 * TiB, zero=True)])
    assert list(made.runs()) == []
    assert made.size == made.data_at == 4 * 64 * KiB


def test_tables_of_large_disks_are_made_when_their_turn_comes() -> None:
    tracemalloc.start()
    try:
        made = layout(8 * TiB, [Extent(0, 2 * TiB, zero=False)])
        assert tracemalloc.get_traced_memory()[1] < 2 * MiB
        assert made.data_at > 300 * MiB
        last_table = list(made.pieces(made.data_at - 64 * KiB, made.data_at + 1))
        assert tracemalloc.get_traced_memory()[1] < 4 * MiB
    finally:
        tracemalloc.stop()
    assert isinstance(last_table[0], Metadata)
    assert int.from_bytes(last_table[0].content[-8:], "big") == made.size - 64 * KiB | 1 << 63
    assert last_table[1:] == [Data(0, 1)]


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("cluster", [0, 1, 256, 3 * KiB, 4 * MiB])
def test_clusters_that_qemu_does_not_have(cluster: int) -> None:
    with pytest.raises(ValueError, match=f"no clusters of {cluster} bytes"):
        layout(MiB, [], cluster=cluster)


@pytest.mark.parametrize("size", [-512, 0, 511, 513])
def test_disks_are_whole_sectors(size: int) -> None:
    with pytest.raises(ValueError, match="whole sectors"):
        layout(size, [])


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(
    "places", [[(512, 512), (0, 512)], [(0, 513), (512, 512)], [(0, 4097)], [(-1, 2)], [(8192, 0)], [(5, -1)]]
)
def test_extents_are_in_order_apart_and_inside(places: list[tuple[int, int]], zero: bool) -> None:
    with pytest.raises(ValueError, match="does not lie between"):
        layout(4096, [Extent(*place, zero=zero) for place in places])


def test_disk_that_needs_larger_clusters() -> None:
    with pytest.raises(TooLarge, match="use larger clusters") as raised:
        layout(128 * GiB + SECTOR, [], cluster=512)
    assert raised.value.details == {"limit": 128 * GiB, "seen": 128 * GiB + SECTOR}


def test_data_that_needs_larger_clusters() -> None:
    """Without its tables it would just fit."""
    with pytest.raises(TooLarge, match="use larger clusters") as raised:
        layout(128 * GiB, [Extent(0, 128 * GiB, zero=False)], cluster=512)
    assert raised.value.details["limit"] == 128 * GiB


# ------------------------------------------------------------------------------------------------ others read it


@contextmanager
def files(images: Sequence[bytes]) -> Iterator[list[Path]]:
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory, f"{number}.qcow2") for number in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            path.write_bytes(image)
        yield paths


def check_silently(path: Path) -> None:
    """No leak, no error, nothing behind the last cluster, and not a word of it."""
    command = ["qemu-img", "check", "--output=json", opened(path, ImageFormat.QCOW2)]
    told = subprocess.run(command, check=True, capture_output=True)
    report = json.loads(told.stdout)
    assert not told.stderr
    assert not {"leaks", "corruptions"} & report.keys()
    assert report["check-errors"] == 0
    assert report["image-end-offset"] == path.stat().st_size


def read_by_qemu(paths: Sequence[Path]) -> str:
    raw = paths[-1].with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", chained(paths), str(raw)], check=True, capture_output=True)
    return sha(raw.read_bytes())


def read_by_libqcow(image: bytes) -> str:
    file = pyqcow.file()
    file.open_file_object(io.BytesIO(image))
    try:
        assert file.get_backing_filename() is None
        return sha(file.read_buffer_at_offset(file.get_media_size(), 0))
    finally:
        file.close()


@FEW
@given(history=histories())
def test_qemu_reads_a_full_image(history: History) -> None:
    with files(history.images()) as paths:
        check_silently(paths[0])
        assert read_by_qemu(paths) == sha(history.versions[0].content)


@FEW
@given(history=histories(least=2, most=4))
def test_qemu_reads_a_chain_with_resizes_between(history: History) -> None:
    with files(history.images()) as paths:
        check_silently(paths[-1])
        assert read_by_qemu(paths) == sha(history.versions[-1].content)


@MANY
@given(history=histories(most=2))
def test_libqcow_reads_each_image_by_itself(history: History) -> None:
    """libqcow does not tell zero clusters from those that are left out: of a delta it sees the data, and zeroes around it."""
    for made, image, version in zip(history.layouts(), history.images(), history.versions, strict=True):
        visible = bytearray(len(version.content))
        for run in made.runs():
            if run.host is not None:
                part = slice(run.offset, run.offset + run.length)
                visible[part] = version.content[part]
        assert read_by_libqcow(image) == sha(visible)


@pytest.mark.parametrize(
    ("size", "cluster", "extents"),
    [
        (8 * TiB, 64 * KiB, [Extent(at * 27 * GiB, 5 * MiB, zero=False) for at in range(300)]),
        (32 * MiB, 512, [Extent(0, 16 * MiB, zero=False), Extent(16 * MiB, 8 * MiB, zero=True)]),
        (2 * TiB, 2 * MiB, [Extent(at * 250 * GiB + 5, 3 * MiB, zero=bool(at % 2)) for at in range(8)]),
    ],
    ids=["sparse", "tables of many clusters", "large clusters"],
)
def test_qemu_finds_nothing_wrong_with_large_tables(
    tmp_path: Path, size: int, cluster: int, extents: list[Extent]
) -> None:
    made = layout(size, extents, cluster=cluster, delta=True)
    path = tmp_path / "image.qcow2"
    with path.open("wb") as file:
        file.writelines(piece.content for piece in made.pieces(0, made.data_at) if isinstance(piece, Metadata))
        file.truncate(made.size)
    check_silently(path)


@MANY
@given(history=histories(most=2))
async def test_the_gate_lets_it_pass(history: History) -> None:
    for image, version in zip(history.images(), history.versions, strict=True):
        verdict = await gate.inspect(BytesReader(image), declared=ImageFormat.QCOW2, limits=GateLimits())
        assert (verdict.format, verdict.subformat) == (ImageFormat.QCOW2, "version 3")
        assert verdict.virtual_size == len(version.content)
