"""The store contract: sending files in parts that outlive the process."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from stores.contract import DataStore, Kind, ObjectInfo, Silent
from stores.errors import (
    AlreadyExists,
    IntegrityError,
    InvalidReference,
    NotFound,
)
from stores.transfer.sending import send_all
from tests.contract.store_hooks import HOSTILE_REFS, WriteHooks
from tests.objects import TOKEN, content, sha


class StoreUploads(WriteHooks):
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
