"""Uploads as commands, operators and monitoring meet them: waited for, given up, drained, and told of when they are late."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
import structlog

from agent.dispatcher import DispatcherStatus
from agent.draining import Drain
from agent.metrics import Metrics
from agent.upload_service import UploadService
from agent.upload_watch import watch
from stores.backends.memory import MemoryStore
from stores.cache.health import PoolSick
from stores.cache.writeback.errors import QueueDraining, UploadCancelled, UploadOver, UploadPending, UploadUnknown
from stores.errors import TooLarge
from tests.doubles.staging import Staging, staging


class Commands:
    """A dispatcher with so many commands under way."""

    def __init__(self, running: int = 0) -> None:
        self.running = running
        self.draining = False

    def drain(self, draining: bool) -> None:
        self.draining = draining

    async def idle(self, seconds: float) -> bool:
        return not self.running

    def status(self) -> DispatcherStatus:
        return DispatcherStatus(True, self.draining, True, 0, self.running, 10, 8)


async def state_of(here: Staging, upload: str) -> str:
    return (await here.service.show(upload)).state


async def until_state(here: Staging, upload: str, *states: str) -> None:
    async with asyncio.timeout(20):
        while await state_of(here, upload) not in states:
            await asyncio.sleep(0.01)


async def test_waiting_for_an_upload(tmp_path: Path) -> None:
    there = MemoryStore()
    async with staging(tmp_path, there) as here:
        here.close()
        upload = await here.put("a", data=b"x" * 1000)
        waiting = await here.service.wait(upload, 0.05)
        assert (waiting.state in ("waiting", "sending"), waiting.size, waiting.command) == (True, 1000, "c-1")
        with pytest.raises(UploadPending) as pending:
            await here.service.settle("c-1", give_up=False)
        assert pending.value.details["upload"] == upload
        here.open()
        await here.service.retry(upload)
        stored = await here.service.wait(upload, 20)
        assert (stored.state, stored.sent, stored.error) == ("stored", 1000, None)
        assert (await there.stat("a")).size == 1000
        await here.service.settle("c-1", give_up=False)
        with pytest.raises(UploadOver):
            await here.service.cancel(upload)


async def test_what_a_command_has_staged_is_given_up_with_it(tmp_path: Path) -> None:
    there = MemoryStore()
    async with staging(tmp_path, there) as here:
        here.close()
        mine, other = await here.put("a", token="c-1"), await here.put("b", token="c-2")
        await here.service.settle("c-1", give_up=True)
        here.open()
        await here.service.stored(other)
        await until_state(here, mine, "cancelled")
        with pytest.raises(UploadCancelled):
            await here.service.stored(mine)
        assert [info.ref async for info in there.list()] == ["b"]


async def test_an_upload_that_failed_says_why_and_goes_on_when_told(tmp_path: Path) -> None:
    async with staging(tmp_path) as here:
        here.close(TooLarge("the store takes no more than 1 byte", limit=1, seen=7))
        upload = await here.put("a")
        failed = await here.service.wait(upload, 20)
        assert failed.state == "failed"
        assert failed.error is not None
        assert failed.error["kind"] == "TooLarge"
        with pytest.raises(TooLarge):
            await here.service.settle("c-1", give_up=False)
        here.open()
        assert await here.service.retry(None) == 1
        assert (await here.service.wait(upload, 20)).state == "stored"


async def test_an_upload_that_nobody_knows(tmp_path: Path) -> None:
    async with staging(tmp_path) as here:
        for asked in (
            here.service.show("x"),
            here.service.wait("x", 0),
            here.service.retry("x"),
            here.service.cancel("x"),
        ):
            with pytest.raises(UploadUnknown):
                await asked
    none = UploadService()
    assert (await none.uploads()).uploads == []
    assert await none.retry(None) == 0
    await none.settle("c-1", give_up=True)
    with pytest.raises(UploadUnknown, match="no cache"):
        await none.show("x")


# ------------------------------------------------------------------------------------------------------------ draining


async def test_a_drain_is_over_when_everything_is_stored(tmp_path: Path) -> None:
    async with staging(tmp_path) as here:
        commands = Commands(running=1)
        drain = Drain(commands, here.service)
        assert (await drain.status(0)).model_dump() == {
            "draining": False, "stored": False, "commands": 1, "uploads": 0, "bytes": 0, "blocked": 0,
        }  # fmt: skip
        drain.begin()
        here.close()
        await here.put("a", data=b"x" * 10)  # what runs already may still stage
        commands.running = 0
        busy = await drain.status(0.05)
        assert (busy.draining, busy.stored, busy.uploads, busy.bytes, busy.blocked) == (True, False, 1, 10, 0)
        with pytest.raises(QueueDraining):
            await here.put("b", token="c-2")
        here.open()
        await here.service.retry(None)
        done = await drain.status(20)
        assert (done.stored, done.uploads, done.commands) == (True, 0, 0)
        drain.end()
        assert not (await drain.status(0)).draining
        await here.put("b", token="c-2")


async def test_a_drain_does_not_wait_for_what_only_an_operator_can_help(tmp_path: Path) -> None:
    async with staging(tmp_path) as here:
        here.close()
        refused = await here.put("a")
        here.secret = "another key since"
        await until_state(here, refused, "refused")
        drain = Drain(Commands(), here.service)
        drain.begin()
        async with asyncio.timeout(20):
            left = await drain.status(3600)
        assert (left.stored, left.uploads, left.blocked) == (False, 1, 1)


async def test_nobody_says_stored_of_what_cannot_be_looked_at(tmp_path: Path) -> None:
    async with staging(tmp_path) as here:
        here.close()
        await here.put("a")
        here.pool.access.health.fails("the disk is gone")
        with pytest.raises(PoolSick):
            await Drain(Commands(), here.service).status(0)
        with pytest.raises(PoolSick):
            await here.service.settle("c-1", give_up=False)
        assert (await here.service.uploads()).uploads == []


# ---------------------------------------------------------------------------------------------------------- monitoring


async def test_late_uploads_are_told_of_once_and_once_more_when_that_is_over(tmp_path: Path) -> None:
    async with staging(tmp_path) as here:
        here.close()
        upload = await here.put("a", data=b"x" * 1000)
        metrics = Metrics()
        with structlog.testing.capture_logs() as logs:
            watching = asyncio.create_task(watch(here.queue, metrics.uploads, alarm_s=0.05, interval_s=0.01))
            await asyncio.sleep(0.3)
            text = metrics.render().decode()
            assert "storage_agent_upload_unstored_bytes 1000.0" in text
            assert "storage_agent_upload_attempts_total 0.0" not in text
            here.open()
            await here.service.retry(None)
            await here.service.stored(upload)
            await asyncio.sleep(0.1)
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        assert [log["event"] for log in logs if log["event"].startswith("uploads are")] == [
            "uploads are late",
            "uploads are in time again",
        ]
        text = metrics.render().decode()
        assert "storage_agent_upload_unstored_bytes 0.0" in text
        assert "storage_agent_upload_stored_total 1.0" in text
        assert "storage_agent_upload_sent_bytes_total 1000.0" in text
