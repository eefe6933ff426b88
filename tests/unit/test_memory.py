"""The memory store: sparse content, and its bound."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.backends.memory import BLOCK, MemoryStore, SparseBytes
from stores.contract import Kind, ObjectInfo, RangeReader
from stores.errors import NoSpace
from tests.objects import content, read_stream, sending

runs = st.lists(st.tuples(st.booleans(), st.integers(1, 3 * BLOCK)), max_size=6)


def built(parts: list[tuple[bool, int]]) -> tuple[SparseBytes, bytes]:
    """Sparse and plain: runs of data and of zeroes."""
    sparse, plain = SparseBytes(), bytearray()
    for number, (data, length) in enumerate(parts):
        piece = content(length, number) if data else bytes(length)
        sparse.append(memoryview(piece))
        plain += piece
    return sparse, bytes(plain)


@given(runs, st.data())
def test_any_range_reads_as_it_was_written(parts: list[tuple[bool, int]], data: st.DataObject) -> None:
    sparse, plain = built(parts)
    assert sparse.size == len(plain)
    offset = data.draw(st.integers(0, len(plain)))
    length = data.draw(st.integers(0, len(plain) - offset))
    buffer = bytearray(b"\xff" * length)
    sparse.read_into(offset, memoryview(buffer))
    assert bytes(buffer) == plain[offset : offset + length]


@given(runs, st.data())
def test_extents_are_whole_alternating_and_true(parts: list[tuple[bool, int]], data: st.DataObject) -> None:
    sparse, plain = built(parts)
    offset = data.draw(st.integers(0, len(plain)))
    length = data.draw(st.integers(0, len(plain) - offset))
    extents = sparse.extents(offset, length)
    assert sum(extent.length for extent in extents) == length
    at = offset
    for extent in extents:
        assert extent.offset == at
        at += extent.length
        if extent.zero:
            assert not any(plain[extent.offset : at])
    assert all(one.zero != other.zero for one, other in itertools.pairwise(extents))


@given(st.integers(0, 3 * BLOCK), st.binary(min_size=1, max_size=100))
def test_later_write_covers_what_was_there(offset: int, patch: bytes) -> None:
    plain = bytearray(content(4 * BLOCK))
    sparse = SparseBytes()
    sparse.append(memoryview(bytes(plain)))
    sparse.write_at(offset, memoryview(patch))
    plain[offset : offset + len(patch)] = patch
    read = bytearray(len(plain))
    sparse.read_into(0, memoryview(read))
    assert read == plain


async def put(store: MemoryStore, ref: str, data: bytes, *, replace: bool = False) -> ObjectInfo:
    async with sending(store, ref, replace=replace) as pending:
        await pending.write(memoryview(data))
        return await pending.commit()


async def test_bound_is_never_passed_and_a_refused_write_takes_nothing() -> None:
    store = MemoryStore(capacity=1000)
    await put(store, "one", bytes(600))
    with pytest.raises(NoSpace) as caught:
        await put(store, "two", bytes(401))
    assert (caught.value.details["needed"], caught.value.details["available"]) == (401, 400)
    assert (await store.usage()).used == 600
    await put(store, "two", bytes(400))
    assert (await store.usage()).used == 1000
    await store.delete("one")
    assert (await store.usage()).used == 400


async def test_unfinished_writes_count_towards_the_bound() -> None:
    store = MemoryStore(capacity=1000)
    async with sending(store, "one") as pending:
        await pending.write(memoryview(bytes(900)))
        with pytest.raises(NoSpace):
            await put(store, "two", bytes(200))
    await put(store, "two", bytes(200))


async def test_opened_object_outlives_its_removal_and_replacement() -> None:
    store = MemoryStore()
    info = await put(store, "object", b"first")
    async with store.present(info, Kind.RANGE_READER) as reader, store.present(info, Kind.BYTE_STREAM) as stream:
        await put(store, "object", b"second", replace=True)
        await store.delete("object")
        assert isinstance(reader, RangeReader)
        assert await reader.read(0, 5) == b"first"
        assert await read_stream(stream) == b"first"  # type: ignore[arg-type]


async def test_large_reads_let_others_run() -> None:
    store = MemoryStore()
    info = await put(store, "object", bytes(32 * 1024 * 1024))
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with store.present(info, Kind.RANGE_READER) as reader:
        assert isinstance(reader, RangeReader)
        counter = asyncio.create_task(count_turns())
        await reader.read_into(0, memoryview(bytearray(32 * 1024 * 1024)))
        counter.cancel()
    assert turns >= 30


async def test_modification_time_comes_from_the_clock() -> None:
    now = [100.0]
    store = MemoryStore(clock=lambda: now[0])
    first = await put(store, "object", b"x")
    now[0] = 200.0
    second = await put(store, "object", b"x", replace=True)
    assert (first.modified, second.modified) == (100.0, 200.0)
    assert first.version != second.version
