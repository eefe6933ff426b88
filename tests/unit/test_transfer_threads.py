"""Blocking calls in threads: cancelled at once, or waited for; never left behind."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest

from stores.transfer.threads import BULK_NICE, SharedThreads, Threads


@pytest.fixture
def threads() -> Iterator[Threads]:
    before = set(threading.enumerate())
    found = Threads("test-thread", 2)
    yield found
    found.close()
    assert set(threading.enumerate()) == before


async def test_results_and_errors_come_back_from_a_named_thread(threads: Threads) -> None:
    assert (await threads.run(lambda: threading.current_thread().name)).startswith("test-thread")
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)


async def test_cancellation_aborts_and_waits_for_the_end(threads: Threads) -> None:
    begun, wake, ended = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        assert wake.wait(10)
        ended.set()

    task = asyncio.create_task(threads.run(call, abort=wake.set))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_cancelling_again_does_not_leave_the_call_behind(threads: Threads) -> None:
    begun, wake, ended = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        assert wake.wait(10)
        ended.set()

    task = asyncio.create_task(threads.run(call))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.002)
    assert not task.done()
    wake.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_what_has_not_begun_never_does(threads: Threads) -> None:
    wake = threading.Event()
    blockers = [asyncio.create_task(threads.run(wake.wait)) for _ in range(2)]
    called = []
    waiting = asyncio.create_task(threads.run(lambda: called.append(1)))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    wake.set()
    await asyncio.gather(*blockers)
    assert called == []


async def test_a_slow_owner_does_not_take_all_threads() -> None:
    shared = SharedThreads("test-shared", 8)
    wake = threading.Event()
    slow = shared.of("slow")
    blocked = [asyncio.create_task(slow.run(wake.wait)) for _ in range(20)]
    await asyncio.sleep(0.01)
    assert await asyncio.wait_for(shared.of("quick").run(lambda: "done"), 5) == "done"
    wake.set()
    await asyncio.gather(*blocked)
    shared.close()


async def test_bulk_threads_stand_back_and_only_they() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, 0)

    before = niceness()
    bulk = Threads("test-bulk", 1, bulk=True)
    assert await bulk.run(niceness) == min(19, before + BULK_NICE)
    bulk.close()
    assert niceness() == before
