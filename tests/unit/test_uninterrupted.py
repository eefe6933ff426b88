"""Clean-up that runs to its end, and streams that end with their context."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from stores.contract import ByteStream, ObjectInfo
from stores.streams import presented
from stores.uninterrupted import uninterrupted


class Work:
    """Something that takes until it is let go."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.begun = asyncio.Event()
        self.let_go = asyncio.Event()
        self.finished = False
        self._failure = failure

    async def __call__(self) -> str:
        self.begun.set()
        await self.let_go.wait()
        self.finished = True
        if self._failure:
            raise self._failure
        return "done"


async def test_result_and_error_come_through() -> None:
    work = Work()
    work.let_go.set()
    assert await uninterrupted(work()) == "done"
    work = Work(ZeroDivisionError())
    work.let_go.set()
    with pytest.raises(ZeroDivisionError):
        await uninterrupted(work())


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_cancelled_caller_waits_for_the_end_however_often_it_is_told(times: int) -> None:
    work = Work()
    task = asyncio.create_task(uninterrupted(work()))
    await work.begun.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not task.done()
    work.let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.finished
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_failure_of_the_work_is_the_cause_of_the_cancellation_that_hides_it() -> None:
    work = Work(ZeroDivisionError("lost"))
    task = asyncio.create_task(uninterrupted(work()))
    await work.begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    work.let_go.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


class Counted(ByteStream):
    def __init__(self) -> None:
        self.info = ObjectInfo("object", 10)
        self.open = 0

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        self.open += 1
        try:
            for number in range(10):
                yield memoryview(bytes([number]))
        finally:
            self.open -= 1


async def test_stream_left_early_is_closed_with_its_context() -> None:
    counted = Counted()
    async with presented(counted) as stream:
        async for piece in stream:
            assert bytes(piece) == b"\0"
            break
        assert counted.open == 1
    assert counted.open == 0


async def test_stream_that_nobody_read_is_fine() -> None:
    async with presented(Counted()) as stream:
        assert stream.info.size == 10


async def test_stream_is_read_once() -> None:
    async with presented(Counted()) as stream:
        assert [bytes(piece)[0] async for piece in stream] == list(range(10))
        with pytest.raises(RuntimeError):
            aiter(stream)
