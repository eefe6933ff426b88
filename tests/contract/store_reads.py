"""The store contract: looking at objects and reading them."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from stores.contract import ByteStream, DataStore, KiB, Kind, MiB, ObjectInfo, RangeReader
from stores.errors import (
    IntegrityError,
    InvalidReference,
    NotFound,
    ObjectChanged,
    StoreUnsupported,
)
from stores.transfer.threads import Threads
from tests.contract.store_hooks import HOSTILE_REFS, STRANGE_REFS, ReadHooks
from tests.objects import consume, content, read_stream, sha, zero


class StoreReads(ReadHooks):
    """Looking at objects and reading them."""

    async def test_id_is_stable_text_without_line_breaks(self, store: DataStore) -> None:
        assert store.id
        assert store.id.isprintable()

    async def test_stat_tells_size_and_version(self, store: DataStore) -> None:
        await self.put_directly("dir/object", content(1000))
        info = await store.stat("dir/object")
        assert (info.ref, info.size, info.is_dir) == ("dir/object", 1000, False)
        assert info.version
        assert info == await store.stat("dir/object")

    async def test_missing_object_is_not_found(self, store: DataStore) -> None:
        await self.put_directly("dir/object", b"x")
        for ref in ("missing", "dir/missing", "dir", "dir/object/below", "missing/below"):
            with pytest.raises(NotFound):
                await store.stat(ref)

    async def test_object_that_vanished_is_not_found(self, store: DataStore) -> None:
        for kind in store.offers():
            with pytest.raises((NotFound, ObjectChanged)):
                await consume(store, ObjectInfo("never", 3, version="1"), kind)

    @pytest.mark.parametrize("ref", HOSTILE_REFS)
    async def test_hostile_ref_is_refused(self, store: DataStore, ref: str) -> None:
        with pytest.raises(InvalidReference):
            await store.stat(ref)
        for kind in store.offers():
            with pytest.raises(InvalidReference):
                await consume(store, ObjectInfo(ref, 1), kind)

    @pytest.mark.parametrize("ref", STRANGE_REFS)
    async def test_unusual_names_are_taken_literally(self, store: DataStore, ref: str) -> None:
        await self.put_directly(ref, ref.encode())
        info = await store.stat(ref)
        async with store.present(info, Kind.BYTE_STREAM) as stream:
            assert isinstance(stream, ByteStream)
            assert await read_stream(stream) == ref.encode()

    @pytest.mark.parametrize("size", [0, 1, 4095, 64 * KiB, 3 * MiB + 7])
    async def test_stream_is_the_whole_content(self, store: DataStore, size: int) -> None:
        data = content(size)
        await self.put_directly("object", data)
        info = await store.stat("object")
        async with store.present(info, Kind.BYTE_STREAM) as stream:
            assert isinstance(stream, ByteStream)
            assert stream.info == info
            received = await read_stream(stream)
        assert (len(received), sha(received)) == (size, sha(data))

    async def test_stream_is_iterated_only_once(self, store: DataStore) -> None:
        await self.put_directly("object", b"once")
        async with store.present(await store.stat("object"), Kind.BYTE_STREAM) as stream:
            assert isinstance(stream, ByteStream)
            assert await read_stream(stream) == b"once"
            with pytest.raises(RuntimeError):
                await read_stream(stream)

    async def test_pieces_of_a_stream_are_bounded(self, store: DataStore) -> None:
        await self.put_directly("object", content(9 * MiB))
        async with store.present(await store.stat("object"), Kind.BYTE_STREAM) as stream:
            assert isinstance(stream, ByteStream)
            sizes = [len(piece) async for piece in stream]
        assert sum(sizes) == 9 * MiB
        assert max(sizes) <= 4 * MiB

    async def test_stream_left_in_the_middle_is_closed(self, store: DataStore) -> None:
        await self.put_directly("object", content(9 * MiB))
        info = await store.stat("object")
        before = asyncio.all_tasks()
        async with store.present(info, Kind.BYTE_STREAM) as stream:
            assert isinstance(stream, ByteStream)
            async for piece in stream:
                assert len(piece) > 0
                break
        await self.expect_no_more_tasks(before)
        assert await store.stat("object") == info

    async def test_ranges_give_the_bytes_of_their_place(self, store: DataStore) -> None:
        if Kind.RANGE_READER not in store.offers():
            return
        size = 2 * MiB + 311
        data = content(size)
        await self.put_directly("object", data)
        chance = random.Random(7)
        async with store.present(await store.stat("object"), Kind.RANGE_READER) as reader:
            assert isinstance(reader, RangeReader)
            ranges = [(0, size), (0, 1), (size - 1, 1), (0, 0), (4096, 4096)]
            for _ in range(40):
                offset = chance.randrange(size)
                ranges.append((offset, chance.randint(1, min(size - offset, 300 * KiB))))
            for offset, length in ranges:
                assert await reader.read(offset, length) == data[offset : offset + length]

    async def test_bulk_reading_fills_every_buffer_that_is_named(self, store: DataStore) -> None:
        if Kind.RANGE_READER not in store.offers():
            return
        data = content(3 * MiB + 5)
        await self.put_directly("object", data)
        received = bytearray(len(data))
        pieces = [(at, memoryview(received)[at : at + 300_000]) for at in range(0, len(data), 300_000)]
        random.Random(3).shuffle(pieces)
        wanted, done = iter(pieces), []
        threads = Threads("contract", 2)

        def put(offset: int, buffer: memoryview) -> None:
            assert sha(bytes(buffer)) == sha(data[offset : offset + len(buffer)])
            done.append(offset)

        try:
            async with store.present(await store.stat("object"), Kind.RANGE_READER) as reader:
                assert isinstance(reader, RangeReader)
                await reader.read_each(lambda: next(wanted, None), put, threads)
        finally:
            threads.close()
        assert done == [offset for offset, _ in pieces]
        assert sha(bytes(received)) == sha(data)

    async def test_cancelled_bulk_reading_ends(self, store: DataStore) -> None:
        if Kind.RANGE_READER not in store.offers():
            return
        await self.put_directly("object", content(256 * KiB))
        threads = Threads("contract", 2)
        buffer = memoryview(bytearray(64 * KiB))
        count = 0

        def take() -> tuple[int, memoryview]:
            nonlocal count
            count += 1
            return 64 * KiB, buffer

        try:
            async with store.present(await store.stat("object"), Kind.RANGE_READER) as reader:
                assert isinstance(reader, RangeReader)
                task = asyncio.create_task(reader.read_each(take, lambda offset, buffer: None, threads))
                while count < 3:
                    await asyncio.sleep(0.001)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                ended_at = count
                await asyncio.sleep(0.01)
                assert count == ended_at
        finally:
            threads.close()

    async def test_many_readers_at_once(self, store: DataStore) -> None:
        if Kind.RANGE_READER not in store.offers():
            return
        data = content(4 * MiB)
        await self.put_directly("object", data)
        info = await store.stat("object")

        async def reader_of(seed: int) -> str:
            chance = random.Random(seed)
            received = bytearray(len(data))
            order = list(range(0, len(data), 512 * KiB))
            chance.shuffle(order)
            async with store.present(info, Kind.RANGE_READER) as reader:
                assert isinstance(reader, RangeReader)
                async with asyncio.TaskGroup() as group:
                    for offset in order:
                        view = memoryview(received)[offset : offset + 512 * KiB]
                        group.create_task(reader.read_into(offset, view))
            return sha(bytes(received))

        assert set(await asyncio.gather(*(reader_of(seed) for seed in range(5)))) == {sha(data)}

    async def test_range_past_the_end_is_refused(self, store: DataStore) -> None:
        if Kind.RANGE_READER not in store.offers():
            return
        await self.put_directly("object", content(1000))
        async with store.present(await store.stat("object"), Kind.RANGE_READER) as reader:
            assert isinstance(reader, RangeReader)
            for offset, length in ((999, 2), (1000, 1), (5000, 10)):
                with pytest.raises(IntegrityError):
                    await reader.read(offset, length)
            assert await reader.read(0, 1000) == content(1000)

    async def test_extents_cover_the_range_and_zero_means_zero(self, store: DataStore) -> None:
        if Kind.RANGE_READER not in store.offers():
            return
        size = self.sparse_size
        pieces = {0: content(100), (size // 2) & ~4095: content(70 * KiB, 2), size - 5: b"final"}
        await self.put_sparse_directly("sparse", size, pieces)
        info = await store.stat("sparse")
        assert info.size == size
        async with store.present(info, Kind.RANGE_READER) as reader:
            assert isinstance(reader, RangeReader)
            for offset, piece in pieces.items():
                assert await reader.read(offset, len(piece)) == piece
            for start, length in ((0, size), (1, size - 2), (size // 2 - 3, 300 * KiB), (size - 1, 1)):
                extents = await reader.extents(start, length)
                at = start
                for extent in extents:
                    assert extent.offset == at
                    assert extent.length > 0
                    at += extent.length
                    if extent.zero:
                        inside = [o for o, p in pieces.items() if o < at and o + len(p) > extent.offset]
                        assert not inside
                        edge = min(extent.length, 64 * KiB)
                        assert not any(await reader.read(extent.offset, edge))
                        assert not any(await reader.read(at - edge, edge))
                assert at == start + length

    async def test_changed_object_is_not_opened_with_old_info(self, store: DataStore) -> None:
        await self.put_directly("object", content(5000, 1))
        info = await store.stat("object")
        await self.put_directly("object", content(5000, 2))
        for kind in (Kind.RANGE_READER, Kind.BYTE_STREAM, Kind.LOCAL_PATH):
            if kind not in store.offers():
                continue
            with pytest.raises(ObjectChanged):
                await consume(store, info, kind)

    async def test_two_versions_are_never_mixed(self, store: DataStore) -> None:
        if Kind.RANGE_READER not in store.offers():
            return
        old, new = content(256 * KiB, 1), content(256 * KiB, 2)
        await self.put_directly("object", old)
        async with store.present(await store.stat("object"), Kind.RANGE_READER) as reader:
            assert isinstance(reader, RangeReader)
            assert await reader.read(0, 1000) == old[:1000]
            await self.put_directly("object", new)
            try:
                later = await reader.read(100 * KiB, 1000)
            except ObjectChanged:
                return
            assert later == old[100 * KiB : 100 * KiB + 1000]

    async def test_cancelled_reads_leave_the_buffer_alone(self, store: DataStore) -> None:
        if Kind.RANGE_READER not in store.offers():
            return
        data = content(4 * MiB)
        await self.put_directly("object", data)
        async with store.present(await store.stat("object"), Kind.RANGE_READER) as reader:
            assert isinstance(reader, RangeReader)
            for yields in range(6):
                buffer = bytearray(len(data))
                task = asyncio.create_task(reader.read_into(0, memoryview(buffer)))
                for _ in range(yields):
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                buffer[:] = bytes(len(buffer))
                await asyncio.sleep(0.01)
                assert zero(buffer)
            assert sha(await reader.read(0, len(data))) == sha(data)

    async def test_unknown_kind_is_unsupported(self, store: DataStore) -> None:
        await self.put_directly("object", b"x")
        info = await store.stat("object")
        for kind in set(Kind) - store.offers(info):
            with pytest.raises(StoreUnsupported):
                await consume(store, info, kind)

    async def test_closing_twice_is_fine(self, store: DataStore) -> None:
        await self.put_directly("object", b"x")
        before = asyncio.all_tasks()
        await store.stat("object")
        await store.aclose()
        await store.aclose()
        await self.expect_no_more_tasks(before)
