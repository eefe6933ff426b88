"""An upload queue in a process of its own that dies at a chosen durable step: see `tests.doubles.mortal_pool`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from stores.backends import draft
from stores.backends.filesystem import FilesystemStore
from stores.cache.pool import Pool
from stores.cache.settings import WritebackSettings
from stores.cache.writeback.queue import UploadQueue
from stores.contract import KiB, ObjectInfo
from stores.to import ImageStoreTO
from stores.transfer.engine import TransferEngine
from tests.doubles.mortal_pool import Steps, steps_of
from tests.pools import content_of, running

REF = "folder/x"
TOKEN = "command"
SIZE = 300 * KiB
WAIT_S = 30.0


@dataclass(frozen=True)
class UploadLife:
    """One object is staged, stored, and its event acknowledged: its steps are counted."""

    root: Path
    die_at: int | None = None

    @property
    def told(self) -> list[str]:
        """What was answered, in order: staged, stored."""
        return (self.root / "told").read_text().split()


@dataclass
class Home:
    pool: Pool
    queue: UploadQueue
    store: FilesystemStore
    credentials: Path

    async def write(self) -> ObjectInfo:
        """As a command does that may have been there before."""
        joined = await self.queue.staged(self.store, REF, token=TOKEN)
        if joined is not None:
            return joined
        to = ImageStoreTO.model_validate({"uri": "file:///nowhere"})
        async with self.queue.staging(
            to, self.store, REF, token=TOKEN, size=SIZE, replace=False, wait_s=WAIT_S
        ) as pending:
            pending.path.write_bytes(content_of(REF, SIZE))
            return await pending.commit()

    async def until_nothing_is_needed(self) -> None:
        """No upload, and no credentials."""
        async with asyncio.timeout(WAIT_S):
            while await self.queue.list() or any(self.credentials.iterdir()):
                await asyncio.sleep(0.02)


@asynccontextmanager
async def at_home(root: Path) -> AsyncIterator[Home]:
    """Pool, queue and store of a life."""
    (root / "store").mkdir(exist_ok=True)
    engine = TransferEngine()
    store = FilesystemStore(root / "store", engine, id="file:store", allowed=(root,))
    try:
        async with running(root / "pool", units=8) as pool:
            queue = UploadQueue(
                [pool],
                WritebackSettings(first_retry_s=0.01, last_retry_s=0.05),
                credentials=root / "credentials",
                open_store=lambda to: store,
                tick_s=1.0,
            )
            await queue.start()
            try:
                yield Home(pool, queue, store, root / "credentials")
            finally:
                await queue.aclose()
    finally:
        await store.aclose()
        await engine.aclose()


async def _use(life: UploadLife, steps: Steps, told: int) -> None:
    async with at_home(life.root) as home:
        steps.counting = True
        info = await home.write()
        os.write(told, b"staged\n")
        assert info.upload is not None
        await home.queue.stored(info.upload, deadline_s=WAIT_S)
        os.write(told, b"stored\n")
        await home.queue.acknowledge(info.upload)
        await home.until_nothing_is_needed()
        steps.counting = False


def _live(life: UploadLife, steps_told: Path) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    steps = Steps(life.die_at)
    steps.watch(reading=False)
    draft.rename_noreplace = steps.counted(draft.rename_noreplace)
    told = os.open(life.root / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    asyncio.run(_use(life, steps, told))
    steps_told.write_text(json.dumps(steps.taken))


def live(life: UploadLife) -> list[str] | None:
    """In a new process: the steps that it took. None: died as told."""
    return steps_of(_live, life, life.root, life.die_at)
