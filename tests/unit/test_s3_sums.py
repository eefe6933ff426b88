"""Checksums of parts against those of the whole."""

from __future__ import annotations

import hashlib
import random
from itertools import pairwise
from pathlib import Path

import pytest
from awscrt import checksums
from hypothesis import given
from hypothesis import strategies as st

from stores.backends.s3_sums import Sums, joined_crc, md5_of, multipart_etag
from stores.contract import MiB
from stores.errors import IntegrityError
from stores.transfer.engine import TransferEngine
from stores.transfer.parts import Parts
from stores.transfer.source import SourceFile


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_crc_of_parts_is_that_of_the_whole(parts: list[bytes]) -> None:
    joined = joined_crc([(checksums.crc64nvme(part), len(part)) for part in parts])
    assert joined == checksums.crc64nvme(b"".join(parts))


@given(st.integers(0, 10_000), st.integers(1, 3000))
def test_parts_cover_the_file_once(size: int, part: int) -> None:
    cut = Parts(size, part)
    ranges = [cut.range(number) for number in range(1, cut.count + 1)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == size
    assert all(before[1] == after[0] for before, after in pairwise(ranges))
    assert all(0 < end - start <= part for start, end in ranges) or size == 0
    assert sum(cut.length(number) for number in range(1, cut.count + 1)) == size


@pytest.mark.parametrize("size", [0, 1, 5 * MiB + 3])
async def test_sums_of_a_file(engine: TransferEngine, tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "file").write_bytes(data)
    source = SourceFile(tmp_path / "file")
    source.open()
    sums = Sums(engine, source, Parts(size, 2 * MiB))
    pieces = [data[start : start + 2 * MiB] for start in range(0, size, 2 * MiB)] or [b""]
    assert [await sums.crc(number) for number in range(1, len(pieces) + 1)] == [
        checksums.crc64nvme(piece) for piece in pieces
    ]
    assert await sums.whole_crc() == checksums.crc64nvme(data)
    assert await sums.md5(1) == hashlib.md5(pieces[0]).hexdigest() == md5_of([memoryview(pieces[0])])
    assert await sums.whole_etag(parts=True) == multipart_etag([hashlib.md5(piece).hexdigest() for piece in pieces])
    source.close()


async def test_file_cut_short_has_no_sum(engine: TransferEngine, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    source = SourceFile(tmp_path / "file")
    source.open()
    (tmp_path / "file").write_bytes(bytes(99))
    with pytest.raises(IntegrityError):
        await Sums(engine, source, Parts(100, 100)).crc(1)
    source.close()
