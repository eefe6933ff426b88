"""Expansion: every format, whole content or a typed refusal, never more memory or output than allowed."""

from __future__ import annotations

import asyncio
import bz2
import collections
import gzip
import hashlib
import itertools
import lzma
import random
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stores.contract import KiB, MiB
from stores.errors import IntegrityError, TooLarge
from stores.transfer import compression
from stores.transfer.compression import PIECE, Expander, expand, sniff_compression

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "bzip2": lambda data: bz2.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zstd": lambda data: zstd.compress(data, 1),
}
every_format = pytest.mark.parametrize("name", list(COMPRESS))
SKIPPABLE_FRAME = (0x184D2A50).to_bytes(4, "little") + (4).to_bytes(4, "little") + b"skip"


def like_a_disk(size: int, seed: int = 1) -> bytes:
    """Some zeroes, some text, some noise: what images are made of."""
    source = random.Random(seed)
    parts: list[bytes] = []
    while sum(map(len, parts)) < size:
        parts.append(source.choice([bytes(64 * KiB), b"a line of a log file\n" * 3000, source.randbytes(96 * KiB)]))
    return b"".join(parts)[:size]


def run_all(name: str, pieces: Sequence[bytes], *, limit: int | None = None, max_ratio: float = 1000.0) -> bytes:
    expander = Expander(name, limit=limit, max_ratio=max_ratio)
    output = bytearray()
    for data in pieces:
        expander.feed(data)
        while piece := expander.piece():
            assert len(piece) <= PIECE
            output += piece
    expander.finish()
    return bytes(output)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@every_format
@given(content=st.lists(st.binary(max_size=300), max_size=5), places=st.lists(st.integers(0, 10**6), max_size=6))
def test_members_one_after_another_come_out_whole_however_the_input_is_cut(
    name: str, content: list[bytes], places: list[int]
) -> None:
    packed = b"".join(COMPRESS[name](part) for part in content) or COMPRESS[name](b"")
    assert run_all(name, cut(packed, places)) == b"".join(content)


@every_format
def test_large_content_comes_out_by_hash(name: str) -> None:
    content = like_a_disk(5 * MiB + 17)
    packed = COMPRESS[name](content)
    for size in (len(packed), 100_003):
        pieces = [packed[start : start + size] for start in range(0, len(packed), size)]
        assert hashlib.sha256(run_all(name, pieces)).digest() == hashlib.sha256(content).digest()


@every_format
def test_exact_limit_passes_and_one_byte_less_does_not(name: str) -> None:
    content = like_a_disk(3 * MiB)
    packed = COMPRESS[name](content)
    assert run_all(name, [packed], limit=len(content)) == content
    with pytest.raises(TooLarge) as caught:
        run_all(name, [packed], limit=len(content) - 1)
    assert caught.value.details["limit"] == len(content) - 1


@every_format
@given(data=st.data())
@settings(max_examples=40)
def test_every_truncation_is_noticed(name: str, data: st.DataObject) -> None:
    content = b"some content " * 40 + bytes(range(256))
    packed = COMPRESS[name](content)
    length = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(IntegrityError):
        run_all(name, [packed[:length]])


@every_format
@given(garbage=st.binary(min_size=1, max_size=40).filter(lambda data: data.strip(b"\0") != b""))
def test_what_follows_the_last_member_is_damage(name: str, garbage: bytes) -> None:
    with pytest.raises(IntegrityError):
        run_all(name, [COMPRESS[name](b"content") + garbage])


@every_format
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(max_examples=60)
def test_a_flipped_bit_never_passes_as_other_content(name: str, position: int, bit: int) -> None:
    content = bytes(range(256)) * 8
    packed = bytearray(
        zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1})
        if name == "zstd"
        else COMPRESS[name](content)
    )
    packed[position % len(packed)] ^= 1 << bit
    try:
        output = run_all(name, [bytes(packed)])
    except (IntegrityError, TooLarge):
        return
    assert output == content  # a bit that carries nothing: a time stamp, a flag that readers ignore


@given(padding=st.integers(0, 3 * compression.INPUT_SLICE))
@settings(max_examples=20)
def test_xz_padding_comes_in_fours(padding: int) -> None:
    for packed in (
        lzma.compress(b"one") + bytes(padding),
        lzma.compress(b"one") + bytes(padding) + lzma.compress(b""),
    ):
        if padding % 4:
            with pytest.raises(IntegrityError):
                run_all("xz", [packed])
        else:
            assert run_all("xz", [packed]) == b"one"


@pytest.mark.parametrize("name", ["gzip", "bzip2", "zstd"])
def test_other_formats_have_no_padding(name: str) -> None:
    with pytest.raises(IntegrityError):
        run_all(name, [COMPRESS[name](b"content") + bytes(512)])


@every_format
@pytest.mark.parametrize("junk", [b"", b"\0" * 16, b"not compressed at all"])
def test_nothing_at_all_is_not_an_empty_object(name: str, junk: bytes) -> None:
    with pytest.raises(IntegrityError):
        run_all(name, [junk])


def bomb(name: str, size: int) -> list[bytes]:
    """`size` zeroes, compressed as far as it goes, without ever having them in memory."""
    unit = COMPRESS[name](bytes(32 * MiB))
    return [unit] * (size // (32 * MiB))


@every_format
def test_a_bomb_stops_at_the_limit_in_bounded_memory(name: str) -> None:
    packed = b"".join(bomb(name, 1024 * MiB))  # one piece: a call that decoded all of it would take a GiB
    expander = Expander(name, limit=40 * MiB)
    expander.feed(packed)
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            collections.deque(iter(expander.piece, b""), maxlen=0)
        assert tracemalloc.get_traced_memory()[1] < 24 * MiB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["bzip2", "xz", "zstd"])
def test_a_bomb_stops_at_the_ratio_when_there_is_no_limit(name: str) -> None:
    with pytest.raises(TooLarge) as caught:
        run_all(name, bomb(name, 256 * MiB))
    assert int(str(caught.value.details["seen"])) <= compression.RATIO_FREE + PIECE


def test_a_great_ratio_is_no_bomb_while_the_output_is_small() -> None:
    assert run_all("zstd", [zstd.compress(bytes(32 * MiB))]) == bytes(32 * MiB)


def test_dictionaries_that_want_too_much_memory_are_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 512 * MiB}]
    packed = bytearray(lzma.compress(b"content", filters=filters))
    with pytest.raises(IntegrityError):
        run_all("xz", [bytes(packed)])
    long_distance: dict[int, int] = {zstd.CompressionParameter.window_log: 28}
    compressor = zstd.ZstdCompressor(options=long_distance)
    frame = compressor.compress(b"content" * 1000) + compressor.flush()  # size unknown at first: the window is kept
    with pytest.raises(IntegrityError):
        run_all("zstd", [frame])


def test_zstd_frames_of_metadata_are_skipped() -> None:
    assert sniff_compression(SKIPPABLE_FRAME + zstd.compress(b"x")) == "zstd"
    assert run_all("zstd", [SKIPPABLE_FRAME + zstd.compress(b"x") + SKIPPABLE_FRAME]) == b"x"


@every_format
@given(content=st.binary(max_size=64))
def test_sniffing_knows_its_own(name: str, content: bytes) -> None:
    assert sniff_compression(COMPRESS[name](content)) == name


@given(st.binary(max_size=64))
def test_sniffing_never_fails(head: bytes) -> None:
    assert sniff_compression(head) in (None, *COMPRESS)


@pytest.mark.parametrize("head", [b"", b"QFI\xfb\0\0\0\3", b"BZh is how this text begins", b"\x1f\x8b\x00", bytes(512)])
def test_sniffing_leaves_images_alone(head: bytes) -> None:
    assert sniff_compression(head) is None


@pytest.mark.parametrize("tool", ["gzip", "bzip2", "xz", "zstd"])
def test_what_the_real_tools_write(tool: str) -> None:
    content = like_a_disk(2 * MiB, seed=7)
    packed = subprocess.run([tool, "-c"], input=content, capture_output=True, check=True).stdout
    assert sniff_compression(packed) == tool
    assert run_all(tool, [packed, packed]) == content * 2


def test_unknown_compression_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="lz4"):
        Expander("lz4", limit=None)


async def pieces_of(data: bytes, size: int = 300_000) -> AsyncGenerator[memoryview, None]:
    for start in range(0, len(data), size):
        buffer = bytearray(data[start : start + size])
        yield memoryview(buffer)
        buffer[:] = bytes(len(buffer))  # the contract: a piece is valid only until the next one is asked for


@every_format
async def test_a_stream_is_expanded_off_the_event_loop(name: str) -> None:
    content = like_a_disk(5 * MiB, seed=3)
    digest = hashlib.sha256()
    async for piece in expand(pieces_of(COMPRESS[name](content)), name, run=asyncio.to_thread, limit=None):
        assert len(piece) <= PIECE
        digest.update(piece)
    assert digest.digest() == hashlib.sha256(content).digest()


@every_format
async def test_a_stream_that_ends_early_fails_at_its_end(name: str) -> None:
    packed = COMPRESS[name](like_a_disk(2 * MiB))
    with pytest.raises(IntegrityError):
        async for _ in expand(pieces_of(packed[:-9]), name, run=asyncio.to_thread, limit=None):
            pass


async def test_a_reader_may_leave_in_the_middle() -> None:
    disk = like_a_disk(8 * MiB)
    async with aclosing(pieces_of(gzip.compress(disk))) as source:
        async with aclosing(expand(source, "gzip", run=asyncio.to_thread, limit=None)) as pieces:
            assert disk.startswith(bytes(await anext(pieces)))
        assert await anext(source)  # not closed: it is not the expansion's
