"""A reader's content on its way into a stream: order, digests, bounds, and what is left of it when it breaks off."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Sequence
from typing import ClassVar

import pytest

from stores.contract import Extent, KiB, Kind, ObjectInfo, RangeReader, Silent
from stores.errors import IntegrityError, StorageError, Unavailable
from stores.transfer.buffers import PIECE
from stores.transfer.engine import TransferEngine
from stores.transfer.outgoing import Outgoing, Share
from stores.transfer.relay import JUDGED, LONG, SPAN, Pace
from tests.images import AskedReader

CONTENT = os.urandom(5 * PIECE) + bytes(3 * PIECE) + os.urandom(PIECE + 12345)


class Source(RangeReader):
    """Content in memory. Reads end in reverse order as far as `parallel` of them are under way; `failing` breaks one."""

    def __init__(self, content: bytes, *, holes: Sequence[Extent] | None = None, failing: int | None = None) -> None:
        self.info = ObjectInfo("source", len(content))
        self.offsets: list[int] = []
        self.under_way = self.most = 0
        self._content = content
        self._holes = holes
        self._failing = failing

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        self.offsets.append(offset)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            for _ in range(3 * (self.parallel - len(self.offsets) % self.parallel)):
                await asyncio.sleep(0)
            if self._failing is not None and offset + len(buffer) > self._failing:
                raise Unavailable("broken on purpose")
            buffer[:] = self._content[offset : offset + len(buffer)]
        finally:
            self.under_way -= 1

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return self._holes if self._holes is not None else await super().extents(offset, length)


class Sink:
    """Rooms of at most `largest` bytes, `rooms` of them at once; `failure` at the first that is filled. With `hold` none ever
    is taken."""

    kind: ClassVar[Kind] = Kind.BYTE_STREAM

    def __init__(
        self, *, rooms: int = 100, largest: int = PIECE, failure: StorageError | None = None, hold: bool = False
    ) -> None:
        self.held = asyncio.Event()
        self._hold = hold
        self.content = bytearray()
        self.out: list[memoryview] = []
        self.most = 0
        self._free = asyncio.Semaphore(rooms)
        self._largest = largest
        self._failure = failure

    def rereads(self, source: RangeReader) -> None:
        """Keeps everything itself."""

    async def write(self, data: memoryview) -> None:
        self.content += data

    async def room(self, most: int) -> memoryview:
        await self._free.acquire()
        self.out.append(memoryview(bytearray(b"\xff" * min(most, self._largest))))
        self.most = max(self.most, len(self.out))
        return self.out[-1]

    async def filled(self, room: memoryview) -> None:
        assert room is self.out[0]
        if self._hold:
            self.held.set()
            await asyncio.Event().wait()
        if self._failure is not None:
            raise self._failure
        await self.write(self.out.pop(0))
        self._free.release()

    async def commit(self) -> ObjectInfo:
        return ObjectInfo("sink", len(self.content))


class Counting(Silent):
    done = 0

    def advance(self, count: int) -> None:
        self.done += count


@pytest.fixture
async def engine() -> AsyncIterator[TransferEngine]:
    found = TransferEngine()
    yield found
    await found.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("rooms", [1, 2, 100])
@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, len(CONTENT)])
async def test_content_arrives_in_order_with_its_digests(engine: TransferEngine, size: int, rooms: int) -> None:
    source, sink, progress = Source(CONTENT[:size]), Sink(rooms=rooms), Counting()
    sent = await engine.send(source, sink, digests=["sha256", "md5"], progress=progress)
    assert bytes(sink.content) == CONTENT[:size]
    assert sent.size == progress.done == size
    assert sent.digests == {
        name: hashlib.new(name, CONTENT[:size], usedforsecurity=False).hexdigest() for name in ("sha256", "md5")
    }


async def test_room_may_be_smaller_than_what_was_asked_for(engine: TransferEngine) -> None:
    sink = Sink(largest=300 * KiB)
    await engine.send(Source(CONTENT), sink)
    assert bytes(sink.content) == CONTENT


async def test_reads_at_once_are_bounded_by_what_the_source_bears(engine: TransferEngine) -> None:
    source, sink = Source(CONTENT * 3), Sink()
    await engine.send(source, sink)
    assert 1 < source.most <= source.parallel


async def test_a_span_is_read_by_one_reader_who_knows_what_follows(engine: TransferEngine) -> None:
    source, sink = AskedReader(CONTENT * 2), Sink(rooms=3)
    await engine.send(source, sink)
    assert bytes(sink.content) == CONTENT * 2
    assert sorted(source.asked) == [
        (offset, min(SPAN, 2 * len(CONTENT) - offset)) for offset in range(0, 2 * len(CONTENT), SPAN)
    ]
    assert sink.most <= 3


@pytest.mark.parametrize("stop", ["cancel", "failure"])
async def test_readers_that_wait_for_room_end(engine: TransferEngine, stop: str) -> None:
    source = AskedReader(CONTENT * 2)
    sink = Sink(rooms=2, failure=Unavailable("the store is gone") if stop == "failure" else None, hold=stop == "cancel")
    task = asyncio.create_task(engine.send(source, sink))
    if stop == "cancel":
        await asyncio.wait_for(sink.held.wait(), 10)
        task.cancel()
    with pytest.raises(asyncio.CancelledError if stop == "cancel" else Unavailable):
        await task
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("relay")]


async def test_holes_are_not_read(engine: TransferEngine) -> None:
    holes = [
        Extent(0, 5 * PIECE, zero=False),
        Extent(5 * PIECE, 3 * PIECE, zero=True),
        Extent(8 * PIECE, PIECE + 12345, zero=False),
    ]
    source, sink = Source(CONTENT, holes=holes), Sink()
    sent = await engine.send(source, sink, digests=["sha256"])
    assert bytes(sink.content) == CONTENT
    assert sent.digests["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert not [offset for offset in source.offsets if 5 * PIECE <= offset < 8 * PIECE]


async def test_source_of_unknown_size_is_refused(engine: TransferEngine) -> None:
    source, sink = Source(CONTENT), Sink()
    source.info = ObjectInfo("source", None)
    with pytest.raises(IntegrityError, match="unknown"):
        await engine.send(source, sink)
    assert not sink.out


@pytest.mark.parametrize("failing", [0, 3 * PIECE, len(CONTENT) - 1])
async def test_failing_source_ends_it_with_its_own_error(engine: TransferEngine, failing: int) -> None:
    source, sink = Source(CONTENT, failing=failing), Sink(rooms=3)
    with pytest.raises(Unavailable, match="on purpose"):
        await engine.send(source, sink)
    assert source.under_way == 0
    assert CONTENT.startswith(bytes(sink.content))
    assert len(sink.content) <= failing


async def test_failing_stream_ends_it_with_its_own_error(engine: TransferEngine) -> None:
    source = Source(CONTENT)
    with pytest.raises(Unavailable, match="store is gone"):
        await engine.send(source, Sink(failure=Unavailable("the store is gone")))
    assert source.under_way == 0


@pytest.mark.parametrize("rooms", [1, 100])
async def test_cancelled_it_leaves_all_rooms_alone(engine: TransferEngine, rooms: int) -> None:
    for turns in range(0, 60, 4):
        source, sink = Source(CONTENT), Sink(rooms=rooms)
        task = asyncio.create_task(engine.send(source, sink, digests=["sha256"]))
        for _ in range(turns):
            await asyncio.sleep(0)
        if not task.cancel():
            break  # it had come to its end in fewer turns
        with pytest.raises(asyncio.CancelledError):
            await task
        assert source.under_way == 0
        before = [bytes(room) for room in sink.out]
        await asyncio.sleep(0.001)
        assert [bytes(room) for room in sink.out] == before
        assert CONTENT.startswith(bytes(sink.content))


# ---------------------------------------------------------------------------------------------------------- memory


async def test_each_stream_has_one_buffer_whatever_others_have() -> None:
    outgoing = Outgoing(100)
    first, second = Share(outgoing), Share(outgoing)
    for _ in range(2):
        assert len(await first.take(50)) == 50
    assert len(await second.take(50)) == 50
    assert (outgoing.used, outgoing.left, outgoing.pressed) == (150, 0, True)
    for share in (first, second, first):
        share.close()
    assert outgoing.used == 0


async def test_more_than_one_waits_for_what_the_stream_has_itself() -> None:
    outgoing = Outgoing(100)
    share = Share(outgoing)
    taken = [await share.take(50), await share.take(50)]
    task = asyncio.create_task(share.take(50))
    await asyncio.sleep(0.001)
    assert not task.done()
    share.give(taken[0])
    assert await task is taken[0]
    assert outgoing.used == 100
    share.close()


async def test_what_is_pressed_for_is_given_back_and_one_kept() -> None:
    outgoing = Outgoing(100)
    first, second = Share(outgoing), Share(outgoing)
    taken = [await first.take(50), await first.take(50)]
    await second.take(50)
    first.give(taken[0])
    assert outgoing.used == 100
    first.give(taken[1])
    assert outgoing.used == 100
    assert await first.take(50) is taken[1]
    first.close()
    second.close()
    assert outgoing.used == 0


async def test_another_length_waits_until_all_is_back() -> None:
    outgoing = Outgoing(100)
    share = Share(outgoing)
    taken = [await share.take(30), await share.take(30)]
    task = asyncio.create_task(share.take(60))
    for buffer in taken:
        await asyncio.sleep(0.001)
        assert not task.done()
        share.give(buffer)
    assert len(await task) == outgoing.used == 60
    share.close()
    assert outgoing.used == 0


async def test_cancelled_waiting_takes_nothing() -> None:
    outgoing = Outgoing(50)
    share = Share(outgoing)
    taken = await share.take(50)
    task = asyncio.create_task(share.take(50))
    await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    share.give(taken)
    assert outgoing.used == 50
    share.close()
    assert outgoing.used == 0


def turns(pace: Pace, count: int, *, in_time: bool) -> int:
    for _ in range(count):
        pace.turn(in_time=in_time)
    return pace.span


def test_a_source_that_is_fast_enough_is_asked_for_more_at_once() -> None:
    pace = Pace()
    assert pace.span == SPAN
    assert turns(pace, JUDGED - 1, in_time=True) == SPAN
    assert turns(pace, 1, in_time=True) == LONG
    turns(pace, JUDGED // 2, in_time=False)  # so few do not count
    assert turns(pace, JUDGED // 2, in_time=True) == LONG


def test_a_source_that_needs_several_connections_has_them() -> None:
    """However often it is tried: ever less of all rooms come by one connection."""
    pace, alone, rooms = Pace(), 0, 20_000
    for _ in range(rooms):
        alone += pace.span == LONG
        pace.turn(in_time=pace.span == SPAN)
    assert alone <= 100
    assert turns(Pace(), rooms, in_time=False) == SPAN
