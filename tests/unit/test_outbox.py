"""The outbox: every upload that was answered as staged has one event, which comes until it is acknowledged."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agent.outbox import Outbox
from agent.upload_service import UploadService
from stores.backends.memory import MemoryStore
from tests.doubles.staging import Staging, staging


def outbox(here: Staging, *, busy: str = "") -> Outbox:
    """`busy`: a command that is not answered yet."""
    return Outbox(here.service, lambda command: command == busy, look_s=0.01)


async def seen(here: Staging, *, wait_s: float = 0) -> list[tuple[str, str, str]]:
    """Event, what it is of, and whose."""
    found = (await outbox(here).events(limit=100, wait_s=wait_s)).events
    return [(event.event, ",".join(upload.ref for upload in event.uploads), event.id) for event in found]


async def test_an_event_comes_again_until_it_is_acknowledged_over_restarts(tmp_path: Path) -> None:
    there = MemoryStore()
    async with staging(tmp_path, there) as here:
        upload = await here.put("a", token="c-7")
        assert await seen(here, wait_s=20) == [("stored", "a", "c-7")]
        assert await seen(here) == [("stored", "a", "c-7")]
    async with staging(tmp_path, there) as here:
        (event,) = (await outbox(here).events(limit=10, wait_s=0)).events
        (shown,) = event.uploads
        assert (event.id, shown.command, shown.id, shown.state) == ("c-7", "c-7", upload, "stored")
        assert shown.sent == shown.size == len(b"content")
        await outbox(here).acknowledge(event.id)
        assert await seen(here) == []
        await outbox(here).acknowledge(event.id)  # it may have to be sent twice
    async with staging(tmp_path, there) as here:
        assert await seen(here) == []


async def test_a_reader_waits_for_the_first_event(tmp_path: Path) -> None:
    async with staging(tmp_path) as here:
        here.close()
        await here.put("a")
        assert await seen(here, wait_s=0.1) == []
        reading = asyncio.create_task(seen(here, wait_s=60))
        await asyncio.sleep(0.05)
        assert not reading.done()
        here.open()
        await here.service.retry(None)
        async with asyncio.timeout(20):
            assert await reading == [("stored", "a", "c-1")]


async def test_a_reader_may_go_away(tmp_path: Path) -> None:
    async with staging(tmp_path) as here:
        reading = asyncio.create_task(seen(here, wait_s=60))
        await asyncio.sleep(0.05)
        reading.cancel()
        await asyncio.wait([reading])
        await here.put("a")
        assert await seen(here, wait_s=20) == [("stored", "a", "c-1")]


async def test_what_was_given_up_is_told_too(tmp_path: Path) -> None:
    async with staging(tmp_path) as here:
        here.close()
        upload = await here.put("a")
        await here.service.cancel(upload)
        here.open()
        assert await seen(here, wait_s=20) == [("cancelled", "a", "c-1")]


async def test_what_somebody_waits_for_has_no_event(tmp_path: Path) -> None:
    async with staging(tmp_path) as here:
        waited_for = await here.put("a", announce=False)
        await here.service.stored(waited_for)
        await here.put("b", token="c-2")
        assert await seen(here, wait_s=20) == [("stored", "b", "c-2")]


async def test_a_page_at_a_time(tmp_path: Path) -> None:
    async with staging(tmp_path) as here:
        uploads = [await here.put(f"o{number}", token=f"c-{number}") for number in range(5)]
        for upload in uploads:
            await here.service.stored(upload)
        taken = []
        while events := (await outbox(here).events(limit=2, wait_s=0)).events:
            assert len(events) <= 2
            for event in events:
                taken.append(event.id)
                await outbox(here).acknowledge(event.id)
        assert taken == [f"c-{number}" for number in range(5)]


async def test_a_command_has_one_event_when_all_that_it_staged_has_ended(tmp_path: Path) -> None:
    async with staging(tmp_path) as here:
        await here.service.stored(await here.put("disk"))
        here.close()
        manifest = await here.put("manifest")
        assert await seen(here) == []
        await outbox(here).acknowledge("c-1")  # too early: nobody can have seen it
        here.open()
        await here.service.retry(manifest)
        assert await seen(here, wait_s=20) == [("stored", "disk,manifest", "c-1")]
        await outbox(here).acknowledge("c-1")
        assert await seen(here) == []
        assert (await here.service.uploads()).uploads == []


async def test_a_command_that_is_not_answered_yet_has_no_event(tmp_path: Path) -> None:
    async with staging(tmp_path) as here:
        await here.service.stored(await here.put("disk"))
        early = outbox(here, busy="c-1")
        assert (await early.events(limit=10, wait_s=0)).events == []
        await early.acknowledge("c-1")
        assert await seen(here) == [("stored", "disk", "c-1")]


async def test_half_of_it_is_not_stored(tmp_path: Path) -> None:
    async with staging(tmp_path) as here:
        await here.service.stored(await here.put("disk"))
        here.close()
        await here.service.cancel(await here.put("manifest"))
        here.open()
        assert await seen(here, wait_s=20) == [("cancelled", "disk,manifest", "c-1")]


async def test_without_a_cache_there_is_nothing_to_tell() -> None:
    outbox = Outbox(UploadService(), lambda command: False, look_s=0.01)
    assert (await outbox.events(limit=10, wait_s=0.02)).events == []
    await outbox.acknowledge("anything")
