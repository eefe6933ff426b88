"""Calls that hang, pools that fail, and when they are tried again."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from pathlib import Path

import pytest

from stores.cache.access import Access
from stores.cache.health import FIRST_PROBE_S, LAST_PROBE_S, Health, PoolSick, is_ailment
from stores.errors import DeviceFault, IntegrityError, NoSpace, TooLarge, Unavailable
from stores.os_errors import translate
from stores.touches import Touches
from tests.doubles.caches import until
from tests.pools import make_pool, running, settings_of


def test_each_failed_probe_doubles_the_wait() -> None:
    now = 100.0
    health = Health(lambda: now)
    assert health.healthy
    assert health.fails("EIO")
    assert not health.fails("EIO again")
    assert health.ailment == "EIO"
    waits = [health.probe_in_s]
    for _ in range(10):
        now += health.probe_in_s
        assert health.probe_in_s == 0
        health.probe_failed("still EIO")
        waits.append(health.probe_in_s)
    assert waits[:4] == [FIRST_PROBE_S, 2 * FIRST_PROBE_S, 4 * FIRST_PROBE_S, 8 * FIRST_PROBE_S]
    assert waits[-1] == LAST_PROBE_S
    health.recovers()
    assert health.healthy
    assert health.fails("again")
    assert health.probe_in_s == FIRST_PROBE_S


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOTCONN, errno.EACCES, errno.ENOENT])
def test_what_a_disk_reports_speaks_against_the_pool(code: int) -> None:
    assert is_ailment(translate(OSError(code, ""), "x"))


def test_what_was_asked_of_it_does_not() -> None:
    assert is_ailment(NoSpace("x"))
    assert is_ailment(Unavailable("x"))
    assert not is_ailment(IntegrityError("x"))
    assert not is_ailment(TooLarge("x"))


# --------------------------------------------------------------------------------------------------------- threads


async def test_results_and_failures_come_back_from_named_threads() -> None:
    touches = Touches("touch-test", 2, late=PoolSick)
    assert (await touches.run(lambda: threading.current_thread().name, deadline_s=10)).startswith("touch-test-")
    with pytest.raises(ZeroDivisionError):
        await touches.run(lambda: 1 // 0, deadline_s=10)
    await ended(touches, "touch-test")


async def test_a_call_that_hangs_is_left_behind_and_so_are_no_more_than_the_limit() -> None:
    touches, mount = Touches("hang-test", 2, late=PoolSick), threading.Event()
    for _ in range(2):
        with pytest.raises(PoolSick):
            await touches.run(mount.wait, deadline_s=0.05)
    assert touches.hanging == 2
    with pytest.raises(PoolSick):
        await touches.run(lambda: None, deadline_s=0.05)
    assert touches.hanging == 2
    mount.set()
    assert await touches.run(lambda: "well", deadline_s=10) == "well"
    await until(lambda: touches.hanging == 0)
    await ended(touches, "hang-test")


async def test_a_cancelled_call_is_waited_for_until_its_deadline() -> None:
    touches, mount, begun = Touches("cancel-test", 1, late=PoolSick), threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        mount.wait()

    task = asyncio.create_task(touches.run(call, deadline_s=30))
    await asyncio.to_thread(begun.wait)
    waiting = asyncio.create_task(touches.run(lambda: pytest.fail("it had not begun"), deadline_s=30))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    task.cancel()
    await asyncio.sleep(0.02)
    assert not task.done()
    mount.set()
    await asyncio.wait([task])
    assert task.cancelled()

    mount.clear()
    hangs = asyncio.create_task(touches.run(call, deadline_s=0.2))
    await asyncio.sleep(0.05)
    hangs.cancel()
    await asyncio.wait([hangs])
    assert hangs.cancelled()
    assert touches.hanging == 1
    mount.set()
    await ended(touches, "cancel-test")


async def ended(touches: Touches, name: str) -> None:
    touches.close()
    until = time.monotonic() + 20
    while any(thread.name.startswith(name) for thread in threading.enumerate()):
        assert time.monotonic() < until
        await asyncio.sleep(0.001)


# ---------------------------------------------------------------------------------------------------------- access


async def test_a_failure_of_the_disk_makes_the_pool_sick_and_nothing_touches_it_then(tmp_path: Path) -> None:
    turned: list[str] = []
    pool = make_pool(tmp_path / "pool")
    access = Access(settings_of(tmp_path / "pool"), pool._database, sickened=lambda: turned.append("sick"))

    def fails() -> None:
        raise DeviceFault("EIO")

    def refuses() -> None:
        raise IntegrityError("another size")

    with pytest.raises(IntegrityError):
        await access.touch(refuses)
    assert access.health.healthy
    with pytest.raises(PoolSick) as told:
        await access.touch(fails)
    assert told.value.details["ailment"] == "DeviceFault"
    with pytest.raises(PoolSick):
        await access.touch(lambda: pytest.fail("touched"))
    with pytest.raises(PoolSick):
        await access.transact(lambda tx: pytest.fail("touched"))
    assert turned == ["sick"]
    access.close()


async def test_mending_puts_the_old_directory_back_when_it_fails(tmp_path: Path) -> None:
    async with running(tmp_path / "pool") as pool:
        before = pool.access.directory

        async def attempt() -> None:
            assert pool.access.directory is not before
            await pool.access.touch(pool.access.directory.open)
            raise DeviceFault("still broken")

        assert not await pool.access.mend(attempt)
        assert pool.access.directory is before
        assert not pool.healthy
        pool.changed()
        async with asyncio.timeout(30):
            while not pool.healthy:  # by the pool's own probe
                await asyncio.sleep(0.01)
        assert await pool.access.touch(lambda: pool.access.directory.lives(pool.lease.owner))
