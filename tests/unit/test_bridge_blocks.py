"""What the bridge keeps in memory, what it reads of the store, and when it reads ahead."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.bridge.blocks import PAGE, RUN, SPAN, BlockCache, Memory
from stores.bridge.readahead import ReadAhead
from stores.contract import Ahead, BlockingCalls, GiB, MiB, ObjectInfo, RangeReader
from stores.errors import Unavailable

SIZE = 8 * MiB + 1000


CONTENT = random.Random(1).randbytes(SIZE)


class Recorder(RangeReader):
    """Fixed content; remembers what was read, and waits for `gate`."""

    def __init__(self, size: int = SIZE) -> None:
        self.info = ObjectInfo("object", size, version="1")
        self.reads: list[tuple[int, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Unavailable | None = None

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reads.append((offset, len(buffer)))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        buffer[:] = CONTENT[offset : offset + len(buffer)]


@asynccontextmanager
async def opened(reader: Recorder, *, memory: int = 4 * MiB) -> AsyncIterator[BlockCache]:
    assert reader.info.size is not None
    async with BlockCache(reader, reader.info.size, Memory(memory)) as cache:
        yield cache


async def read(cache: BlockCache, offset: int, length: int, *, sequential: bool = False) -> bytes:
    data = b""
    while len(data) < length:
        at = offset + len(data)
        async with cache.pinned(at, length - len(data), sequential=sequential) as view:
            assert 0 < len(view) <= length - len(data)
            data += view
    return data


async def test_a_random_read_fetches_its_pages_and_no_more() -> None:
    reader = Recorder()
    async with opened(reader) as cache:
        assert await read(cache, PAGE - 2, 4) == CONTENT[PAGE - 2 : PAGE + 2]
        assert await read(cache, 10, 20) == CONTENT[10:30]
    assert reader.reads == [(0, 2 * PAGE)]


async def test_a_sequential_read_fetches_to_the_border_of_the_run_once() -> None:
    reader = Recorder()
    async with opened(reader) as cache:
        for offset in range(RUN // 2, RUN + RUN // 2, RUN // 4):
            await read(cache, offset, RUN // 4, sequential=True)
    assert reader.reads == [(RUN // 2, RUN // 2), (RUN, RUN)]


async def test_the_end_of_the_object_is_not_passed() -> None:
    reader = Recorder()
    async with opened(reader) as cache:
        assert await read(cache, SIZE - 5, 5) == CONTENT[SIZE - 5 : SIZE]
        await read(cache, 8 * MiB, 10, sequential=True)
    assert reader.reads == [(8 * MiB, 1000)]


async def test_many_who_want_a_page_share_one_read() -> None:
    reader = Recorder()
    reader.gate.clear()
    async with opened(reader) as cache, asyncio.TaskGroup() as group:
        readers = [group.create_task(read(cache, 100 * n, 100)) for n in range(20)]
        await asyncio.sleep(0)
        reader.gate.set()
    assert [task.result()[0] for task in readers] == [CONTENT[100 * n] for n in range(20)]
    assert reader.reads == [(0, PAGE)]


async def test_whoever_gives_up_does_not_spoil_it_for_the_others() -> None:
    reader = Recorder()
    reader.gate.clear()
    async with opened(reader) as cache:
        first = asyncio.create_task(read(cache, 0, 10))
        second = asyncio.create_task(read(cache, 5, 10))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        reader.gate.set()
        assert await second == CONTENT[5:15]
    assert reader.reads == [(0, PAGE)]


async def test_a_failure_is_told_to_all_who_waited_and_the_next_one_tries_again() -> None:
    reader = Recorder()
    async with opened(reader) as cache:
        reader.error = Unavailable("the store is away")
        results = await asyncio.gather(read(cache, 0, 1), read(cache, 1, 1), return_exceptions=True)
        assert all(result is reader.error for result in results)
        reader.error = None
        assert await read(cache, 0, 1) == CONTENT[:1]
    assert reader.reads == [(0, PAGE)] * 2


@pytest.mark.parametrize("sequential", [True, False])
async def test_memory_is_never_passed_however_much_is_wanted(sequential: bool) -> None:
    reader = Recorder()
    reader.gate.clear()
    async with opened(reader) as cache, asyncio.TaskGroup() as group:
        for offset in range(0, SIZE - MiB, MiB // 2):
            group.create_task(read(cache, offset, MiB // 2, sequential=sequential))
        for _ in range(100):
            await asyncio.sleep(0)
        assert sum(length for _, length in reader.reads) <= 4 * MiB
        reader.gate.set()


async def test_reading_ahead_takes_only_memory_that_nobody_needs() -> None:
    reader = Recorder()
    async with opened(reader) as cache:
        cache.begin(0, SIZE, sequential=True)
        async with asyncio.timeout(30):
            while len(reader.reads) < 4:
                await asyncio.sleep(0.001)
        assert reader.reads == [(n * RUN, RUN) for n in range(4)]
        cache.begin(4 * RUN, SIZE, sequential=True)
        assert len(reader.reads) == 4, "what was read ahead is not dropped for more of the same"
        await read(cache, 6 * RUN, 10)
        assert reader.reads[4:] == [(6 * RUN, PAGE)], "but for what is needed now it is"


async def test_what_a_sequential_reader_has_had_makes_room() -> None:
    reader = Recorder()
    async with opened(reader) as cache:
        for n in range(8):
            await read(cache, n * RUN, RUN, sequential=True)
            cache.begin((n + 1) * RUN, (n + 3) * RUN, sequential=True)
    assert sorted(reader.reads) == [(n * RUN, RUN) for n in range(8)] + [(8 * RUN, 1000)]


class Spans(Recorder):
    """Remembers how much was to come with each request; holds up every buffer but the first ones until `gate`."""

    def __init__(self, size: int = SIZE, *, at_once: int = 100) -> None:
        super().__init__(size)
        self.spans: list[tuple[int, int]] = []
        self.at_once = at_once

    async def read_each(
        self,
        take: Callable[[], tuple[int, memoryview] | None],
        put: Callable[[int, memoryview], None],
        threads: BlockingCalls,
        *,
        ahead: Ahead = lambda: (),
    ) -> None:
        wanted = take()
        assert wanted is not None
        self.spans.append((wanted[0], len(wanted[1]) + sum(length for _, length in ahead())))
        served = 0
        while wanted is not None:
            served += 1
            if served > self.at_once:
                await self.gate.wait()
            await self.read_into(*wanted)
            put(*wanted)
            wanted = take()


async def test_runs_that_follow_each_other_come_with_one_request() -> None:
    reader = Spans()
    async with opened(reader, memory=32 * MiB) as cache:
        await read(cache, 2 * RUN, 10)
        cache.begin(0, SIZE, sequential=True)
        assert await read(cache, 0, SIZE, sequential=True) == CONTENT
    assert reader.spans == [(2 * RUN, PAGE), (0, 2 * RUN), (2 * RUN + PAGE, SIZE - 2 * RUN - PAGE)]


async def test_no_request_is_longer_than_a_span() -> None:
    reader = Spans(size=SPAN + 5)
    async with opened(reader, memory=32 * MiB) as cache:
        cache.begin(0, SPAN + 5, sequential=True)
        await asyncio.sleep(0)
    assert reader.spans == [(0, SPAN), (SPAN, 5)]


async def test_each_run_is_of_use_as_soon_as_it_is_there() -> None:
    reader = Spans(at_once=1)
    async with opened(reader) as cache, asyncio.timeout(10):
        cache.begin(0, 3 * RUN, sequential=True)
        reader.gate.clear()
        reader.reads.clear()
        first = asyncio.create_task(read(cache, 0, RUN, sequential=True))
        second = asyncio.create_task(read(cache, RUN, RUN, sequential=True))
        await asyncio.sleep(0.01)
        reader.gate.set()
        assert await first == CONTENT[:RUN]
        assert await second == CONTENT[RUN : 2 * RUN]
    assert reader.spans == [(0, 3 * RUN)]


async def test_what_came_before_a_failure_stays_and_the_rest_is_tried_again() -> None:
    class Breaking(Spans):
        async def read_into(self, offset: int, buffer: memoryview) -> None:
            self.error = Unavailable("the store is away") if offset == RUN and len(self.spans) == 1 else None
            await super().read_into(offset, buffer)

    reader = Breaking()
    async with opened(reader) as cache:
        cache.begin(0, 3 * RUN, sequential=True)
        assert await read(cache, 0, RUN) == CONTENT[:RUN]
        for start in (RUN, 2 * RUN):
            assert await read(cache, start, 10) == CONTENT[start : start + 10]
    assert reader.reads == [(0, RUN), (RUN, RUN), (RUN, PAGE), (2 * RUN, PAGE)]


async def test_the_end_of_the_context_ends_the_loads() -> None:
    reader = Recorder()
    reader.gate.clear()

    async def holder() -> None:
        async with opened(reader) as cache:
            cache.begin(0, RUN, sequential=True)
            await asyncio.Event().wait()

    task = asyncio.create_task(holder())
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert reader.reads == [(0, RUN)]
    assert asyncio.all_tasks() == {asyncio.current_task()}


# ------------------------------------------------------------------------------------------------- read-ahead


def test_a_sequential_reader_is_recognised_and_the_window_grows() -> None:
    ahead = ReadAhead(GiB, window=8 * MiB, span=MiB)
    spans = []
    for n in range(40):
        advice = ahead.observe(n * MiB // 2, MiB // 2)
        spans.append(advice.stop - (n + 1) * MiB // 2)
    assert spans[0] == 0
    assert spans[1] == 1 * MiB
    assert spans[-1] == 8 * MiB


def test_every_byte_is_advised_once() -> None:
    ahead = ReadAhead(20 * MiB, window=8 * MiB, span=MiB)
    advised = [ahead.observe(offset, MiB) for offset in range(0, 20 * MiB, MiB)]
    spans = [(a.start, a.stop) for a in advised if a.start < a.stop]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    assert spans[-1][1] == 20 * MiB


def test_an_open_window_is_advised_in_whole_spans() -> None:
    ahead = ReadAhead(100 * MiB + 1, window=16 * MiB, span=8 * MiB)
    advised = [ahead.observe(offset, 2 * MiB) for offset in range(0, 100 * MiB, 2 * MiB)]
    spans = [(a.start, a.stop) for a in advised if a.start < a.stop]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    later = [span for span in spans if span[0] >= 32 * MiB]
    assert all(start % (8 * MiB) == 0 and stop - start == 8 * MiB for start, stop in later[:-1])
    assert spans[-1][1] == 100 * MiB + 1


def test_four_readers_far_apart_are_four_streams() -> None:
    ahead = ReadAhead(GiB, window=8 * MiB, span=MiB)
    last = [ahead.observe(base * 200 * MiB + n * MiB, MiB) for n in range(4) for base in range(4)][-4:]
    assert all(advice.sequential and advice.stop > advice.start for advice in last)


def test_requests_out_of_order_are_still_one_stream() -> None:
    ahead = ReadAhead(GiB, window=8 * MiB, span=MiB)
    advice = [ahead.observe(n * MiB, MiB) for n in (1, 0, 3, 2, 5, 4, 7, 6)]
    assert advice[-1].sequential


@given(st.lists(st.tuples(st.integers(0, 1023), st.integers(1, 48)), max_size=80))
def test_needless_reading_ahead_is_never_more_than_what_was_asked_for(requests: list[tuple[int, int]]) -> None:
    pages = 1024
    ahead = ReadAhead(pages * PAGE, window=8 * MiB, span=MiB)
    wanted: set[int] = set()
    advised: set[int] = set()
    asked = 0
    for first, count in requests:
        last = min(first + count, pages)
        advice = ahead.observe(first * PAGE, (last - first) * PAGE)
        assert advice.start <= advice.stop <= pages * PAGE
        wanted.update(range(first, last))
        advised.update(range(advice.start // PAGE, advice.stop // PAGE))
        asked += last - first
        assert len(advised - wanted) <= asked


def test_scattered_small_reads_are_not_a_stream() -> None:
    ahead = ReadAhead(GiB, window=8 * MiB, span=MiB)
    assert not any(ahead.observe(n * 37 * PAGE % (512 * MiB), 4096).sequential for n in range(60))
