"""The store contract: writing in order, and removing."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from stores.contract import DataStore, KiB, Kind, MiB, ObjectInfo
from stores.errors import (
    AlreadyExists,
    IntegrityError,
    InvalidReference,
    NotFound,
    StoreUnsupported,
)
from tests.contract.store_hooks import HOSTILE_REFS, STRANGE_REFS, WriteHooks
from tests.objects import TOKEN, content, sending, sha


class StoreWrites(WriteHooks):
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
