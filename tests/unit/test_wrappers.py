"""The wrappers: what they add, and what they must leave alone."""

from __future__ import annotations

import asyncio
import hashlib
from inspect import getmembers, isfunction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.backends.memory import MemoryStore
from stores.contract import DataStore, Kind, MiB, ObjectInfo, RangeReader
from stores.errors import (
    AccessDenied,
    ChecksumMismatch,
    IntegrityError,
    NotFound,
    ObjectChanged,
    StorageError,
    Unavailable,
)
from stores.transfer.digests import Checksum
from stores.transfer.engine import TransferEngine
from stores.transfer.threads import Threads
from stores.wrappers.base import WrapperStore
from stores.wrappers.reporting import Direction, ReportingStore
from stores.wrappers.retrying import RetryingStore, delay, may_succeed_later
from stores.wrappers.verified import Expected, VerifiedStore
from tests.doubles.counting import Counting
from tests.doubles.faulty import Fail, FaultyStore, Hang, Plan, Short
from tests.objects import consume, content, read_stream, refs, sending


async def put(store: DataStore, ref: str, data: bytes) -> ObjectInfo:
    async with sending(store, ref) as pending:
        await pending.write(memoryview(data))
        return await pending.commit()


def again(text: str = "busy") -> Fail:
    return Fail(Unavailable(text))


def test_base_forwards_every_method_of_the_contract() -> None:
    public = {name for name, _ in getmembers(DataStore, isfunction) if not name.startswith("_")}
    assert public
    assert public <= set(vars(WrapperStore))


# ---------------------------------------------------------------------------------------------------- retrying


class Slept:
    """A sleep that only notes."""

    def __init__(self) -> None:
        self.delays: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.delays.append(seconds)


def retrying(plan: Plan, *, attempts: int = 4) -> tuple[RetryingStore, FaultyStore, MemoryStore, Slept]:
    memory = MemoryStore()
    faulty = FaultyStore(memory, plan)
    slept = Slept()
    store = RetryingStore(
        faulty, attempts=attempts, first_delay=1.0, longest_delay=5.0, sleep=slept, chance=lambda: 1.0
    )
    return store, faulty, memory, slept


async def test_transient_failure_is_tried_again_after_growing_delays() -> None:
    store, faulty, memory, slept = retrying({("stat", 1): again(), ("stat", 2): again(), ("stat", 3): again()})
    await put(memory, "object", b"x")
    assert (await store.stat("object")).size == 1
    assert faulty.calls["stat"] == 4
    assert slept.delays == [1.0, 2.0, 4.0]


async def test_last_error_is_raised_with_the_number_of_attempts() -> None:
    store, faulty, _, slept = retrying({("usage", number): again(f"busy {number}") for number in range(1, 9)})
    with pytest.raises(Unavailable, match="busy 4") as caught:
        await store.usage()
    assert caught.value.details["attempts"] == 4
    assert (faulty.calls["usage"], len(slept.delays)) == (4, 3)


@pytest.mark.parametrize("error", [NotFound("x"), AccessDenied("x"), ObjectChanged("x"), ChecksumMismatch("x")])
async def test_final_failure_is_not_tried_again(error: StorageError) -> None:
    store, faulty, _, slept = retrying({("stat", 1): Fail(error)})
    with pytest.raises(type(error)):
        await store.stat("object")
    assert (faulty.calls["stat"], slept.delays) == (1, [])


async def test_failure_that_is_not_ours_passes() -> None:
    store, faulty, _, _ = retrying({("stat", 1): Fail(ZeroDivisionError())})
    with pytest.raises(ZeroDivisionError):
        await store.stat("object")
    assert faulty.calls["stat"] == 1


async def test_opening_is_tried_again_and_reading_is_not() -> None:
    store, faulty, memory, _ = retrying({("present", 1): again(), ("read", 1): again()})
    info = await put(memory, "object", b"content")
    with pytest.raises(Unavailable):
        await consume(store, info, Kind.RANGE_READER)
    assert (faulty.calls["present"], faulty.calls["read"]) == (2, 1)
    await consume(store, info, Kind.BYTE_STREAM)


async def test_error_of_the_reader_is_not_taken_for_one_of_opening() -> None:
    store, faulty, memory, _ = retrying({})
    info = await put(memory, "object", b"content")

    async def read_and_fail() -> None:
        async with store.present(info, Kind.BYTE_STREAM):
            raise Unavailable("somebody else")

    with pytest.raises(Unavailable, match="somebody else"):
        await read_and_fail()
    assert faulty.calls["present"] == 1


async def test_write_that_consumed_data_is_never_tried_again() -> None:
    for failing in ("send", "commit"):
        store, faulty, memory, slept = retrying({(failing, 1): again()})
        with pytest.raises(Unavailable):
            await put(store, "object", b"content")
        assert (faulty.calls["write"], faulty.calls[failing], slept.delays) == (1, 1, [])
        assert await refs(memory.list()) == []
        assert not memory._pending


async def test_beginning_of_a_write_and_idempotent_calls_are_tried_again() -> None:
    store, faulty, memory, _ = retrying({(name, 1): again() for name in ("write", "delete", "discard")})
    await put(store, "object", b"content")
    await store.discard("object", token="1")
    assert await refs(memory.list()) == ["object"]
    await store.delete("object")
    assert await refs(memory.list()) == []
    assert {name: faulty.calls[name] for name in ("write", "delete", "discard")} == dict.fromkeys(
        ("write", "delete", "discard"), 2
    )


async def test_listing_goes_on_where_it_broke() -> None:
    # Listing 1 breaks at its 3rd object, listing 2 (which begins anew) at its 4th.
    store, _, memory, slept = retrying({("list", 3): again(), ("list", 7): again()})
    names = [f"object-{number}" for number in range(6)]
    for name in names:
        await put(memory, name, b"x")
    assert await refs(store.list()) == names
    assert slept.delays == [1.0, 1.0]


async def test_listing_without_progress_gives_up() -> None:
    store, faulty, memory, _ = retrying({("list", number): again() for number in range(1, 9)})
    await put(memory, "object", b"x")
    with pytest.raises(Unavailable) as caught:
        await refs(store.list())
    assert caught.value.details["attempts"] == 4
    assert faulty.calls["list"] == 4


async def test_cancelled_while_waiting_stops_at_once() -> None:
    memory = MemoryStore()
    faulty = FaultyStore(memory, {("stat", number): again() for number in range(1, 9)})
    task = asyncio.create_task(RetryingStore(faulty, first_delay=3600, longest_delay=3600).stat("object"))
    while not faulty.calls["stat"]:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert faulty.calls["stat"] == 1


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_delays_grow_to_their_limit_and_spread_over_half_of_it(attempt: int, chance: float) -> None:
    waited = delay(attempt, chance, first=0.2, longest=10.0)
    full = min(10.0, 0.2 * 2 ** min(attempt - 1, 30))
    assert full / 2 <= waited <= full


def test_integrity_failures_may_pass_but_wrong_content_stays_wrong() -> None:
    assert may_succeed_later(IntegrityError("short"))
    assert not may_succeed_later(ChecksumMismatch("wrong"))


# ---------------------------------------------------------------------------------------------------- verified


def sha256(data: bytes) -> Checksum:
    return Checksum("sha256", hashlib.sha256(data).hexdigest())


async def test_right_content_passes_whole(engine: TransferEngine) -> None:
    memory = MemoryStore()
    data = content(3 * MiB)
    info = await put(memory, "object", data)
    store = VerifiedStore(memory, {"object": Expected(len(data), sha256(data))}, engine)
    async with store.present(await store.stat("object"), Kind.BYTE_STREAM) as stream:
        assert await read_stream(stream) == data  # type: ignore[arg-type]
    for kind in store.offers(info):
        await consume(store, info, kind)


async def test_wrong_checksum_is_final_and_comes_before_the_end(engine: TransferEngine) -> None:
    memory = MemoryStore()
    info = await put(memory, "object", content(3 * MiB, 1))
    store = VerifiedStore(memory, {"object": Expected(checksum=sha256(content(3 * MiB, 2)))}, engine)
    with pytest.raises(ChecksumMismatch) as caught:
        await consume(store, info, Kind.BYTE_STREAM)
    assert caught.value.retry.value == "no"
    assert caught.value.details["found"] == sha256(content(3 * MiB, 1)).hex


async def test_stream_that_ends_early_or_late_is_refused(engine: TransferEngine) -> None:
    memory = MemoryStore()
    info = await put(memory, "object", content(3 * MiB))
    short = FaultyStore(memory, {("read", 2): Short(100)})
    store = VerifiedStore(short, {"object": Expected(size=3 * MiB)}, engine)
    with pytest.raises(IntegrityError) as caught:
        await consume(store, info, Kind.BYTE_STREAM)
    assert caught.value.details == {"ref": "object", "needed": 3 * MiB, "seen": MiB + 100}

    unknown = ObjectInfo("object", None, version=info.version)
    store = VerifiedStore(memory, {"object": Expected(size=3 * MiB - 1)}, engine)
    with pytest.raises(IntegrityError):
        await consume(store, unknown, Kind.BYTE_STREAM)


async def test_wrong_size_is_refused_before_any_byte(engine: TransferEngine) -> None:
    memory = MemoryStore()
    info = await put(memory, "object", bytes(100))
    faulty = FaultyStore(memory, {})
    store = VerifiedStore(faulty, {"object": Expected(size=99)}, engine)
    with pytest.raises(IntegrityError):
        await store.stat("object")
    for kind in store.offers(info):
        with pytest.raises(IntegrityError):
            await consume(store, info, kind)
    assert faulty.calls["read"] == 0


async def test_objects_without_expectation_are_left_alone(engine: TransferEngine) -> None:
    memory = MemoryStore()
    info = await put(memory, "other", content(100))
    store = VerifiedStore(memory, {"object": Expected(size=1)}, engine)
    await consume(store, await store.stat("other"), Kind.BYTE_STREAM)
    await consume(store, info, Kind.RANGE_READER)


# --------------------------------------------------------------------------------------------------- reporting


async def test_calls_and_bytes_are_counted() -> None:
    counting = Counting()
    store = ReportingStore(MemoryStore(), counting)
    info = await put(store, "object", content(2 * MiB))
    await consume(store, info, Kind.BYTE_STREAM)
    async with store.present(info, Kind.RANGE_READER) as reader:
        assert isinstance(reader, RangeReader)
        await reader.read(10, 1000)
    await store.stat("object")
    assert await refs(store.list()) == ["object"]
    await store.usage()
    await store.discard("object", token="1")
    await store.delete("object")
    assert counting.bytes == {Direction.WRITTEN: 2 * MiB, Direction.READ: 2 * MiB + 1000}
    assert counting.calls == {
        ("write", "ok"): 1,
        ("commit", "ok"): 1,
        ("present", "ok"): 2,
        ("read", "ok"): 2,
        ("stat", "ok"): 1,
        ("list", "ok"): 1,
        ("usage", "ok"): 1,
        ("discard", "ok"): 1,
        ("delete", "ok"): 1,
    }


async def test_bulk_reading_is_counted_piece_by_piece() -> None:
    counting = Counting()
    memory = MemoryStore()
    info = await put(memory, "object", content(1000))
    wanted = iter([(0, memoryview(bytearray(400))), (400, memoryview(bytearray(600)))])
    threads = Threads("test", 1)
    async with ReportingStore(memory, counting).present(info, Kind.RANGE_READER) as reader:
        assert isinstance(reader, RangeReader)
        await reader.read_each(lambda: next(wanted, None), lambda offset, buffer: None, threads)
        await asyncio.sleep(0)
    threads.close()
    assert counting.bytes == {Direction.READ: 1000}
    assert counting.calls == {("present", "ok"): 1, ("read", "ok"): 1}


async def test_failures_are_counted_by_their_kind() -> None:
    counting = Counting()
    faulty = FaultyStore(MemoryStore(), {("usage", 1): Fail(ZeroDivisionError()), ("commit", 1): again()})
    store = ReportingStore(faulty, counting)
    with pytest.raises(NotFound):
        await store.stat("missing")
    with pytest.raises(ZeroDivisionError):
        await store.usage()
    with pytest.raises(Unavailable):
        await put(store, "object", b"x")
    assert counting.calls == {
        ("stat", "NotFound"): 1,
        ("usage", "failed"): 1,
        ("write", "ok"): 1,
        ("commit", "Unavailable"): 1,
    }


async def test_cancelled_call_is_counted_as_such() -> None:
    counting = Counting()
    faulty = FaultyStore(MemoryStore(), {("stat", 1): Hang()})
    store = ReportingStore(faulty, counting)
    task = asyncio.create_task(store.stat("object"))
    await faulty.hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert counting.calls == {("stat", "cancelled"): 1}


async def test_duration_comes_from_the_clock() -> None:
    counting = Counting()
    times = iter([10.0, 12.5])
    store = ReportingStore(MemoryStore(), counting, clock=lambda: next(times))
    await store.usage()
    assert counting.seconds == [2.5]
