"""Carrying out uploads: how many parts at once, what a failure does to the others; and wrappers around uploads."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

import pytest

from stores.backends.memory import MemoryStore
from stores.contract import Kind, MiB, ObjectInfo, Silent
from stores.errors import NoSpace, Unavailable
from stores.transfer.sending import send_all
from stores.wrappers.reporting import Direction, ReportingStore
from stores.wrappers.retrying import RetryingStore
from tests.doubles.counting import Counting
from tests.doubles.faulty import Fail, FaultyStore, Hang
from tests.objects import content

TOKEN = "command"


class Counted:
    """An upload that only counts. Part `fails` fails, the others take until they are let go."""

    kind: ClassVar[Kind] = Kind.UPLOAD

    def __init__(self, parts: int, *, parallel: int = 3, fails: int | None = None) -> None:
        self.parts = parts
        self.parallel = parallel
        self.most = 0
        self.sent: list[int] = []
        self.given_up: list[int] = []
        self.committed = False
        self._fails = fails
        self._under_way = 0

    def length(self, number: int) -> int:
        return number * 10

    async def send(self, number: int) -> bool:
        self._under_way += 1
        self.most = max(self.most, self._under_way)
        try:
            if number == self._fails:
                await asyncio.sleep(0)
                raise NoSpace("full")
            await asyncio.sleep(0.001 if self._fails is None else 60)
        except asyncio.CancelledError:
            self.given_up.append(number)
            raise
        finally:
            self._under_way -= 1
        self.sent.append(number)
        return True

    async def commit(self) -> ObjectInfo:
        self.committed = True
        return ObjectInfo("object", 0)


class Advances(Silent):
    def __init__(self) -> None:
        self.total = 0

    def advance(self, count: int) -> None:
        self.total += count


@pytest.mark.parametrize(("parts", "parallel"), [(1, 4), (3, 8), (20, 3), (5, 1)])
async def test_every_part_is_sent_once_and_no_more_at_once_than_are_worth_it(parts: int, parallel: int) -> None:
    upload, progress = Counted(parts, parallel=parallel), Advances()
    await send_all(upload, progress=progress)
    assert sorted(upload.sent) == list(range(1, parts + 1))
    assert upload.most == min(parts, parallel)
    assert progress.total == sum(range(1, parts + 1)) * 10
    assert upload.committed


async def test_first_failure_gives_up_the_other_parts_and_is_raised_as_it_is() -> None:
    before = asyncio.all_tasks()
    upload = Counted(9, fails=2)
    with pytest.raises(NoSpace, match="full"):
        await send_all(upload, progress=Silent())
    assert (sorted(upload.given_up), upload.sent, upload.committed) == ([1, 3], [], False)
    assert asyncio.all_tasks() == before


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(content(2 * MiB + 1))
    return path


async def test_beginning_of_an_upload_is_tried_again_and_its_parts_are_not(source: Path) -> None:
    memory = MemoryStore()
    busy = Fail(Unavailable("busy"))
    faulty = FaultyStore(memory, {("upload", 1): busy, ("send", 2): busy})

    async def sleep(seconds: float) -> None: ...

    store = RetryingStore(faulty, sleep=sleep)

    async def send() -> ObjectInfo:
        async with store.upload("object", source, token=TOKEN) as upload:
            return await send_all(upload, progress=Silent())

    with pytest.raises(Unavailable):
        await send()
    assert (faulty.calls["upload"], faulty.calls["commit"]) == (2, 0)
    assert (await send()).size == 2 * MiB + 1


async def test_parts_are_counted_when_they_are_sent_and_not_when_they_were_there(source: Path) -> None:
    observer = Counting()
    store = ReportingStore(FaultyStore(MemoryStore(), {("send", 3): Fail(Unavailable("busy"))}), observer)
    async with store.upload("object", source, token=TOKEN) as upload:
        assert [await upload.send(number) for number in (1, 2)] == [True, True]
        with pytest.raises(Unavailable):
            await upload.send(3)
    async with store.upload("object", source, token=TOKEN) as upload:
        await send_all(upload, progress=Silent())
    assert observer.bytes == {Direction.WRITTEN: 2 * MiB + 1}
    assert observer.calls == {
        ("upload", "ok"): 2,
        ("send", "ok"): 5,
        ("send", "Unavailable"): 1,
        ("commit", "ok"): 1,
    }


async def test_cancelled_upload_ends_at_once(source: Path) -> None:
    before = asyncio.all_tasks()
    store = FaultyStore(MemoryStore(), {("send", 2): Hang()})

    async def send() -> None:
        async with store.upload("object", source, token=TOKEN) as upload:
            await send_all(upload, progress=Silent())

    task = asyncio.create_task(send())
    await store.hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == before
