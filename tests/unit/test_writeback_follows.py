"""An upload that follows another one: never in the store without it, and given up with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stores.cache.schema import UploadState
from stores.cache.writeback.errors import UploadCancelled
from stores.contract import ObjectInfo
from stores.errors import AlreadyExists
from tests.uploads import Host, bucket, data_of, host

WAIT_S = 30


@pytest.fixture
async def here(memory: Path) -> AsyncIterator[Host]:
    async with host(memory) as found:
        yield found


async def both(here: Host) -> tuple[str, str]:
    """The object, and what vouches for it, which is small."""
    first = await here.stage("x", data_of("x"))
    second = await here.stage("x.manifest", b"m", follows=first.upload)
    assert first.upload is not None
    assert second.upload is not None
    return first.upload, second.upload


async def state(here: Host, upload: str) -> UploadState:
    return (await here.state_of(upload)).state


async def until_in(here: Host, upload: str, wanted: UploadState) -> None:
    async with asyncio.timeout(WAIT_S):
        while await state(here, upload) is not wanted:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("end", ["none", "stop", "die"])
async def test_it_begins_when_the_first_is_stored(here: Host, end: str) -> None:
    here.store.gate.clear()
    first, second = await both(here)
    await until_in(here, first, UploadState.SENDING)
    await here.queue.retry()
    await asyncio.sleep(0.1)
    if end != "none":
        await (here.stop() if end == "stop" else here.die())
        await here.start()
        await until_in(here, first, UploadState.SENDING)
        await asyncio.sleep(0.1)
    assert await state(here, second) is UploadState.WAITING
    assert "x.manifest" not in here.store.begun
    here.store.gate.set()
    await here.queue.stored(second, deadline_s=WAIT_S)
    assert here.store.content("x") == data_of("x")
    assert here.store.made == {"x": 1, "x.manifest": 1}
    assert [event.ref for event in await here.queue.events()] == ["x", "x.manifest"]


async def test_what_was_stored_meanwhile_is_not_waited_for(here: Host) -> None:
    first = await here.stage("x", b"x")
    assert first.upload is not None
    await here.queue.stored(first.upload, deadline_s=WAIT_S)
    second = await here.stage("x.manifest", b"m", follows=first.upload)
    await here.queue.stored(second.upload or "", deadline_s=WAIT_S)
    await here.queue.acknowledge(first.upload)
    third = await here.stage("x.more", b"m", follows=first.upload)
    await here.queue.stored(third.upload or "", deadline_s=WAIT_S)


async def test_it_is_cancelled_with_the_first(here: Host) -> None:
    here.store.gate.clear()
    first, second = await both(here)
    await here.queue.cancel(first)
    here.store.gate.set()
    for upload in (first, second):
        await until_in(here, upload, UploadState.CANCELLED)
        with pytest.raises(UploadCancelled):
            await here.queue.stored(upload, deadline_s=0)
    assert here.store.made == {}
    assert await here.queue.drain(deadline_s=WAIT_S)


async def test_it_is_not_staged_when_the_first_was_cancelled(here: Host) -> None:
    here.store.gate.clear()
    first = await here.stage("x", data_of("x"))
    assert first.upload is not None

    async def second() -> ObjectInfo:
        async with here.queue.staging(
            bucket(), here.store, "x.manifest", token="c", size=1, replace=False, wait_s=0, follows=first.upload
        ) as pending:
            pending.path.write_bytes(b"m")
            await here.queue.cancel(first.upload or "")
            return await pending.commit()

    with pytest.raises(UploadCancelled):
        await second()
    here.store.gate.set()
    await until_in(here, first.upload, UploadState.CANCELLED)
    assert [upload.ref for upload in await here.queue.list()] == ["x"]


@pytest.mark.parametrize("before", [True, False], ids=["staged before", "staged after"])
async def test_what_keeps_the_first_keeps_it_too(here: Host, before: bool) -> None:
    """It is not said to wait, which would look as if it went on by itself."""
    taken = await here.stage("x", b"somebody else's", token="another")
    await here.queue.stored(taken.upload or "", deadline_s=WAIT_S)
    if before:
        here.store.gate.clear()
        first, second = await both(here)
        here.store.gate.set()
        await until_in(here, first, UploadState.FAILED)
    else:
        first = (await here.stage("x", data_of("x"))).upload or ""
        await until_in(here, first, UploadState.FAILED)
        second = (await here.stage("x.manifest", b"m", follows=first)).upload or ""
    assert await state(here, second) is UploadState.FAILED
    with pytest.raises(AlreadyExists):
        await here.queue.stored(second, deadline_s=WAIT_S)
    assert not await here.queue.drain(deadline_s=WAIT_S)
    here.queue.resume()
    await here.store.delete("x")
    assert await here.queue.retry(first) == 2
    await here.queue.stored(second, deadline_s=WAIT_S)
    assert here.store.content("x") == data_of("x")
