"""What every store must do, as mixins: a test module subclasses them, says how to make its store, and how to look past it.

`StoreReads` is for every store, `StoreLists`, `StoreWrites` and `StoreUploads` for those that can; `StoreContract` is all of
them. A subclass gives a `store` fixture and the hooks, which must not go through the store under test:

    class TestS3Store(StoreContract):
        @pytest.fixture
        async def store(self, bucket, seaweed): ...
        async def put_directly(self, ref, data): ...
        async def read_directly(self, ref): ...
        async def everything_left(self): ...
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from stores.contract import ByteStream, DataStore, KiB, Kind, MiB, ObjectInfo, PendingStream, RangeReader, Silent
from stores.errors import (
    AlreadyExists,
    IntegrityError,
    InvalidReference,
    NotFound,
    ObjectChanged,
    StoreUnsupported,
)
from stores.paths import RECORDS
from stores.transfer.sending import send_all
from stores.transfer.threads import Threads

TOKEN = "command-1"

HOSTILE_REFS = [
    "",
    "/etc/passwd",
    "../secret",
    "a/../../secret",
    "a/..",
    "./a",
    "a//b",
    "a/",
    "a\0b",
    "a\nb",
    "a\x7fb",
    "-rf",
    "a/-rf",
    "n" * 256,
    "/".join(["d" * 200] * 6),
    "surrogate-\udc80",
    "dir/.object.0123456789abcdef.partial",
]

STRANGE_REFS = [
    "template/tmpl/2/201/ubuntu.qcow2",
    "with space",
    "plus+plus",
    "percent%41%2F",
    "question?mark#hash",
    "semi;colon&amp=1",
    "ünïcödé/日本語/🦀",
    "quote'double\"back\\slash",
    "tilde~star*brackets[0]{1}",
    ".hidden",
    "a.b/..c/d..",
]


@functools.lru_cache(maxsize=8)
def content(size: int, seed: int = 1) -> bytes:
    """Reproducible bytes that do not compress and do not repeat."""
    return random.Random(seed).randbytes(size)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def read_stream(stream: ByteStream) -> bytes:
    return b"".join([bytes(piece) async for piece in stream])


async def consume(store: DataStore, info: ObjectInfo, kind: Kind) -> None:
    """Open the object in that form, and read all of it where that is done through us."""
    async with store.present(info, kind) as presentation:
        if isinstance(presentation, RangeReader):
            await presentation.read(0, info.size or 0)
        elif isinstance(presentation, ByteStream):
            await read_stream(presentation)


@asynccontextmanager
async def sending(
    store: DataStore, ref: str, *, token: str = TOKEN, size: int | None = None, replace: bool = False
) -> AsyncIterator[PendingStream]:
    """`store.write` as a byte stream."""
    async with store.write(ref, Kind.BYTE_STREAM, token=token, size=size, replace=replace) as pending:
        assert pending.kind is Kind.BYTE_STREAM
        yield cast(PendingStream, pending)


async def refs(listing: AsyncIterator[ObjectInfo]) -> list[str]:
    return [info.ref async for info in listing]


class Hooks:
    """How a test module reaches past the store under test."""

    sparse_size = 8 * MiB + 17
    """Size of the large sparse object; a store that keeps holes can afford much more."""

    async def put_directly(self, ref: str, data: bytes) -> None:
        """Create or overwrite an object."""
        raise NotImplementedError

    async def put_sparse_directly(self, ref: str, size: int, pieces: dict[int, bytes]) -> None:
        """An object of zeroes apart from `pieces`; with holes where the store keeps them."""
        data = bytearray(size)
        for offset, piece in pieces.items():
            data[offset : offset + len(piece)] = piece
        await self.put_directly(ref, bytes(data))

    async def read_directly(self, ref: str) -> bytes | None:
        """The object's bytes, or None if there is no such object."""
        raise NotImplementedError

    async def everything_left(self) -> set[str]:
        """All that exists in the place of the store: objects, temporary files, unfinished uploads."""
        raise NotImplementedError

    upload_part = 8 * MiB
    """Length of the first part of an upload of three of them."""

    async def reopened(self, store: DataStore) -> DataStore:
        """The same store as another process would see it; the store itself where nothing outlives it."""
        return store

    async def expect_no_more_tasks(self, before: set[asyncio.Task[Any]]) -> None:
        """Whatever the store began since has ended."""
        assert asyncio.all_tasks() == before


class StoreReads(Hooks):
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
                assert not any(buffer)
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


class StoreLists(Hooks):
    """Listing and counting."""

    async def _fill(self, names: Iterable[str]) -> None:
        for name in names:
            await self.put_directly(name, name.encode())

    async def test_list_is_complete_and_in_order(self, store: DataStore) -> None:
        names = ["b", "a/2", "a/10", "a-b", "a.b", "a/b/c", "a0", "é", "Z", "a b", "🦀", "\uffee"]
        await self._fill(names)
        assert await refs(store.list()) == sorted(names)

    async def test_listed_objects_have_size_and_version(self, store: DataStore) -> None:
        await self._fill(["one", "dir/three"])
        listed = {info.ref: info async for info in store.list()}
        assert {ref: info.size for ref, info in listed.items()} == {"one": 3, "dir/three": 9}
        assert not any(info.is_dir for info in listed.values())

    async def test_prefix_matches_whole_components(self, store: DataStore) -> None:
        await self._fill(["tmpl/2/a", "tmpl/2/b/c", "tmpl/20/a", "tmpl2", "other"])
        assert await refs(store.list("tmpl")) == ["tmpl/2/a", "tmpl/2/b/c", "tmpl/20/a"]
        assert await refs(store.list("tmpl/2")) == ["tmpl/2/a", "tmpl/2/b/c"]
        assert await refs(store.list("tmpl/2/")) == ["tmpl/2/a", "tmpl/2/b/c"]
        assert await refs(store.list("tmpl/2/a")) == ["tmpl/2/a"]
        assert await refs(store.list("tm")) == []
        assert await refs(store.list("missing/prefix")) == []

    async def test_empty_store_lists_nothing(self, store: DataStore) -> None:
        assert await refs(store.list()) == []

    async def test_records_are_listed_only_when_asked_for(self, store: DataStore) -> None:
        await self._fill(["image", f"{RECORDS}/image.json"])
        assert await refs(store.list()) == ["image"]
        assert await refs(store.list(RECORDS)) == [f"{RECORDS}/image.json"]

    @pytest.mark.parametrize("prefix", ["../..", "/etc", "a/../..", "a\0", "-x"])
    async def test_hostile_prefix_is_refused(self, store: DataStore, prefix: str) -> None:
        with pytest.raises(InvalidReference):
            await refs(store.list(prefix))

    async def test_unusual_names_are_listed_literally(self, store: DataStore) -> None:
        await self._fill(STRANGE_REFS)
        assert await refs(store.list()) == sorted(STRANGE_REFS)

    async def test_listing_left_early_leaves_nothing_open(self, store: DataStore) -> None:
        await self._fill([f"dir{number % 3}/{number}" for number in range(30)])
        listing = store.list()
        async for info in listing:
            assert info.ref == "dir0/0"
            break
        await listing.aclose()  # type: ignore[attr-defined]

    async def test_usage_counts(self, store: DataStore) -> None:
        try:
            usage = await store.usage()
        except StoreUnsupported:
            return
        assert usage.used >= 0
        assert usage.capacity is None or usage.capacity >= usage.used


class StoreWrites(Hooks):
    """Writing by `ByteStream`, which every writable store takes, and removing."""

    async def _write(
        self, store: DataStore, ref: str, data: bytes, *, replace: bool = False, size: bool = True, token: str = TOKEN
    ) -> ObjectInfo:
        announced = len(data) if size else None
        async with sending(store, ref, token=token, size=announced, replace=replace) as pending:
            buffer = bytearray(256 * KiB)
            for offset in range(0, len(data), len(buffer)):
                piece = data[offset : offset + len(buffer)]
                buffer[: len(piece)] = piece
                await pending.write(memoryview(buffer)[: len(piece)])
                buffer[:] = bytes(len(buffer))  # the buffer may be reused when write returns
            return await pending.commit()

    @pytest.mark.parametrize("announced", [True, False])
    @pytest.mark.parametrize("size", [0, 1, 64 * KiB, 6 * MiB + 13])
    async def test_written_content_is_what_was_sent(self, store: DataStore, size: int, announced: bool) -> None:
        data = content(size)
        info = await self._write(store, "dir/object", data, size=announced)
        assert (info.ref, info.size) == ("dir/object", size)
        stored = await self.read_directly("dir/object")
        assert stored is not None
        assert sha(stored) == sha(data)
        seen = await store.stat("dir/object")
        assert (seen.size, seen.version) == (size, info.version)
        assert await self.everything_left() == {"dir/object"}

    @pytest.mark.parametrize("announced", [True, False])
    @pytest.mark.parametrize("size", [1, 64 * KiB, 9 * MiB + 13])
    async def test_rooms_become_the_content_in_the_order_in_which_they_were_given(
        self, store: DataStore, size: int, announced: bool
    ) -> None:
        data = content(size)
        given = 0
        async with sending(store, "dir/object", size=size if announced else None) as pending:
            while given < size:
                rooms: list[tuple[int, memoryview]] = []
                while given < size and len(rooms) < 3:  # few enough for any store
                    room = await pending.room(min(size - given, 1_234_567))
                    assert 0 < len(room) <= min(size - given, 1_234_567)
                    rooms.append((given, room))
                    given += len(room)
                for offset, room in reversed(rooms):
                    room[:] = data[offset : offset + len(room)]
                for _, room in rooms:
                    await pending.filled(room)
            info = await pending.commit()
        assert (info.ref, info.size) == ("dir/object", size)
        stored = await self.read_directly("dir/object")
        assert stored is not None
        assert sha(stored) == sha(data)
        assert await self.everything_left() == {"dir/object"}

    async def test_rooms_follow_what_was_written_and_the_other_way_round(self, store: DataStore) -> None:
        async with sending(store, "object") as pending:
            await pending.write(memoryview(b"head "))
            room = await pending.room(5)
            room[:] = b"body "[: len(room)]
            assert len(room) == 5
            await pending.filled(room)
            await pending.write(memoryview(b"tail"))
            await pending.commit()
        assert await self.read_directly("object") == b"head body tail"

    async def test_room_that_is_not_filled_is_no_part_of_the_object(self, store: DataStore) -> None:
        async with sending(store, "object") as pending:
            await pending.write(memoryview(b"content"))
            (await pending.room(9))[:] = b"no object"
            assert (await pending.commit()).size == 7
        assert await self.read_directly("object") == b"content"

    async def test_leaving_with_rooms_out_leaves_nothing(self, store: DataStore) -> None:
        async with sending(store, "new/dir/object") as pending:
            for _ in range(3):
                await pending.room(1 * MiB)
        assert await self.everything_left() == set()

    @pytest.mark.parametrize("ref", STRANGE_REFS)
    async def test_unusual_names_are_written_literally(self, store: DataStore, ref: str) -> None:
        await self._write(store, ref, b"content")
        assert await self.everything_left() == {ref}
        await store.delete(ref)
        assert await self.everything_left() == set()

    async def test_nothing_is_visible_before_commit(self, store: DataStore) -> None:
        async with sending(store, "object") as pending:
            await pending.write(memoryview(b"content"))
            with pytest.raises(NotFound):
                await store.stat("object")
            assert await self.read_directly("object") is None
            await pending.commit()
        assert await self.read_directly("object") == b"content"

    async def test_leaving_without_commit_leaves_nothing(self, store: DataStore) -> None:
        async with sending(store, "new/dir/object") as pending:
            await pending.write(memoryview(content(6 * MiB)))
        assert await self.everything_left() == set()

    async def test_failing_writer_leaves_nothing(self, store: DataStore) -> None:
        async def fail() -> None:
            async with sending(store, "new/object") as pending:
                await pending.write(memoryview(content(6 * MiB)))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert await self.everything_left() == set()

    async def test_cancelled_writer_leaves_nothing(self, store: DataStore) -> None:
        data = content(1 * MiB)

        async def endless() -> None:
            async with sending(store, "new/object") as pending:
                while True:
                    await pending.write(memoryview(data))

        for delay in (0.0, 0.001, 0.02, 0.1):
            task = asyncio.create_task(endless())
            await asyncio.sleep(delay)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await self.everything_left() == set()

    async def test_cancelled_commit_is_whole_or_absent(self, store: DataStore) -> None:
        data = content(300 * KiB)

        async def send(ref: str) -> None:
            async with sending(store, ref) as pending:
                await pending.write(memoryview(data))
                await pending.commit()

        for turns in range(0, 40, 3):
            task = asyncio.create_task(send(f"dir/{turns}"))
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.sleep(0.0005 * (turns % 4))
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            left = await self.everything_left()
            assert left <= {f"dir/{turns}"}
            if left:
                assert await self.read_directly(f"dir/{turns}") == data
                await store.delete(f"dir/{turns}")
        assert await self.everything_left() == set()

    async def test_wrong_size_is_not_published(self, store: DataStore) -> None:
        async def send(announced: int) -> None:
            async with sending(store, "object", size=announced) as pending:
                await pending.write(memoryview(bytes(100)))
                await pending.commit()

        async def fill(announced: int) -> None:
            async with sending(store, "object", size=announced) as pending:
                await pending.filled(await pending.room(100))
                await pending.commit()

        for way in (send, fill):
            for announced in (99, 101):
                with pytest.raises(IntegrityError):
                    await way(announced)
                assert await self.everything_left() == set()

    async def test_taken_name_is_not_overwritten(self, store: DataStore) -> None:
        await self.put_directly("object", b"first")
        with pytest.raises(AlreadyExists):
            await self._write(store, "object", b"second")
        assert await self.read_directly("object") == b"first"
        assert await self.everything_left() == {"object"}

    async def test_name_taken_meanwhile_is_not_overwritten(self, store: DataStore) -> None:
        async with sending(store, "object") as pending:
            await pending.write(memoryview(b"second"))
            await self.put_directly("object", b"first")
            with pytest.raises(AlreadyExists):
                await pending.commit()
        assert await self.read_directly("object") == b"first"
        assert await self.everything_left() == {"object"}

    async def test_replace_takes_the_place_in_one_step(self, store: DataStore) -> None:
        await self.put_directly("object", b"first")
        before = await store.stat("object")
        async with sending(store, "object", replace=True) as pending:
            await pending.write(memoryview(b"second!"))
            assert await self.read_directly("object") == b"first"
            info = await pending.commit()
        assert await self.read_directly("object") == b"second!"
        assert info.version != before.version
        assert await self.everything_left() == {"object"}

    async def test_replace_creates_what_was_missing(self, store: DataStore) -> None:
        await self._write(store, "object", b"content", replace=True)
        assert await self.read_directly("object") == b"content"

    async def test_abandoned_replace_keeps_the_old_object(self, store: DataStore) -> None:
        await self.put_directly("object", b"first")
        async with sending(store, "object", replace=True) as pending:
            await pending.write(memoryview(b"second"))
        assert await self.read_directly("object") == b"first"
        assert await self.everything_left() == {"object"}

    async def test_writers_in_one_folder_do_not_disturb_each_other(self, store: DataStore) -> None:
        async def writer(number: int) -> None:
            if number % 2:
                await self._write(store, f"dir/{number}", content(200 * KiB, number), token=f"token-{number}")
            else:
                async with sending(store, f"dir/{number}", token=f"token-{number}") as pending:
                    await pending.write(memoryview(content(100 * KiB, number)))

        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(writer(number))
        assert await self.everything_left() == {f"dir/{number}" for number in range(1, 10, 2)}
        for number in range(1, 10, 2):
            assert await self.read_directly(f"dir/{number}") == content(200 * KiB, number)

    @pytest.mark.parametrize("ref", HOSTILE_REFS)
    async def test_hostile_ref_is_not_written_or_deleted(self, store: DataStore, ref: str) -> None:
        for kind in store.writes:
            with pytest.raises(InvalidReference):
                async with store.write(ref, kind, token=TOKEN):
                    pass
        with pytest.raises(InvalidReference):
            await store.delete(ref)
        with pytest.raises(InvalidReference):
            await store.discard(ref, token=TOKEN)
        assert await self.everything_left() == set()

    async def test_unknown_kind_is_not_written(self, store: DataStore) -> None:
        for kind in (set(Kind) - store.writes) | {Kind.UPLOAD}:
            with pytest.raises(StoreUnsupported):
                async with store.write("object", kind, token=TOKEN):
                    pass
        assert await self.everything_left() == set()

    async def test_delete_removes_once_and_twice(self, store: DataStore) -> None:
        await self.put_directly("dir/object", b"x")
        await self.put_directly("dir/other", b"y")
        await store.delete("dir/object")
        assert await self.everything_left() == {"dir/other"}
        await store.delete("dir/object")
        await store.delete("missing/object")
        await store.delete("dir")
        assert await self.read_directly("dir/other") == b"y"

    async def test_discard_without_leftovers_touches_nothing(self, store: DataStore) -> None:
        await self.put_directly("object", b"x")
        await store.discard("object", token=TOKEN)
        await store.discard("missing/object", token=TOKEN)
        assert await self.everything_left() == {"object"}


class StoreUploads(Hooks):
    """Sending local files in parts that outlive the process."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        """A file of three parts, the last of them short."""
        path = tmp_path / "source"
        path.write_bytes(content(2 * self.upload_part + 70_001))
        return path

    async def _send(
        self, store: DataStore, source: Path, ref: str = "dir/object", *, replace: bool = False
    ) -> ObjectInfo:
        async with store.upload(ref, source, token=TOKEN, replace=replace) as upload:
            return await send_all(upload, progress=Silent())

    async def _expect(self, source: Path, info: ObjectInfo, store: DataStore, ref: str = "dir/object") -> None:
        """The object is the file, the answer tells of it, and nothing else is left."""
        stored = await self.read_directly(ref)
        assert stored is not None
        assert sha(stored) == sha(source.read_bytes())
        assert (info.ref, info.size, info.upload) == (ref, source.stat().st_size, None)
        assert (await store.stat(ref)).version == info.version
        assert await self.everything_left() == {ref}

    async def test_file_arrives_as_it_is(self, store: DataStore, source: Path) -> None:
        before = asyncio.all_tasks()
        async with store.upload("dir/object", source, token=TOKEN) as upload:
            assert upload.kind is Kind.UPLOAD
            assert upload.parallel >= 1
            assert upload.parts == 3
            lengths = [upload.length(number) for number in (1, 2, 3)]
            assert (lengths[0], sum(lengths)) == (self.upload_part, source.stat().st_size)
            assert [await upload.send(number) for number in (3, 1, 2)] == [True] * 3
            assert await self.read_directly("dir/object") is None
            info = await upload.commit()
            assert await upload.commit() == info
        await self._expect(source, info, store)
        await self.expect_no_more_tasks(before)

    @pytest.mark.parametrize("size", [0, 1, 100_000])
    async def test_small_file_is_one_part(self, store: DataStore, tmp_path: Path, size: int) -> None:
        source = tmp_path / "small"
        source.write_bytes(content(size))
        async with store.upload("dir/object", source, token=TOKEN) as upload:
            assert (upload.parts, upload.length(1)) == (1, size)
            await upload.send(1)
            info = await upload.commit()
        await self._expect(source, info, store)

    async def test_file_of_holes_arrives_with_zeroes(self, store: DataStore, tmp_path: Path) -> None:
        source = tmp_path / "sparse"
        with source.open("wb") as file:
            file.truncate(2 * self.upload_part + 5)
            file.seek(self.upload_part - 100)
            file.write(b"across a border" * 20)
        await self._expect(source, await self._send(store, source), store)

    async def test_progress_is_told_part_by_part(self, store: DataStore, source: Path) -> None:
        counts: list[int] = []

        class Counts(Silent):
            def advance(self, count: int) -> None:
                counts.append(count)

        async with store.upload("dir/object", source, token=TOKEN) as upload:
            info = await send_all(upload, progress=Counts())
        assert sorted(counts) == sorted([self.upload_part, self.upload_part, 70_001])
        await self._expect(source, info, store)

    async def test_what_was_sent_is_found_by_the_next_process(self, store: DataStore, source: Path) -> None:
        async with store.upload("dir/object", source, token=TOKEN) as upload:
            assert await upload.send(2)
            assert not await upload.send(2)
        assert await self.read_directly("dir/object") is None
        again = await self.reopened(store)
        async with again.upload("dir/object", source, token=TOKEN) as upload:
            assert [await upload.send(number) for number in (1, 2, 3)] == [True, False, True]
        third = await self.reopened(store)
        async with third.upload("dir/object", source, token=TOKEN) as upload:
            assert [await upload.send(number) for number in (1, 2, 3)] == [False] * 3
            info = await upload.commit()
        await self._expect(source, info, third)

    async def test_commit_needs_only_what_the_store_has(self, store: DataStore, source: Path) -> None:
        async with store.upload("dir/object", source, token=TOKEN) as upload:
            for number in (1, 2, 3):
                await upload.send(number)
        again = await self.reopened(store)
        async with again.upload("dir/object", source, token=TOKEN) as upload:
            info = await upload.commit()
        await self._expect(source, info, again)

    async def test_commit_without_all_parts_publishes_nothing(self, store: DataStore, source: Path) -> None:
        async with store.upload("dir/object", source, token=TOKEN) as upload:
            await upload.send(1)
            with pytest.raises(IntegrityError):
                await upload.commit()
            assert await self.read_directly("dir/object") is None
            await upload.send(2)
            await upload.send(3)
            await self._expect(source, await upload.commit(), store)

    async def test_part_with_other_bytes_is_sent_again(self, store: DataStore, source: Path) -> None:
        async with store.upload("dir/object", source, token=TOKEN) as upload:
            for number in (1, 2, 3):
                assert await upload.send(number)
        with source.open("r+b") as file:
            file.seek(self.upload_part + 1000)
            file.write(b"other")
        again = await self.reopened(store)
        async with again.upload("dir/object", source, token=TOKEN) as upload:
            assert [await upload.send(number) for number in (1, 2, 3)] == [False, True, False]
            info = await upload.commit()
        await self._expect(source, info, again)

    @pytest.mark.parametrize("replace", [False, True])
    async def test_commit_whose_answer_was_lost_is_repeated(
        self, store: DataStore, source: Path, replace: bool
    ) -> None:
        info = await self._send(store, source, replace=replace)
        again = await self.reopened(store)
        async with again.upload("dir/object", source, token=TOKEN, replace=replace) as upload:
            assert not any([await upload.send(number) for number in (1, 2, 3)])
            assert (await upload.commit()).version == info.version
        await self._expect(source, info, again)

    async def test_taken_name_is_not_overwritten_by_upload(self, store: DataStore, source: Path) -> None:
        for other in (b"first", content(source.stat().st_size, 9)):
            await self.put_directly("dir/object", other)
            with pytest.raises(AlreadyExists):
                await self._send(store, source)
            await store.discard("dir/object", token=TOKEN)
            assert await self.read_directly("dir/object") == other
            assert await self.everything_left() == {"dir/object"}

    async def test_name_taken_during_upload_is_not_overwritten(self, store: DataStore, source: Path) -> None:
        async with store.upload("dir/object", source, token=TOKEN) as upload:
            for number in (1, 2, 3):
                await upload.send(number)
            await self.put_directly("dir/object", b"first")
            with pytest.raises(AlreadyExists):
                await upload.commit()
        await store.discard("dir/object", token=TOKEN)
        assert await self.read_directly("dir/object") == b"first"
        assert await self.everything_left() == {"dir/object"}

    async def test_upload_replaces_in_one_step(self, store: DataStore, source: Path) -> None:
        await self.put_directly("dir/object", content(source.stat().st_size, 9))
        async with store.upload("dir/object", source, token=TOKEN, replace=True) as upload:
            for number in (1, 2, 3):
                assert await upload.send(number)
            assert await self.read_directly("dir/object") == content(source.stat().st_size, 9)
            info = await upload.commit()
        await self._expect(source, info, store)

    async def test_discard_removes_what_was_sent(self, store: DataStore, source: Path) -> None:
        await self.put_directly("dir/other", b"y")
        async with store.upload("dir/object", source, token=TOKEN) as upload:
            await upload.send(1)
        again = await self.reopened(store)
        await again.discard("dir/object", token="another command")
        async with again.upload("dir/object", source, token=TOKEN) as upload:
            assert not await upload.send(1)
        await again.discard("dir/object", token=TOKEN)
        await again.discard("dir/object", token=TOKEN)
        assert await self.everything_left() == {"dir/other"}

    async def test_cancelled_upload_leaves_nothing_here_and_can_go_on(self, store: DataStore, source: Path) -> None:
        before = asyncio.all_tasks()
        for delay in (0.0, 0.001, 0.01, 0.05):
            task = asyncio.create_task(self._send(store, source))
            await asyncio.sleep(delay)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await self.expect_no_more_tasks(before)
        await self._expect(source, await self._send(await self.reopened(store), source), store)

    async def test_what_is_no_file_is_not_uploaded(self, store: DataStore, tmp_path: Path) -> None:
        for path, error in ((tmp_path / "missing", NotFound), (tmp_path, InvalidReference)):
            with pytest.raises(error):
                await self._send(store, path)
        assert await self.everything_left() == set()

    @pytest.mark.parametrize("ref", HOSTILE_REFS)
    async def test_hostile_ref_is_not_uploaded(self, store: DataStore, tmp_path: Path, ref: str) -> None:
        source = tmp_path / "source"
        source.write_bytes(b"x")
        with pytest.raises(InvalidReference):
            await self._send(store, source, ref)
        assert await self.everything_left() == set()


class StoreContract(StoreReads, StoreLists, StoreWrites, StoreUploads):
    """All of it."""
