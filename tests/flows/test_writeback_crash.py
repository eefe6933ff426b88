"""kill -9 between any two durable steps from staging to the acknowledged event: what was told is true, what was staged is
stored once, and nothing is leaked: in the pool, in the store, or of credentials."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stores.cache import ledger
from stores.cache.schema import UploadState
from tests.doubles.caches import nothing_left
from tests.doubles.mortal_queue import REF, SIZE, TOKEN, WAIT_S, Home, UploadLife, at_home, live
from tests.pools import content_of


@contextmanager
def life_in_a_new_place() -> Iterator[UploadLife]:
    root = Path(tempfile.mkdtemp(prefix="sa-queue-", dir="/dev/shm"))
    try:
        yield UploadLife(root)
    finally:
        shutil.rmtree(root)


def objects_of(life: UploadLife) -> list[Path]:
    return [path for path in (life.root / "store").rglob("*") if not path.is_dir()]


async def fate_of(life: UploadLife) -> str:
    """What the next process finds, and makes of it."""
    here = life.root / "store" / REF
    if "stored" in life.told:
        assert here.read_bytes() == content_of(REF, SIZE)
    found_there = here.exists()
    async with at_home(life.root) as home:
        assert home.pool.healthy
        uploads = await home.queue.list()
        committed = [upload for upload in uploads if upload.state not in (UploadState.QUEUED, UploadState.STAGING)]
        if life.told == ["staged"]:
            assert committed, "it was said to be safe"
        if life.told != ["staged", "stored"]:
            assert len(committed) <= 1
            info = await home.write()
            if info.upload is not None:
                await home.queue.stored(info.upload, deadline_s=WAIT_S)
        assert here.read_bytes() == content_of(REF, SIZE)
        for event in await home.queue.events():
            assert (event.ref, event.token, event.state) == (REF, TOKEN, UploadState.STORED)
            await home.queue.acknowledge(event.id)
        await home.until_nothing_is_needed()
        await is_clean(home)
    assert objects_of(life) == [here]
    assert list((life.root / "credentials").iterdir()) == []
    return (
        f"{' '.join(life.told) or 'nothing told'}, {len(committed)} committed, {'stored' if found_there else 'absent'}"
    )


async def is_clean(home: Home) -> None:
    """What the dead held is given back as soon as they are known to be dead."""
    async with asyncio.timeout(WAIT_S):
        while (await home.pool.transact(lambda tx: ledger.statistics(tx, home.pool.name))).fills:
            await asyncio.sleep(0.01)
    await nothing_left(home.pool)


async def test_death_between_any_two_durable_steps_of_an_upload() -> None:
    with life_in_a_new_place() as life:
        steps = live(life)
        assert steps is not None
        assert await fate_of(life) == "staged stored, 0 committed, stored"
    assert {"open", "os.rename", "os.remove", "fsync", "_run", "rename_noreplace"} <= set(steps)
    fates: set[str] = set()
    some = asyncio.Semaphore(4)

    async def die(step: int) -> None:
        async with some:
            with life_in_a_new_place() as life:
                died = await asyncio.to_thread(live, UploadLife(life.root, die_at=step)) is None
                # Looks at the ledger are transactions too, and come now and then, so the last ones may not come again.
                assert died or step > len(steps) - 10, f"step {step} of {steps} was not reached"
                fates.add(await fate_of(life))

    async with asyncio.TaskGroup() as tasks:
        for step in range(1, len(steps) + 1):
            tasks.create_task(die(step))
    assert {
        "nothing told, 0 committed, absent",
        "staged, 1 committed, absent",
        "staged, 1 committed, stored",
        "staged stored, 0 committed, stored",
    } <= fates
