"""Writing in place: content, length, holes, typed errors."""

from __future__ import annotations

import errno
import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.contract import KiB, MiB
from stores.errors import DeviceFault, InvalidReference, NoSpace, NotFound, TooLarge
from stores.transfer.placed import BLOCK, PlacedFile, _disk_error, data_runs

BLOCKS = st.lists(st.sampled_from([b"\0", b"x", b"\0x\0"]), max_size=12)


@given(blocks=BLOCKS, offset=st.integers(0, 2 * BLOCK), cut=st.integers(0, BLOCK))
def test_runs_leave_out_nothing_but_zeroes(blocks: list[bytes], offset: int, cut: int) -> None:
    data = b"".join(block.center(BLOCK, b"\0") for block in blocks)[cut:]
    rebuilt = bytearray(len(data))
    at = 0
    for start, end in data_runs(memoryview(data), offset):
        assert at <= start < end
        rebuilt[start:end] = data[start:end]
        at = end
    assert rebuilt == data


def test_whole_zero_blocks_are_left_out() -> None:
    data = bytes(BLOCK) + b"x" * BLOCK + bytes(2 * BLOCK) + b"y"
    assert list(data_runs(memoryview(data), 0)) == [(BLOCK, 2 * BLOCK), (4 * BLOCK, 4 * BLOCK + 1)]


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 3 * MiB + 17])
def test_any_length_arrives_exactly(tmp_path: Path, size: int) -> None:
    buffer = memoryview(mmap.mmap(-1, 4 * MiB))
    buffer[:] = os.urandom(4 * MiB)
    path = tmp_path / "file"
    path.write_bytes(b"old content that is longer" * 1000)
    file = PlacedFile(path)
    file.open(size)
    half = size // 2 // 4096 * 4096
    file.write(half, buffer[half:size])
    file.write(0, buffer[:half])
    file.close()
    file.close()
    assert path.read_bytes() == buffer[:size]


def test_memory_and_offsets_without_alignment_work_too(tmp_path: Path) -> None:
    data = os.urandom(300 * KiB)
    file = PlacedFile(tmp_path / "file")
    file.open(len(data))
    for start in range(0, len(data), 100_001):
        file.write(start, memoryview(data)[start : start + 100_001])
    file.close()
    assert (tmp_path / "file").read_bytes() == data


def test_zeroes_take_no_room(tmp_path: Path) -> None:
    buffer = memoryview(mmap.mmap(-1, 4 * MiB))
    buffer[MiB : MiB + 4] = b"data"
    file = PlacedFile(tmp_path / "file")
    file.open(4 * MiB)
    file.write(0, buffer)
    file.close()
    found = (tmp_path / "file").stat()
    assert found.st_size == 4 * MiB
    assert found.st_blocks * 512 <= 2 * BLOCK


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    file = PlacedFile(tmp_path / "link")
    with pytest.raises(InvalidReference):
        file.open()
    file.close()
    assert (tmp_path / "target").read_bytes() == b"precious"


def test_a_missing_directory_is_not_found(tmp_path: Path) -> None:
    file = PlacedFile(tmp_path / "missing" / "file")
    with pytest.raises(NotFound):
        file.open()
    file.close()


def test_what_a_full_device_says_is_no_space() -> None:
    """/dev/full answers ENOSPC to every write; it cannot be truncated, so the descriptor is opened past `open`."""
    file = PlacedFile(Path("/dev/full"))
    file._buffered = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(NoSpace) as failure:
        file.write(0, memoryview(b"data"))
    file.close()
    assert failure.value.details["needed"] == 4


@contextmanager
def _file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_largest_file_size_is_too_large(tmp_path: Path) -> None:
    file = PlacedFile(tmp_path / "file")
    with _file_size_limit(MiB), pytest.raises(TooLarge):
        file.open(2 * MiB)
    file.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ESTALE])
def test_broken_disks_and_mounts_are_device_faults(number: int, tmp_path: Path) -> None:
    found = _disk_error(OSError(number, os.strerror(number)), tmp_path / "file", 1)
    assert isinstance(found, DeviceFault)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_file_systems_say_what_was_needed_and_what_there_is(number: int, tmp_path: Path) -> None:
    found = _disk_error(OSError(number, os.strerror(number)), tmp_path / "file", 12345)
    assert isinstance(found, NoSpace)
    assert found.details["needed"] == 12345
    assert isinstance(found.details["available"], int)
