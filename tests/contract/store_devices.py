"""The store contract of stores that keep raw disks and no files (`stores.contract.DEVICES`), as a mixin.

A subclass gives a `store` fixture and the hooks, which must not go through the store under test. Sizes are whole MiB: storages
round up.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from hypervisors.qemu.nodes import raw_node
from stores.contract import DEVICES, DataStore, Kind, MiB, NetworkImage, ObjectInfo, PendingImage
from stores.errors import AlreadyExists, InvalidReference, NotFound, ObjectChanged, StoreUnsupported
from tests.contract.store_hooks import HOSTILE_REFS
from tests.objects import TOKEN, content, refs

SIZE = 2 * MiB


class DeviceHooks(abc.ABC):
    @abc.abstractmethod
    async def put_directly(self, ref: str, data: bytes) -> None:
        """A new disk with that content."""

    @abc.abstractmethod
    async def read_directly(self, ref: str) -> bytes | None:
        """The disk's bytes, or None if there is no such disk."""

    @abc.abstractmethod
    async def everything_left(self) -> set[str]:
        """All disks in the place of the store, by their names there."""

    @asynccontextmanager
    async def image(self, store: DataStore, ref: str) -> AsyncIterator[NetworkImage]:
        info = await store.stat(ref)
        (kind,) = store.offers(info) & set(DEVICES)
        async with store.present(info, kind) as presentation:
            assert isinstance(presentation, NetworkImage)
            assert (presentation.info, presentation.kind) == (info, kind)
            yield presentation

    @asynccontextmanager
    async def making(
        self, store: DataStore, ref: str, *, token: str = TOKEN, replace: bool = False
    ) -> AsyncIterator[PendingImage]:
        (kind,) = store.writes & set(DEVICES)
        async with store.write(ref, kind, token=token, replace=replace) as pending:
            assert pending.kind is kind
            yield cast(PendingImage, pending)


class StoreReadsDevices(DeviceHooks):
    """Looking at disks and reading them."""

    missing = "missing"
    """A name that no disk has."""

    async def test_id_is_stable_text(self, store: DataStore) -> None:
        assert store.id.isprintable()

    async def test_stat_tells_size_and_version(self, store: DataStore) -> None:
        ref = await self.named(store, "disk", content(SIZE))
        info = await store.stat(ref)
        assert (info.ref, info.size, info.is_dir) == (ref, SIZE, False)
        assert info.version
        assert info == await store.stat(ref)

    async def named(self, store: DataStore, ref: str, data: bytes) -> str:
        """The ref of a new disk."""
        await self.put_directly(ref, data)
        return ref

    async def test_missing_disk_is_not_found(self, store: DataStore) -> None:
        with pytest.raises(NotFound):
            await store.stat(self.missing)
        for kind in store.offers():
            with pytest.raises((NotFound, ObjectChanged)):
                async with store.present(ObjectInfo(self.missing, SIZE, version="1"), kind):
                    pass

    @pytest.mark.parametrize("ref", HOSTILE_REFS)
    async def test_hostile_ref_is_refused(self, store: DataStore, ref: str) -> None:
        with pytest.raises(InvalidReference):
            await store.stat(ref)
        for kind in store.offers():
            with pytest.raises(InvalidReference):
                async with store.present(ObjectInfo(ref, 1), kind):
                    pass
        for kind in store.writes:
            with pytest.raises(InvalidReference):
                async with store.write(ref, kind, token=TOKEN):
                    pass
        for removal in (store.delete(ref), store.discard(ref, token=TOKEN)):
            with pytest.raises(InvalidReference):
                await removal

    async def test_qemu_reads_the_whole_disk(self, store: DataStore, tmp_path: Path) -> None:
        data = content(SIZE)
        ref = await self.named(store, "disk", data)
        for _ in range(2):
            async with self.image(store, ref) as image:
                assert await read(image, tmp_path) == data

    async def test_two_readers_at_once(self, store: DataStore, tmp_path: Path) -> None:
        data = content(SIZE)
        ref = await self.named(store, "disk", data)
        async with self.image(store, ref) as one:
            async with self.image(store, ref) as other:
                assert await read(other, tmp_path) == data
            assert await read(one, tmp_path) == data

    async def test_unknown_kind_is_unsupported(self, store: DataStore) -> None:
        ref = await self.named(store, "disk", content(SIZE))
        info = await store.stat(ref)
        for kind in set(Kind) - store.offers(info) - {Kind.UPLOAD}:
            with pytest.raises(StoreUnsupported):
                async with store.present(info, kind):
                    pass
        for kind in set(Kind) - store.writes - {Kind.UPLOAD}:
            with pytest.raises(StoreUnsupported):
                async with store.write("other", kind, token=TOKEN):
                    pass

    async def test_what_qemu_has_open_for_writing_is_in_use(self, store: DataStore, tmp_path: Path) -> None:
        ref = await self.named(store, "disk", content(SIZE))
        async with self.image(store, ref) as image:
            assert not await image.storage.in_use()
            if not self.knows_users:
                return
            async with written_by_qemu(image):
                assert await image.storage.in_use()
            assert not await image.storage.in_use()

    knows_users = True
    """Whether the storage knows who has a disk open."""

    async def test_usage_counts(self, store: DataStore) -> None:
        with contextlib.suppress(StoreUnsupported):
            usage = await store.usage()
            assert usage.used >= 0
            assert usage.capacity is None or usage.capacity >= usage.used

    async def test_closing_twice_is_fine(self, store: DataStore) -> None:
        before = asyncio.all_tasks()
        await store.stat(await self.named(store, "disk", content(SIZE)))
        await store.aclose()
        await store.aclose()
        assert asyncio.all_tasks() == before


class StoreFillsDevices(StoreReadsDevices):
    """Filling disks that others make."""

    async def test_a_disk_holds_what_was_written(self, store: DataStore, tmp_path: Path) -> None:
        ref = await self.named(store, "disk", content(SIZE, 1))
        before, left = await store.stat(ref), await self.everything_left()
        async with self.making(store, ref) as pending:
            assert not pending.blank
            await write(await pending.make(SIZE), content(SIZE, 2), tmp_path)
            assert await pending.commit() == before
        assert await self.read_directly(ref) == content(SIZE, 2)
        assert await self.everything_left() == left

    async def test_a_disk_that_is_too_small_is_not_written(self, store: DataStore) -> None:
        ref = await self.named(store, "disk", content(SIZE))
        async with self.making(store, ref) as pending:
            await pending.make(SIZE - 1)
            with pytest.raises(StoreUnsupported, match="where it was made"):
                await pending.make(SIZE + 1)
        assert await self.read_directly(ref) == content(SIZE)

    async def test_a_disk_that_nobody_made_is_not_found(self, store: DataStore) -> None:
        with pytest.raises(NotFound):
            async with self.making(store, self.missing):
                pass

    async def test_a_disk_shares_nothing_and_keeps_its_size(self, store: DataStore) -> None:
        ref = await self.named(store, "disk", content(SIZE))
        async with self.image(store, ref) as image, self.making(store, ref) as pending:
            with pytest.raises(StoreUnsupported):
                await pending.derive(image, None)
            await image.storage.resize(SIZE)
            for size in (SIZE - MiB, SIZE + MiB):
                with pytest.raises(StoreUnsupported, match="where it was made"):
                    await image.storage.resize(size)
        assert await self.read_directly(ref) == content(SIZE)

    async def test_a_disk_stays_when_it_is_deleted(self, store: DataStore) -> None:
        assert store.given
        ref = await self.named(store, "disk", content(SIZE))
        for _ in range(2):
            await store.delete(ref)
            await store.discard(ref, token=TOKEN)
        await store.delete(self.missing)
        assert await self.read_directly(ref) == content(SIZE)

    async def test_there_is_no_place_for_snapshots(self, store: DataStore) -> None:
        with pytest.raises(StoreUnsupported, match="snapshot"):
            async with self.making(store, ".storage-agent/frozen/disk/s1"):
                pass


class StoreMakesDevices(StoreReadsDevices):
    """Making disks, and removing them."""

    async def test_a_disk_is_what_was_written(self, store: DataStore, tmp_path: Path) -> None:
        data = content(SIZE)
        async with self.making(store, "disk") as pending:
            image = await pending.make(SIZE)
            await write(image, data, tmp_path)
            info = await pending.commit()
        assert info == await store.stat("disk")
        assert (info.ref, info.size) == ("disk", SIZE)
        assert await self.read_directly("disk") == data
        assert await self.everything_left() == {"disk"}

    async def test_what_is_blank_reads_as_zeroes(self, store: DataStore, tmp_path: Path) -> None:
        await self.put_directly("before", b"\xee" * SIZE)
        await store.delete("before")
        async with self.making(store, "disk") as pending:
            image = await pending.make(SIZE)
            if pending.blank:
                assert await read(image, tmp_path) == bytes(SIZE)

    async def test_it_has_at_least_the_size_that_was_asked_for(self, store: DataStore) -> None:
        async with self.making(store, "disk") as pending:
            await pending.make(SIZE + 1)
            info = await pending.commit()
        assert info.size is not None
        assert info.size > SIZE

    async def test_nothing_is_visible_before_commit(self, store: DataStore) -> None:
        async with self.making(store, "disk") as pending:
            await pending.make(SIZE)
            with pytest.raises(NotFound):
                await store.stat("disk")
            assert await refs(store.list()) == []
            await pending.commit()
        assert await refs(store.list()) == ["disk"]

    async def test_leaving_without_commit_leaves_nothing(self, store: DataStore) -> None:
        async with self.making(store, "disk") as pending:
            await pending.make(SIZE)
        async with self.making(store, "disk"):
            pass
        assert await self.everything_left() == set()

    async def test_failing_and_cancelled_writers_leave_nothing(self, store: DataStore) -> None:
        async def fail() -> None:
            async with self.making(store, "disk") as pending:
                await pending.make(SIZE)
                raise ZeroDivisionError

        async def wait(delay: float) -> None:
            async with self.making(store, "disk") as pending:
                await pending.make(SIZE)
                await asyncio.sleep(60)

        with pytest.raises(ZeroDivisionError):
            await fail()
        for delay in (0.0, 0.01, 0.1):
            task = asyncio.create_task(wait(delay))
            await asyncio.sleep(delay)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await self.everything_left() == set()

    async def test_taken_name_is_not_overwritten(self, store: DataStore) -> None:
        await self.put_directly("disk", content(SIZE))
        with pytest.raises(AlreadyExists):
            async with self.making(store, "disk"):
                pass
        assert await self.read_directly("disk") == content(SIZE)

    async def test_name_taken_meanwhile_is_not_overwritten(self, store: DataStore) -> None:
        async with self.making(store, "disk") as pending:
            await pending.make(SIZE)
            await self.put_directly("disk", content(SIZE))
            with pytest.raises(AlreadyExists):
                await pending.commit()
        assert await self.read_directly("disk") == content(SIZE)
        assert await self.everything_left() == {"disk"}

    async def test_replace_takes_the_place(self, store: DataStore, tmp_path: Path) -> None:
        await self.put_directly("disk", content(SIZE, 1))
        before = await store.stat("disk")
        async with self.making(store, "disk", replace=True) as pending:
            await write(await pending.make(SIZE), content(SIZE, 2), tmp_path)
            assert await self.read_directly("disk") == content(SIZE, 1)
            info = await pending.commit()
        assert await self.read_directly("disk") == content(SIZE, 2)
        assert info.version != before.version
        assert await self.everything_left() == {"disk"}

    async def test_what_is_derived_shares_content_or_is_refused(self, store: DataStore, tmp_path: Path) -> None:
        await self.put_directly("origin", content(SIZE))
        async with self.image(store, "origin") as origin, self.making(store, "clone") as pending:
            try:
                clone = await pending.derive(origin, None)
            except StoreUnsupported:
                assert await self.everything_left() == {"origin"}
                return
            assert await read(clone, tmp_path) == content(SIZE)
            await write(clone, content(SIZE, 2), tmp_path)
            await pending.commit()
        assert await self.read_directly("origin") == content(SIZE)
        assert await self.read_directly("clone") == content(SIZE, 2)

    async def test_a_disk_grows_by_zeroes_and_shrinks(self, store: DataStore) -> None:
        await self.put_directly("before", b"\xee" * 3 * SIZE)
        await store.delete("before")
        await self.put_directly("disk", content(SIZE))
        async with self.image(store, "disk") as image:
            for _ in range(2):
                await image.storage.resize(2 * SIZE)
                assert await self.read_directly("disk") == content(SIZE) + bytes(SIZE)
            await image.storage.resize(SIZE)
        assert await self.read_directly("disk") == content(SIZE)
        assert (await store.stat("disk")).size == SIZE

    async def test_a_dead_writer_is_known_by_its_token(self, store: DataStore) -> None:
        async with self.making(store, "disk") as pending:
            await pending.make(SIZE)
            await store.discard("disk", token="another")
            assert await self.everything_left() != set()
            await store.discard("disk", token=TOKEN)
            await store.discard("disk", token=TOKEN)
            assert await self.everything_left() == set()

    async def test_deleting_is_idempotent(self, store: DataStore) -> None:
        await self.put_directly("disk", content(SIZE))
        await self.put_directly("other", content(SIZE))
        for _ in range(2):
            await store.delete("disk")
            assert await self.everything_left() == {"other"}
        with pytest.raises(NotFound):
            await store.stat("disk")

    async def test_listing_shows_disks_in_order(self, store: DataStore) -> None:
        assert await refs(store.list()) == []
        for name in ("b", "a-1", "a"):
            await self.put_directly(name, content(SIZE))
        assert await refs(store.list()) == ["a", "a-1", "b"]
        assert await refs(store.list("a")) == ["a"]
        assert [info.size async for info in store.list()] == [SIZE] * 3


async def read(image: NetworkImage, folder: Path) -> bytes:
    """All of the disk, as qemu reads it."""
    raw = folder / "read"
    await _qemu_img("convert", "-O", "raw", *raw_node(image).arguments(), str(raw))
    return raw.read_bytes()


async def write(image: NetworkImage, data: bytes, folder: Path) -> None:
    """`data` to the beginning of the disk, by qemu."""
    raw = folder / "written"
    raw.write_bytes(data)
    *objects, node = raw_node(image).arguments()
    await _qemu_img("convert", "-n", "-f", "raw", "-O", "raw", *objects, str(raw), node)


async def _qemu_img(*arguments: str) -> None:
    await asyncio.to_thread(subprocess.run, ["qemu-img", *arguments], check=True, capture_output=True)


@asynccontextmanager
async def written_by_qemu(image: NetworkImage) -> AsyncIterator[None]:
    """A qemu process that has the disk open for writing."""
    process = await asyncio.create_subprocess_exec(
        *("qemu-io", *raw_node(image).arguments()), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(b"length\n")
        await process.stdout.readuntil(b"MiB")
        yield
    finally:
        process.stdin.close()
        await process.wait()
