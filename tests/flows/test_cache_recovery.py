"""kill -9 between any two durable steps of a fill, an eviction or a recovery: the bound holds before and after the next start,
an entry is whole or absent, and nothing is leaked."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stores.cache.pool import Fill, Following, Held, Missing, Pool
from tests.doubles.mortal_pool import Life, live
from tests.pools import (
    SIZE,
    add,
    bytes_on_disk,
    content_of,
    has,
    is_tidy,
    key_of,
    make_pool,
    publish,
    put,
    running,
    settings_of,
)


@contextmanager
def life_in_a_new_place() -> Iterator[Life]:
    root = Path(tempfile.mkdtemp(prefix="sa-pool-"))
    try:
        yield Life(root)
    finally:
        shutil.rmtree(root)


async def is_accounted_for(life: Life) -> str:
    """What the next start made of the object that was being fetched."""
    limit = settings_of(life.directory, units=2).limit
    assert bytes_on_disk(life.directory) <= limit
    async with running(life.directory, units=2, high=1.0) as pool:
        assert pool.healthy, pool.ailment
        assert bytes_on_disk(life.directory) <= limit
        fate = await finish(pool, "c")
        assert [await has(pool, name) for name in "bc"] == [True, True], "only the oldest has to make room"
        assert await is_tidy(pool)
        await add(pool, "d")
        assert [await has(pool, name) for name in "bcd"] == [False, True, True]
        assert await is_tidy(pool)
    return fate


async def finish(pool: Pool, name: str) -> str:
    """Have it, whatever is there of it."""
    match await pool.find(key_of(name), "test"):
        case Held() as held:
            fate = "adopted" if pool.counts.adopted else "whole"
        case Fill() as fill:
            for start, end in fill.whole:
                assert fill.path.read_bytes()[start:end] == content_of(name)[start:end]
            held = await publish(pool, fill, name)
            fate = "gone on with" if fill.whole else "begun"
        case Missing():
            held = await put(pool, name)
            fate = "absent"
        case Following() as following:
            raise AssertionError(f"who fills it is dead: {following}")
    await pool.unpin(held)
    return fate


async def test_death_between_any_two_durable_steps_of_a_fill() -> None:
    with life_in_a_new_place() as life:
        steps = live(life)
        assert steps is not None
        assert await is_accounted_for(life) == "whole"
    assert {"open", "os.rename", "os.remove", "fsync", "fdatasync", "_run"} <= set(steps)
    fates = set()
    for step in range(1, len(steps) + 1):
        with life_in_a_new_place() as life:
            died = live(Life(life.root, die_at=step)) is None
            # Upkeep takes steps of its own now and then, so the last ones may not come again.
            assert died or step > len(steps) - 5, f"step {step} of {steps} was not reached"
            fates.add(await is_accounted_for(life))
    assert fates == {"absent", "begun", "gone on with", "adopted", "whole"}


async def test_death_in_the_middle_of_a_start() -> None:
    with life_in_a_new_place() as life:
        steps = live(life)
        assert steps is not None
    in_start = 1
    died = True
    while died:
        with life_in_a_new_place() as life:
            live(Life(life.root, die_at=len(steps) - 4))
            died = live(Life(life.root, die_at=in_start, counts="start")) is None
            await is_accounted_for(life)
        in_start += 1
    assert in_start > 5


@pytest.mark.parametrize("step", [1, 100, 266])
async def test_death_in_the_middle_of_the_very_first_start(step: int) -> None:
    with life_in_a_new_place() as life:
        live(Life(life.root, counts="start", die_at=step))
        assert live(Life(life.root)) is not None
        assert await is_accounted_for(life) == "whole"


async def touches_of_a_start(directory: Path, entries: int) -> int:
    async with running(directory, units=40) as pool:
        for number in range(entries):
            await add(pool, f"{number}", 4096)
    again = make_pool(directory, units=40)
    touch, seen = again.access.touch, []

    async def counted(call: Callable[[], object], *, size: int = 0) -> object:
        seen.append(call)
        return await touch(call, size=size)

    again.access.touch = counted  # type: ignore[assignment, method-assign]
    await again.start()
    count = len(seen)
    await again.stop()
    return count


async def test_a_start_takes_time_in_proportion_to_what_was_in_flight(tmp_path: Path) -> None:
    """Counted in touches of the directory."""
    few, many = await touches_of_a_start(tmp_path / "few", 3), await touches_of_a_start(tmp_path / "many", 30)
    assert few == many < 20


@pytest.mark.parametrize("folder", ["fill", "objects/ab", "quarantine", "."])
async def test_unknown_files_are_never_deleted(tmp_path: Path, folder: str) -> None:
    async with running(tmp_path / "pool") as pool:
        await add(pool, "a")
    stranger = tmp_path / "pool" / folder / "ab-stranger"
    stranger.write_bytes(bytes(SIZE))
    async with running(tmp_path / "pool") as pool:
        async with asyncio.timeout(20):
            while not pool.counts.stray_files:
                await asyncio.sleep(0.01)
        found = await pool.find(key_of("a"), "test")
        assert isinstance(found, Held)
        await pool.unpin(found)
        assert pool.counts.stray_bytes >= SIZE
    assert stranger.read_bytes() == bytes(SIZE)
