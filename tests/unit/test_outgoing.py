"""What is sent is let go of before the store that it was sent to is waited for."""

from __future__ import annotations

import asyncio

import pytest

from hypervisors.outgoing import letting_go
from stores.backends.s3_parts import Cut
from stores.contract import ObjectInfo
from stores.errors import Unavailable
from stores.transfer import parted
from stores.transfer.outgoing import Outgoing
from stores.transfer.parted import PartedObject

CUT = Cut(smallest=4)
SIZE = 3 * CUT.smallest


class Slow(PartedObject):
    """A server that takes parts for ever, or fails the last, and whose parts are not removed before it is `free`."""

    single = 0

    def __init__(self, *, fails: bool = False) -> None:
        self.free = asyncio.Event()
        self.begun = asyncio.Event()
        self.aborted = False
        self._fails = fails

    async def begin(self) -> None: ...

    async def part(self, number: int, view: memoryview) -> None:
        if number == SIZE // CUT.smallest:
            self.begun.set()
            if self._fails:
                raise Unavailable("broken")
        await asyncio.Event().wait()

    async def put(self, view: memoryview) -> ObjectInfo:
        raise AssertionError

    async def complete(self, count: int, size: int) -> ObjectInfo:
        raise AssertionError

    async def abort(self) -> None:
        await self.free.wait()
        self.aborted = True


async def sent(target: Slow, let_go: asyncio.Event) -> None:
    async def going() -> None:
        let_go.set()

    async with parted.parted(target, Outgoing(), "object", size=SIZE, cut=CUT) as stream:
        await letting_go(stream.write(memoryview(bytes(SIZE))), going)


@pytest.mark.parametrize("fails", [False, True])
async def test_cancelled_or_failed_it_is_let_go_first(fails: bool) -> None:
    """All of it was taken: what is waited for is the server."""
    target, let_go = Slow(fails=fails), asyncio.Event()
    task = asyncio.create_task(sent(target, let_go))
    await target.begun.wait()
    if not fails:
        assert not let_go.is_set()
        task.cancel()
    await let_go.wait()
    assert not task.done()
    assert not target.aborted
    target.free.set()
    with pytest.raises(Unavailable if fails else asyncio.CancelledError):
        await task
    assert target.aborted
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_server_that_does_not_tidy_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parted, "ABORT_S", 0.01)
    target = Slow(fails=True)
    with pytest.raises(Unavailable):
        await sent(target, asyncio.Event())
    assert not target.aborted
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_work_that_cannot_be_interrupted_is_waited_for_afterwards() -> None:
    order: list[str] = []
    free, begun = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await free.wait()
            order.append("ended")

    async def let_go() -> None:
        order.append("let go")
        free.set()

    task = asyncio.create_task(letting_go(stubborn(), let_go))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert order == ["let go", "ended"]


async def test_result_and_failure_come_through_after_it() -> None:
    order: list[str] = []

    async def let_go() -> None:
        order.append("let go")

    async def work(fails: bool) -> str:
        order.append("work")
        if fails:
            raise Unavailable("broken")
        return "done"

    assert await letting_go(work(fails=False), let_go) == "done"
    with pytest.raises(Unavailable):
        await letting_go(work(fails=True), let_go)
    assert order == ["work", "let go"] * 2
