"""The upload queue over a real pool: what is staged gets to its store, once, whatever happens in between."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from stores.cache.ladder import CacheExhausted, LargerThanCache
from stores.cache.ledger import WrongState
from stores.cache.reconcile import reconcile
from stores.cache.schema import EntryState, UploadState
from stores.cache.scrub import scrub
from stores.cache.settings import WritebackSettings
from stores.cache.writeback.errors import (
    AlreadyStaged,
    QueueDraining,
    StagedCopyDamaged,
    UploadCancelled,
    UploadOver,
    UploadPending,
    UploadsFull,
    UploadUnknown,
)
from stores.contract import MiB
from stores.errors import AccessDenied, AlreadyExists, InvalidReference, Retry, StoreUnsupported, TooLarge, Unavailable
from tests.doubles.caches import entries_of, numbers_of, until
from tests.uploads import Host, bucket, data_of, host

FOREVER_S = 30.0


@pytest.fixture
async def here(memory: Path) -> AsyncIterator[Host]:
    async with host(memory) as found:
        yield found


async def stored(here: Host, upload: str | None) -> None:
    assert upload is not None
    await here.queue.stored(upload, deadline_s=FOREVER_S)


# ------------------------------------------------------------------------------------------------------------- stored


async def test_what_is_staged_is_stored_and_then_an_ordinary_copy(here: Host) -> None:
    data = data_of("x")
    here.store.gate.clear()
    info = await here.stage("x", data)
    assert (info.ref, info.size, info.version) == ("x", len(data), None)
    assert info.upload is not None
    (entry,) = await entries_of(here.pool)
    assert entry.dirty
    here.store.gate.set()
    done = await here.queue.stored(info.upload, deadline_s=FOREVER_S)
    assert (done.size, done.version, done.upload) == (len(data), (await here.store.stat("x")).version, None)
    assert here.store.content("x") == data
    (entry,) = await entries_of(here.pool)
    assert (entry.state, entry.version) == (EntryState.READY, done.version)
    assert here.pool.access.entries.path_of(entry).read_bytes() == data


async def test_the_copy_is_a_hit_for_that_object(here: Host) -> None:
    from stores.cache.cache import Cache
    from stores.transfer.engine import TransferEngine

    await stored(here, (await here.stage("x", data_of("x"))).upload)
    engine = TransferEngine()
    cache = Cache([here.pool], engine)
    async with cache.whole(here.store, await here.store.stat("x"), wait_s=0) as flight:
        assert flight.result().copy.path.read_bytes() == data_of("x")
        assert not flight.fetched
    await cache.aclose()
    await engine.aclose()


async def test_the_copy_agrees_with_what_is_known_of_it(here: Host) -> None:
    """Before it is stored and after that: by scrubs, and by comparing ledger and directory."""
    here.store.gate.clear()
    info = await here.stage("x", data_of("x"))
    for state in (EntryState.UPLOADING, EntryState.READY):
        (entry,) = await entries_of(here.pool)
        assert entry.state is state or state is not EntryState.READY
        scrubbed = await scrub(here.pool)
        assert (scrubbed.entries, scrubbed.quarantined) == (state is EntryState.READY, [])
        report = await reconcile(here.pool)
        assert (report.strays, report.vanished, report.corrected_sums) == ({}, [], False)
        here.store.gate.set()
        await stored(here, info.upload)
    (entry,) = await entries_of(here.pool)
    assert entry.digest is not None
    path = here.pool.access.entries.path_of(entry)
    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"rot")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [each.id for each in (await scrub(here.pool)).quarantined] == [entry.id]


async def test_an_empty_object(here: Host) -> None:
    await stored(here, (await here.stage("x", b"")).upload)
    assert here.store.content("x") == b""


async def test_the_size_may_be_less_than_was_reserved_and_never_more(here: Host) -> None:
    await stored(here, (await here.stage("x", data_of("x"), size=4 * MiB)).upload)
    with pytest.raises(TooLarge) as refusal:
        await here.stage("y", data_of("y", 5000), size=4999)
    assert refusal.value.details == {"limit": 4999, "seen": 5000}
    assert here.store.content("y") is None


async def test_an_unknown_size_grows_in_steps_and_stops_at_its_reservation(here: Host) -> None:
    async with here.queue.staging(
        bucket(), here.store, "x", token="t", size=None, replace=False, wait_s=0.0
    ) as pending:
        data = data_of("x", 7 * MiB)
        with pending.path.open("wb") as file:
            for start in range(0, len(data), MiB):
                await pending.grow(start + MiB)
                assert pending.size >= start + MiB
                numbers = await numbers_of(here.pool)
                assert numbers.reserved >= pending.size
                file.write(data[start : start + MiB])
        with pytest.raises(LargerThanCache):
            await pending.grow(9 * MiB)  # half of the pool
        info = await pending.commit()
        assert await pending.commit() == info
    await stored(here, info.upload)
    assert here.store.content("x") == data


async def test_staging_that_is_left_leaves_nothing(here: Host) -> None:
    async with here.queue.staging(bucket(), here.store, "x", token="t", size=MiB, replace=False, wait_s=0.0) as pending:
        pending.path.write_bytes(bytes(MiB))
    assert await here.queue.list() == []
    assert await here.queue.drain(deadline_s=1)


async def test_staging_that_is_cancelled_leaves_nothing(here: Host) -> None:
    async def write() -> None:
        async with here.queue.staging(
            bucket(), here.store, "x", token="t", size=MiB, replace=False, wait_s=0.0
        ) as pending:
            pending.path.write_bytes(bytes(MiB))
            reached.set()
            await asyncio.Event().wait()

    reached = asyncio.Event()
    task = asyncio.create_task(write())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await here.queue.list() == []


async def test_the_same_write_again_joins(here: Host) -> None:
    here.store.gate.clear()
    assert await here.queue.staged(here.store, "x", token="command") is None
    info = await here.stage("x", data_of("x"))
    assert await here.queue.staged(here.store, "x", token="command") == info
    assert await here.queue.staged(here.store, "x", token="another") is None
    with pytest.raises(AlreadyStaged) as again:
        await here.stage("x", data_of("x"))
    assert again.value.details["upload"] == info.upload
    here.store.gate.set()
    await stored(here, info.upload)
    joined = await here.queue.staged(here.store, "x", token="command")
    assert joined is not None
    assert (joined.upload, joined.version) == (None, (await here.store.stat("x")).version)
    assert here.store.made == {"x": 1}


async def test_what_cannot_be_staged_is_refused_at_once(here: Host) -> None:
    with pytest.raises(InvalidReference):
        await here.stage("../x", b"x")
    with pytest.raises(LargerThanCache) as refusal:
        await here.stage("x", b"x", size=20 * MiB)
    assert refusal.value.details["seen"] == 20 * MiB
    here.store.writes = frozenset()
    with pytest.raises(StoreUnsupported):
        await here.stage("x", b"x")


# ------------------------------------------------------------------------------------------------------ back-pressure


async def test_what_is_not_stored_is_bounded_and_staging_waits_for_room_in_turn(here: Host) -> None:
    here.store.gate.clear()
    first = await here.stage("a", data_of("a", 6 * MiB))
    with pytest.raises(UploadsFull) as refusal:
        await here.stage("b", data_of("b"))
    assert refusal.value.retry is Retry.YES
    assert refusal.value.details == {"needed": 3 * MiB + 5, "limit": 8 * MiB, "unstored": 6 * MiB, "pool": "pool"}
    order: list[str] = []

    async def stage(name: str, size: int) -> None:
        info = await here.stage(name, data_of(name, size), wait_s=FOREVER_S)
        order.append(name)
        await stored(here, info.upload)

    async with asyncio.TaskGroup() as tasks:
        for name, size in (("b", 4 * MiB), ("c", 5 * MiB)):
            tasks.create_task(stage(name, size))
            await until_queued(here, len(tasks._tasks))
        assert (await here.queue.figures()).unstored_bytes == 6 * MiB
        here.store.gate.set()
    assert order == ["b", "c"]
    await stored(here, first.upload)


async def until_queued(here: Host, count: int) -> None:
    async with asyncio.timeout(FOREVER_S):
        while [upload.state for upload in await here.queue.list()].count(UploadState.QUEUED) != count:
            await asyncio.sleep(0.01)


async def test_room_in_the_pool_is_needed_as_well(here: Host) -> None:
    fill = await here.pool.reserve("0" * 64, 15 * MiB)
    with pytest.raises(CacheExhausted):
        await here.stage("x", data_of("x"))
    assert await here.queue.list() == []
    await here.pool.abandon(fill)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ trouble


async def test_a_store_that_comes_and_goes(here: Host) -> None:
    here.store.failure = Unavailable("down")
    info = await here.stage("x", data_of("x"))
    assert info.upload is not None
    with pytest.raises(UploadPending) as pending:
        await here.queue.stored(info.upload, deadline_s=0.3)
    assert pending.value.retry is Retry.YES
    assert pending.value.details["upload"] == info.upload
    assert pending.value.details["last_error"] == "Unavailable"
    assert here.queue._worker.breakers() != {}
    here.store.failure = None
    await stored(here, info.upload)
    figures = await here.queue.figures()
    assert figures.failures >= 3
    assert figures.attempts == figures.failures + 1
    assert figures.breakers == {}


async def test_it_goes_on_where_it_was(here: Host) -> None:
    here.store.parts = 2
    info = await here.stage("x", data_of("x"))
    await until(lambda: here.store.parts == 0 and not here.store.running)
    here.store.parts = None
    await stored(here, info.upload)
    figures = await here.queue.figures()
    assert figures.resumed_bytes == 2 * MiB
    assert figures.sent_bytes == len(data_of("x"))
    upload = await here.state_of(info.upload)
    assert (upload.sent, upload.resumed) == (len(data_of("x")), 2 * MiB)


async def test_an_answer_that_got_lost_makes_no_second_object(here: Host) -> None:
    here.store.lost_answers = 2
    await stored(here, (await here.stage("x", data_of("x"))).upload)
    assert here.store.made == {"x": 1}


async def test_what_can_never_work_is_shown_and_kept_until_somebody_decides(here: Host) -> None:
    await stored(here, (await here.stage("x", b"first")).upload)
    info = await here.stage("x", b"second", token="another")
    assert info.upload is not None
    for _ in range(2):
        with pytest.raises(AlreadyExists):
            await here.queue.stored(info.upload, deadline_s=FOREVER_S)
    with pytest.raises(AlreadyExists):
        await here.queue.staged(here.store, "x", token="another")
    assert (await here.state_of(info.upload)).state is UploadState.FAILED
    assert not await here.queue.drain()
    await here.store.delete("x")
    assert await here.queue.retry(info.upload) == 1
    await stored(here, info.upload)
    assert here.store.content("x") == b"second"
    with pytest.raises(UploadOver):
        await here.queue.retry(info.upload)


async def test_a_copy_that_changed_is_never_sent(here: Host) -> None:
    here.store.failure = Unavailable("down")
    info = await here.stage("x", data_of("x"))
    assert info.upload is not None
    (entry,) = await entries_of(here.pool)
    await until(lambda: here.is_idle_after(failures=1))  # nobody has read some of it already
    with here.pool.access.entries.path_of(entry).open("r+b") as file:
        file.write(b"rot")
    here.store.failure = None
    with pytest.raises(StagedCopyDamaged):
        await here.queue.stored(info.upload, deadline_s=FOREVER_S)
    assert here.store.content("x") is None
    await here.queue.cancel(info.upload)
    await over(here, info.upload)


async def test_new_credentials_let_uploads_go_on(here: Host) -> None:
    here.store.gate.clear()
    here.secret = "the old secret"
    info = await here.stage("x", data_of("x"))
    here.secret = "the new secret"
    here.store.failure = AccessDenied("the old secret is none any more")
    here.store.gate.set()
    assert info.upload is not None
    await in_state(here, info.upload, UploadState.REFUSED)
    with pytest.raises(UploadPending) as pending:
        await here.queue.stored(info.upload, deadline_s=0)
    assert pending.value.details["last_error"] == "AccessDenied"
    assert not await here.queue.drain()
    here.queue.named(bucket("the new secret"), "of another store")
    assert (await here.state_of(info.upload)).state is UploadState.REFUSED
    here.queue.named(bucket("the new secret"), here.store.id)
    await stored(here, info.upload)
    assert here.opened[-1] == "the new secret"


async def test_credentials_are_kept_for_this_user_alone_and_only_as_long_as_they_are_needed(here: Host) -> None:
    here.store.gate.clear()
    info = await here.stage("x", data_of("x"))
    (name,) = here.credentials()
    assert (here.state.stat().st_mode & 0o777, (here.state / name).stat().st_mode & 0o777) == (0o700, 0o600)
    assert here.secret in (here.state / name).read_text()
    for path in here.pool.settings.directory.rglob("*"):
        assert path.is_dir() or here.secret.encode() not in path.read_bytes(), path
    here.store.gate.set()
    await stored(here, info.upload)
    await until(lambda: here.credentials() == [])


async def test_an_attempt_that_crashes_is_tried_again(here: Host) -> None:
    def crash() -> None:
        here.store.check = lambda: None  # type: ignore[method-assign]
        raise RuntimeError("not foreseen")

    here.store.check = crash  # type: ignore[method-assign]
    with structlog.testing.capture_logs() as logs:
        await stored(here, (await here.stage("x", data_of("x"))).upload)
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["upload crashed"]


# ------------------------------------------------------------------------------------------------ fairness and bounds


async def test_a_large_upload_does_not_keep_small_ones_waiting(memory: Path) -> None:
    settings = WritebackSettings(concurrency=2, large=2 * MiB)
    async with host(memory, settings=settings) as here:
        here.store.gate.clear()
        large = [await here.stage(f"large {n}", data_of(str(n), 2 * MiB)) for n in range(2)]
        await until(lambda: here.store.running == 1)
        small = await here.stage("small", b"small")
        await until(lambda: here.store.running == 2)
        assert here.store.begun == ["large 0", "small"]
        here.store.gate.set()
        for info in (*large, small):
            await stored(here, info.upload)
        assert here.store.most <= 2


# ------------------------------------------------------------------------------------------------- operators, restarts


async def over(here: Host, upload: str) -> None:
    await in_state(here, upload, UploadState.CANCELLED)


async def in_state(here: Host, upload: str, state: UploadState) -> None:
    async with asyncio.timeout(FOREVER_S):
        while (await here.queue.show(upload)).state is not state:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("when", ["waiting", "sending", "part sent"])
async def test_cancelling_removes_it_here_and_there(here: Host, when: str) -> None:
    here.store.gate.clear()
    if when == "waiting":
        here.store.failure = Unavailable("down")
    elif when == "part sent":
        here.store.gate.set()
        here.store.parts = 2
    info = await here.stage("x", data_of("x"))
    assert info.upload is not None
    if when == "sending":
        await until(lambda: here.store.running == 1)
    elif when == "part sent":
        await until(lambda: here.store.parts == 0)
    shown = await here.queue.cancel(info.upload)
    assert shown.state in (UploadState.CANCELLING, UploadState.CANCELLED)
    assert await entries_of(here.pool) == []
    with pytest.raises(UploadCancelled):
        await here.queue.stored(info.upload, deadline_s=0)
    here.store.failure = None
    await over(here, info.upload)
    assert (await here.queue.cancel(info.upload)).state is UploadState.CANCELLED
    assert [event.state for event in await here.queue.events()] == [UploadState.CANCELLED]
    here.store.parts = None
    here.store.gate.set()
    await stored(here, (await here.stage("x", data_of("x"))).upload)


async def test_what_is_stored_cannot_be_cancelled(here: Host) -> None:
    info = await here.stage("x", b"x")
    assert info.upload is not None
    await stored(here, info.upload)
    with pytest.raises(UploadOver):
        await here.queue.cancel(info.upload)
    assert here.store.content("x") == b"x"
    with pytest.raises(UploadUnknown):
        await here.queue.cancel("nothing")
    with pytest.raises(UploadUnknown):
        await here.queue.stored("nothing", deadline_s=0)


async def test_what_is_being_staged_is_its_commands_to_cancel(here: Host) -> None:
    async with here.queue.staging(bucket(), here.store, "x", token="t", size=1, replace=False, wait_s=0.0):
        (upload,) = await here.queue.list()
        with pytest.raises(WrongState):
            await here.queue.cancel(upload.id)


async def test_draining_refuses_what_is_new_and_tells_when_all_is_stored(here: Host) -> None:
    here.store.failure = Unavailable("down")
    await here.stage("x", data_of("x"))
    assert not await here.queue.drain(deadline_s=0.1)
    with pytest.raises(QueueDraining):
        await here.stage("y", b"y")
    here.store.failure = None
    assert await here.queue.drain()
    assert here.store.content("x") == data_of("x")
    here.queue.resume()
    await stored(here, (await here.stage("y", b"y")).upload)


async def test_events_come_again_until_they_are_acknowledged(here: Host) -> None:
    info = await here.stage("x", b"x")
    quiet = await here.stage("y", b"y", announce=False)
    assert info.upload is not None
    await stored(here, info.upload)
    await stored(here, quiet.upload)
    await here.stop()
    await here.start()
    for _ in range(2):
        assert [event.id for event in await here.queue.events()] == [info.upload]
    await here.queue.acknowledge(info.upload)
    await here.queue.acknowledge(info.upload)
    assert await here.queue.events() == []


@pytest.mark.parametrize("end", ["stop", "die"])
async def test_the_next_process_goes_on_without_being_asked(here: Host, end: str) -> None:
    here.store.parts = 2
    info = await here.stage("x", data_of("x"))
    await until(lambda: here.store.parts == 0)
    here.store.gate.clear()
    await (here.stop() if end == "stop" else here.die())
    here.store.parts = None
    here.store.gate.set()
    await here.start()
    await stored(here, info.upload)
    assert here.store.content("x") == data_of("x")
    assert here.store.made == {"x": 1}
    assert (await here.state_of(info.upload)).resumed == 2 * MiB


async def test_a_process_that_died_while_it_staged_has_staged_nothing(here: Host) -> None:
    async with here.queue.staging(
        bucket(), here.store, "x", token="command", size=MiB, replace=False, wait_s=0.0
    ) as pending:
        pending.path.write_bytes(bytes(MiB))
        await here.die()
    await here.start()
    await stored(here, (await here.stage("x", data_of("x"))).upload)
    assert len(await here.queue.list()) == 1


async def test_another_process_takes_over(memory: Path) -> None:
    async with host(memory, lease_s=2.0) as first:
        first.store.gate.clear()
        info = await first.stage("x", data_of("x"))
        await until(lambda: first.store.running == 1)
        second = Host(memory, lease_s=2.0)
        second.store = first.store
        await second.start()
        assert (await second.state_of(info.upload)).state is UploadState.SENDING
        await asyncio.sleep(0.1)
        assert first.store.begun == ["x"], "one process sends it"
        await first.die()
        first.store.gate.set()
        await stored(second, info.upload)
        assert first.store.made == {"x": 1}
        await second.stop()
        await first.start()


async def test_a_store_that_is_down_for_a_year(memory: Path) -> None:
    """Attempts become rare, none is given up, and it takes no longer than the last pause to see that the store is back."""
    settings = WritebackSettings(first_retry_s=1, last_retry_s=300, first_probe_s=5, last_probe_s=120)
    async with host(memory, settings=settings, lease_s=1e9) as here:
        here.store.failure = Unavailable("down")
        info = await here.stage("x", data_of("x"))
        assert info.upload is not None
        for _ in range(25):
            await until(lambda: here.is_idle_after(failures=1))
            here.jump += 15 * 86400.0
            here.wall_jump += 15 * 86400.0
        upload = await here.state_of(info.upload)
        assert upload.age_s >= 365 * 86400
        assert 25 <= upload.attempts < 80
        here.store.failure = None
        here.jump += 301
        await stored(here, info.upload)


@pytest.mark.parametrize("jump", [-10 * 86400.0, 10 * 86400.0])
async def test_the_wall_clock_may_jump(here: Host, jump: float) -> None:
    here.store.failure = Unavailable("down")
    info = await here.stage("x", data_of("x"))
    await until(lambda: len(here.store.begun) > 2)
    here.wall_jump = jump
    here.store.failure = None
    await stored(here, info.upload)
    assert (await here.queue.figures()).oldest_s == 0
