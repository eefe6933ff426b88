"""The store on a real volume group, held to the contract of stores of disks; thick volumes, with and without wiping."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from stores.backends.lvm import LvmStore
from stores.backends.lvm_names import doomed_name, pending_name, replaced_name
from stores.backends.lvm_notes import LvmNotes
from stores.contract import DataStore, MiB
from stores.errors import NotFound
from stores.settings import Wipe
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from stores.wrappers.noted import NotedStore
from tests.contract.store_devices import SIZE, DeviceHooks, StoreMakesDevices
from tests.lvm import LoopLvm, VolumeGroup
from tests.objects import TOKEN, content


class OnVolumeGroup(DeviceHooks):
    wipe = Wipe.NONE

    @pytest.fixture
    async def store(self, volume_group: VolumeGroup, engine: TransferEngine) -> AsyncIterator[DataStore]:
        self.group = volume_group
        self.lvm = LoopLvm(ToolRunner(), volume_group)
        images = LvmStore(self.lvm, engine, id="pool:lvm", wipe=self.wipe)
        store = NotedStore(images, LvmNotes(self.lvm, id="pool:lvm"))
        yield store
        await store.aclose()

    async def put_directly(self, ref: str, data: bytes) -> None:
        self.group.make(ref, len(data))
        self.group.activate(ref).write_bytes(data)
        self.group.deactivate(ref)

    async def read_directly(self, ref: str) -> bytes | None:
        return self.group.read(ref) if ref in self.group.volumes() else None

    async def everything_left(self) -> set[str]:
        return self.group.volumes()


class TestLvmStore(OnVolumeGroup, StoreMakesDevices):
    async def test_a_crash_while_one_takes_anothers_place(self, store: DataStore) -> None:
        """At its worst moment: the old one has been called differently, and the new one is not called so yet."""
        await self.put_directly(replaced_name("disk"), content(SIZE, 1))
        await self.put_directly(pending_name("disk", TOKEN), content(SIZE, 2))
        await store.discard("disk", token=TOKEN)
        assert await self.read_directly("disk") == content(SIZE, 2)
        assert await self.everything_left() == {"disk"}

    async def test_a_crash_after_one_took_anothers_place(self, store: DataStore) -> None:
        await self.put_directly("disk", content(SIZE, 2))
        await self.put_directly(replaced_name("disk"), content(SIZE, 1))
        await store.discard("disk", token=TOKEN)
        assert await self.read_directly("disk") == content(SIZE, 2)
        assert await self.everything_left() == {"disk"}

    async def test_a_crash_while_one_is_removed(self, store: DataStore) -> None:
        await self.put_directly(doomed_name("disk"), content(SIZE))
        with pytest.raises(NotFound):
            await store.stat("disk")
        await store.delete("disk")
        assert await self.everything_left() == set()

    async def test_a_crash_before_what_it_got_was_wiped(self, store: DataStore) -> None:
        await self.put_directly("before", b"\xee" * 2 * SIZE)
        await store.delete("before")
        await self.put_directly("disk", content(SIZE))
        await self.lvm.note_growth(await self.lvm.known("disk"))
        await self.lvm.resize("disk", 2 * SIZE)
        async with self.image(store, "disk"):
            assert await self.read_directly("disk") == content(SIZE) + bytes(SIZE)
        assert (await self.lvm.known("disk")).grown_from is None

    async def test_a_group_that_is_gone(self, store: DataStore) -> None:
        self.group.lvm("vgrename", self.group.name, f"{self.group.name}x")
        try:
            for call in (store.stat("disk"), store.usage(), store.delete("disk")):
                with pytest.raises(NotFound, match=self.group.name):
                    await call
        finally:
            self.group.lvm("vgrename", f"{self.group.name}x", self.group.name)


class TestWipedByZeroes(OnVolumeGroup):
    wipe = Wipe.ZERO

    async def test_what_is_removed_is_wiped(self, store: DataStore) -> None:
        await self.put_directly("disk", b"\xee" * SIZE)
        await self.put_directly("other", b"\xdd" * MiB)
        await store.delete("disk")
        self.group.make("next", SIZE)
        assert await self.read_directly("next") == bytes(SIZE)
        assert await self.read_directly("other") == b"\xdd" * MiB

    async def test_what_was_never_finished_is_wiped(self, store: DataStore) -> None:
        await self.put_directly(pending_name("disk", TOKEN), b"\xee" * SIZE)
        await store.discard("disk", token=TOKEN)
        self.group.make("next", SIZE)
        assert await self.read_directly("next") == bytes(SIZE)
