"""Streams into S3 whose parts are larger than the memory there is for them: content, memory, every fault, and what is left."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Hashable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import pytest

from stores.backends.s3 import S3Store
from stores.backends.s3_parts import Cut
from stores.contract import Extent, KiB, Kind, MiB, ObjectInfo, PendingStream, RangeReader
from stores.errors import IntegrityError, NotFound, StorageError, TooLarge, Unavailable
from stores.transfer.buffers import PIECE, BufferPool
from stores.transfer.engine import TransferEngine
from stores.transfer.outgoing import Outgoing
from tests.buckets import empty, keys, made_bucket, uploads
from tests.disturbed_uploads import REF, TOKEN, Way, carried_out, opened, stored, walk
from tests.doubles.request_proxy import Fault, RequestProxy, Seen
from tests.objects import sha, zero
from tests.servers import S3Server

MEMORY = MiB
"""Less than any part, all of which but the last have at least 5 MiB: servers want that."""
CUT = Cut(smallest=256 * KiB, most=2)
LADDER = Cut(smallest=5 * MiB, most=4)
"""Two parts of 5 MiB, which are the first that can be kept in memory; then 10 and 20 MiB."""


class CountingMemory(Outgoing):
    """`most` bytes were out at once."""

    most = 0

    def take(self, size: int) -> None:
        super().take(size)
        self.most = max(self.most, self.used)


class CountingBuffers(BufferPool):
    """`most` were out at once."""

    most = 0

    async def acquire(self, owner: Hashable) -> memoryview:
        buffer = await super().acquire(owner)
        self.most = max(self.most, self.taken)
        return buffer


class Engine(TransferEngine):
    """With little memory, which is counted."""

    def __init__(self, scratch: Path, *, memory: int = MEMORY, buffers: int = 2) -> None:
        super().__init__(scratch=scratch)
        self.scratch = scratch
        self.outgoing: CountingMemory = CountingMemory(memory)
        self.buffers: CountingBuffers = CountingBuffers(buffers * PIECE)

    def nothing_left(self) -> bool:
        """No memory, no file, and nothing running."""
        here = Path("/proc/self/fd")
        opened = [os.readlink(here / name) for name in os.listdir(here) if (here / name).is_symlink()]
        return (
            (self.outgoing.used, self.buffers.taken) == (0, 0)
            and not list(self.scratch.iterdir())
            and not [path for path in opened if path.startswith(str(self.scratch))]
            and asyncio.all_tasks() == {asyncio.current_task()}
        )


class Source(RangeReader):
    """Content in memory, with holes where it has zeroes in whole pages. When `spoilt` bytes were read it reads as `then`, or
    fails."""

    def __init__(self, content: bytes, *, spoilt: int | None = None, then: bytes | StorageError = b"") -> None:
        self.info = ObjectInfo("source", len(content))
        self.read_bytes = 0
        self._content = content
        self._spoilt = spoilt
        self._then = then

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await asyncio.sleep(0)
        content = self._content
        if self._spoilt is not None and self.read_bytes >= self._spoilt:
            if isinstance(self._then, StorageError):
                raise self._then
            content = self._then
        self.read_bytes += len(buffer)
        buffer[:] = content[offset : offset + len(buffer)]

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        found: list[Extent] = []
        for at in range(offset, offset + length, 4 * KiB):
            count = min(4 * KiB, offset + length - at)
            found.append(Extent(at, count, zero=zero(self._content[at : at + count])))
        return found


@lru_cache(maxsize=8)
def content(size: int, seed: int = 1) -> bytes:
    """Data, then zeroes, then data."""
    rng = random.Random(seed)
    third = size // 3
    return rng.randbytes(third) + bytes(third) + rng.randbytes(size - 2 * third)


async def send(store: S3Store, source: Source, engine: TransferEngine) -> ObjectInfo:
    async with store.write(REF, Kind.BYTE_STREAM, token=TOKEN, size=source.info.size) as pending:
        sent = await engine.send(source, cast(PendingStream, pending), digests=["sha256"])
        assert sent.digests == {"sha256": sha(source._content)}
        return await pending.commit()


async def write(store: S3Store, data: bytes, *, size: int | None = None, step: int = 77_777) -> ObjectInfo:
    async with store.write(REF, Kind.BYTE_STREAM, token=TOKEN, size=size) as pending:
        for start in range(0, len(data), step):
            await cast(PendingStream, pending).write(memoryview(data)[start : start + step])
        return await pending.commit()


async def again(store: S3Store, source: Path) -> ObjectInfo:
    """From a source that can be read again."""
    return await send(store, Source(source.read_bytes()), store._engine)


async def once(store: S3Store, source: Path) -> ObjectInfo:
    """What comes only once, without its size."""
    return await write(store, source.read_bytes())


async def announced(store: S3Store, source: Path) -> ObjectInfo:
    """What comes only once, with its size."""
    return await write(store, source.read_bytes(), size=source.stat().st_size)


WAYS = [
    pytest.param(again, CUT, 11 * MiB - 7, id="again"),
    pytest.param(once, LADDER, 21 * MiB - 7, id="once"),
    pytest.param(announced, CUT, 11 * MiB - 7, id="announced"),
]
ONE_PART = [
    pytest.param(again, Cut(16 * KiB, 1), id="again"),
    pytest.param(once, Cut(256 * KiB, 1), id="once"),
    pytest.param(announced, Cut(16 * KiB, 1), id="announced"),
]
"""The same for small objects: a last part may be as short as it likes."""


@pytest.fixture
def bucket(emptied_bucket: tuple[Any, str]) -> tuple[Any, str]:
    return emptied_bucket


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    engine = Engine(scratch)
    yield engine
    assert engine.nothing_left()
    await engine.aclose()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(content(300_000))  # as `walk` has it
    return path


def parts_of(info: ObjectInfo) -> int:
    return int((info.version or "").strip('"').partition("-")[2] or 0)


@pytest.mark.parametrize(
    ("way", "cut", "size"),
    [
        *WAYS,
        (again, CUT, 10 * MiB + 1),
        (again, CUT, 11 * MiB),
        (announced, CUT, 11 * MiB),
        (once, LADDER, 10 * MiB),
        (once, LADDER, 10 * MiB + 1),
        (once, LADDER, 20 * MiB),
    ],
)
async def test_object_arrives_through_little_memory(
    seaweed: S3Server, bucket: tuple[Any, str], engine: Engine, source: Path, way: Way, cut: Cut, size: int
) -> None:
    source.write_bytes(content(size))
    async with opened(engine, seaweed, bucket[1], cut=cut) as store:
        info = await way(store, source)
    assert stored(bucket) == sha(content(size))
    assert 2 <= parts_of(info) <= cut.most
    assert engine.outgoing.most <= max(MEMORY, cut.smallest)
    assert engine.buffers.most <= 2
    assert (keys(*bucket), uploads(*bucket)) == ({REF}, [])


@pytest.mark.parametrize("reread", [True, False])
async def test_streams_at_once_keep_to_their_memory(
    seaweed: S3Server, bucket: tuple[Any, str], tmp_path: Path, reread: bool
) -> None:
    """Four of 11 MiB in parts of 5.5 MiB, with 256 KiB of memory for each, 512 KiB more, and four buffers for all."""
    engine = Engine(tmp_path, memory=512 * KiB, buffers=4)
    data = {f"object{number}": random.Random(number).randbytes(11 * MiB - number) for number in range(4)}

    async def one(store: S3Store, ref: str) -> None:
        content = data[ref]
        async with store.write(ref, Kind.BYTE_STREAM, token=ref, size=len(content)) as pending:
            stream = cast(PendingStream, pending)
            if reread:
                await engine.send(Source(content), stream)
            else:
                await stream.write(memoryview(content))
            await stream.commit()

    async with opened(engine, seaweed, bucket[1], cut=CUT) as store, asyncio.TaskGroup() as group:
        for ref in data:
            group.create_task(one(store, ref))
    client, name = bucket
    for ref, content in data.items():
        assert sha(client.get_object(Bucket=name, Key=ref)["Body"].read()) == sha(content)
    assert engine.outgoing.most <= 4 * 256 * KiB + 512 * KiB
    assert engine.buffers.most <= 4
    assert engine.nothing_left()
    assert uploads(*bucket) == []
    await engine.aclose()


@pytest.mark.parametrize(("way", "cut", "size"), WAYS)
async def test_other_server_takes_it(
    moto: S3Server, engine: Engine, source: Path, way: Way, cut: Cut, size: int
) -> None:
    source.write_bytes(content(size))
    with made_bucket(moto) as bucket:
        async with opened(engine, moto, bucket[1], cut=cut) as store:
            await way(store, source)
        assert stored(bucket) == sha(content(size))
        assert (keys(*bucket), uploads(*bucket)) == ({REF}, [])


@pytest.mark.parametrize(("way", "cut"), ONE_PART)
async def test_parts_are_encrypted_too(
    seaweed: S3Server, bucket: tuple[Any, str], engine: Engine, source: Path, way: Way, cut: Cut
) -> None:
    async with opened(engine, seaweed, bucket[1], cut=cut, tls=True) as store:
        await way(store, source)
    assert stored(bucket) == sha(source.read_bytes())


@pytest.mark.parametrize(("way", "cut"), ONE_PART[:2])
@pytest.mark.parametrize("fault", Fault)
async def test_stream_disturbed_at_any_request_is_whole_or_gone(
    seaweed: S3Server, bucket: tuple[Any, str], engine: Engine, source: Path, way: Way, cut: Cut, fault: Fault
) -> None:
    async with walk(engine, seaweed, bucket, way, source, fault, cut) as (disturbances, next_store):
        async for disturbed in disturbances:
            await next_store.discard(REF, token=TOKEN)
            nameless = "uploads" in disturbed.path and carried_out(fault)
            assert len(uploads(*bucket)) <= int(nameless), f"{fault} at {disturbed}"
            assert keys(*bucket) <= {REF}, f"{fault} at {disturbed}"
            assert (engine.outgoing.used, engine.buffers.taken) == (0, 0)


@pytest.mark.parametrize(("way", "cut", "size"), WAYS)
@pytest.mark.parametrize(
    "fault", [Fault.ERROR_503, Fault.ERROR_IN_200, Fault.CUT, Fault.LATE_500, Fault.LOST, Fault.CORRUPT]
)
async def test_disturbed_part_is_sent_again_at_once(
    seaweed: S3Server,
    bucket: tuple[Any, str],
    engine: Engine,
    source: Path,
    way: Way,
    cut: Cut,
    size: int,
    fault: Fault,
) -> None:
    """The second but last: the next is filled meanwhile."""
    source.write_bytes(content(size))
    number = 1 if cut is CUT else 3

    def once_only(at: int, request: Seen) -> Fault | None:
        parts = [seen for seen in proxy.requests if f"partNumber={number}&" in seen.path]
        return fault if len(parts) == 1 and parts[0] is request else None

    async with (
        RequestProxy(seaweed.port) as proxy,
        opened(engine, seaweed, bucket[1], port=proxy.port, tries=3, cut=cut) as store,
    ):
        proxy.plan = once_only
        info = await way(store, source)
    assert len([seen for seen in proxy.requests if "partNumber" in seen.path]) == parts_of(info) + 1
    assert stored(bucket) == sha(content(size))
    assert (keys(*bucket), uploads(*bucket)) == ({REF}, [])


@pytest.mark.parametrize(("way", "cut"), ONE_PART)
async def test_server_that_tells_no_checksums_is_believed_by_its_etags(
    seaweed: S3Server, bucket: tuple[Any, str], engine: Engine, source: Path, way: Way, cut: Cut
) -> None:
    async with (
        RequestProxy(seaweed.port) as proxy,
        opened(engine, seaweed, bucket[1], port=proxy.port, cut=cut) as store,
    ):
        proxy.mute = True
        await way(store, source)
    assert stored(bucket) == sha(source.read_bytes())


@pytest.mark.parametrize(("passes", "mute"), [(1, False), (1, True), (2, True)])
async def test_source_that_changes_between_two_reads_is_not_stored(
    seaweed: S3Server, bucket: tuple[Any, str], engine: Engine, passes: int, mute: bool
) -> None:
    """The server notices by the checksum that was sent ahead; when the ETag is to be checked, a third read does."""
    data = random.Random(2).randbytes(32 * KiB)
    source = Source(data, spoilt=passes * len(data), then=data[:-1] + bytes([data[-1] ^ 1]))
    async with (
        RequestProxy(seaweed.port) as proxy,
        opened(engine, seaweed, bucket[1], port=proxy.port, cut=Cut(16 * KiB, 1)) as store,
    ):
        proxy.mute = mute
        with pytest.raises(IntegrityError, match="has changed in between" if passes == 2 else "BadDigest") as changed:
            await send(store, source, engine)
    assert changed.value.retry == "yes"
    assert (keys(*bucket), uploads(*bucket)) == (set(), [])


async def test_source_that_fails_when_it_is_read_again_is_the_failure(
    seaweed: S3Server, bucket: tuple[Any, str], engine: Engine
) -> None:
    source = Source(random.Random(3).randbytes(300_000), spoilt=300_000, then=Unavailable("the disk is gone"))
    async with opened(engine, seaweed, bucket[1], cut=Cut(16 * KiB, 1)) as store:
        with pytest.raises(Unavailable, match="the disk is gone"):
            await send(store, source, engine)
    assert (keys(*bucket), uploads(*bucket)) == (set(), [])


@pytest.mark.parametrize(("way", "cut", "size"), WAYS[:2])
async def test_cancelled_at_any_moment_it_leaves_nothing(
    seaweed: S3Server, bucket: tuple[Any, str], engine: Engine, source: Path, way: Way, cut: Cut, size: int
) -> None:
    source.write_bytes(content(size))
    tasks: list[asyncio.Task[ObjectInfo]] = []
    async with (
        RequestProxy(seaweed.port) as proxy,
        opened(engine, seaweed, bucket[1], port=proxy.port, cut=cut) as store,
    ):
        await way(store, source)
        count = len(proxy.requests)
        empty(*bucket)
        for number in range(1, count + 1):
            proxy.start_over()

            def cancelling(at: int, request: Seen, number: int = number) -> Fault | None:
                if at == number:
                    tasks[-1].cancel()
                return Fault.DELAYED if at == number else None

            proxy.plan = cancelling
            tasks.append(asyncio.ensure_future(way(store, source)))
            with pytest.raises(asyncio.CancelledError):
                await tasks[-1]
            assert stored(bucket) in (None, sha(content(size)))
            await store.discard(REF, token=TOKEN)
            assert uploads(*bucket) == [], f"cancelled at {proxy.requests[number - 1]}"
            assert keys(*bucket) <= {REF}
            assert (engine.outgoing.used, engine.buffers.taken) == (0, 0)
            empty(*bucket)


async def test_stream_without_a_size_ends_where_the_parts_do(
    seaweed: S3Server, bucket: tuple[Any, str], engine: Engine
) -> None:
    cut = Cut(smallest=5 * MiB, most=2)  # 5 and 10 MiB
    async with opened(engine, seaweed, bucket[1], cut=cut) as store:
        await write(store, content(15 * MiB), step=MiB)
        assert stored(bucket) == sha(content(15 * MiB))
        await store.delete(REF)
        with pytest.raises(TooLarge, match="tell its size"):
            await write(store, content(15 * MiB + 1), step=MiB)
    assert (keys(*bucket), uploads(*bucket)) == (set(), [])


async def test_place_for_what_comes_once_is_needed_only_then(
    seaweed: S3Server, bucket: tuple[Any, str], engine: Engine, source: Path
) -> None:
    engine.scratch.rmdir()
    async with opened(engine, seaweed, bucket[1], cut=Cut(16 * KiB, 1)) as store:
        with pytest.raises(NotFound, match="temporary file"):
            await announced(store, source)
        assert (keys(*bucket), uploads(*bucket)) == (set(), [])
        await again(store, source)
    engine.scratch.mkdir()
    assert stored(bucket) == sha(source.read_bytes())
