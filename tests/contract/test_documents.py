"""The documents contract over objects of a store, and over the VDIs of an SR."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hypervisors.documents import About, Documents, StoreDocuments
from hypervisors.narrowing import as_pending_disk
from hypervisors.xen.marks import document_key
from stores.backends.lvm_notes import LvmNotes
from stores.backends.memory import MemoryStore
from stores.contract import Kind
from stores.errors import IntegrityError, NotFound, TooLarge, Unavailable
from stores.tools.process import ToolRunner
from tests.contract.documents_contract import RECORD, TOKEN, DocumentsContract
from tests.doubles.xapi import running
from tests.lvm import LoopLvm, VolumeGroup
from tests.xen_pools import SIZE, Site, shared_sr


class TestStoreDocuments(DocumentsContract):
    memory: MemoryStore

    @pytest.fixture
    def documents(self) -> Documents:
        self.memory = MemoryStore()
        return StoreDocuments(self.memory)

    async def image(self, ref: str) -> None:
        """Documents need none."""

    async def left(self) -> int:
        return len(self.memory._objects) + len(self.memory._pending)


class TestLvmDocuments(DocumentsContract):
    """In the tags of a volume group."""

    @pytest.fixture
    def documents(self, volume_group: VolumeGroup) -> Documents:
        self.notes = LvmNotes(LoopLvm(ToolRunner(), volume_group), id="pool:lvm")
        return StoreDocuments(self.notes)

    async def image(self, ref: str) -> None:
        """Documents need none."""

    async def left(self) -> int:
        return len(await self.notes.refs())


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running(tmp_path / "p") as fake, shared_sr(fake) as one:
        yield one


class TestVdiDocuments(DocumentsContract):
    site: Site

    @pytest.fixture
    def documents(self, site: Site) -> Documents:
        self.site = site
        return site.sr.documents

    async def image(self, ref: str) -> None:
        await self.site.make(ref)

    async def left(self) -> int:
        configs = [record["other_config"] for record in (await self.site.vdis()).values()]
        return sum(":doc:" in key for config in configs for key in config)

    async def test_they_come_before_their_image(self, documents: Documents) -> None:
        """While it is being made, by the command that makes it."""
        async with self.site.store.write("a", Kind.MANAGED_DISK, token=TOKEN) as pending:
            await as_pending_disk(pending).make(SIZE)
            with pytest.raises(NotFound, match="to keep the record of a with"):
                await documents.put(About("a", ("record",)), b"1", token="another")
            await documents.put(About("a", ("record",)), b"1", token=TOKEN)
            assert await documents.read(About("a", ("record",))) == b"1"
            await as_pending_disk(pending).commit()
        assert await documents.read(About("a", ("record",))) == b"1"
        await self.site.store.delete("a")
        assert await documents.read(About("a", ("record",))) is None

    async def test_they_go_over_to_what_replaces_their_image(self, documents: Documents) -> None:
        await self.image("a")
        for name in ("x", "y#2"):
            await documents.put(About("a", ("children", name)), name.encode(), token=TOKEN)
        await self.site.make("a", replace=True)
        assert list(await documents.names(About("a", ("children",)))) == ["x", "y#2"]
        assert await documents.read(About("a", ("children", "y#2"))) == b"y#2"
        assert await self.left() == 2

    async def test_copies_have_none(self, documents: Documents) -> None:
        """Neither ours nor somebody else's, which begins anew with its own."""
        await self.image("a")
        await documents.put(About("a", ("record",)), b"1", token=TOKEN)
        await self.site.derive("b", "a", frozen=True)
        handle = self.site.handle_of((await self.site.store.stat("a")).version or "")
        theirs = await self.site.pool.call("VDI.get_uuid", await self.site.pool.call("VDI.clone", handle, {}))
        for ref in ("b", theirs):
            assert await documents.read(About(ref, ("record",))) is None
            await documents.put(About(ref, ("children", "c")), b"", token=TOKEN)
            assert await documents.read(About(ref, ("record",))) is None
            assert list(await documents.names(About(ref, ("children",)))) == ["c"]
        assert await documents.read(About("a", ("record",))) == b"1"
        assert await self.left() == 3

    async def test_disks_of_others_keep_them_beside_what_is_theirs(self, documents: Documents) -> None:
        uuid = await self.site.fake.controls.make_vdi((await self.site.fake.controls.srs())["shared"], SIZE)
        await self.site.pool.call("VDI.add_to_other_config", self.site.handle_of(uuid), "theirs", "1")
        await documents.put(About(uuid, ("record",)), b"1", token=TOKEN)
        assert await documents.read(About(uuid, ("record",))) == b"1"
        assert (await self.site.vdis())[uuid]["other_config"]["theirs"] == "1"
        assert await self.site.refs() == [uuid]

    async def test_a_replacement_that_was_interrupted_counts(self, documents: Documents) -> None:
        await self.image(RECORD.image)
        await documents.put(RECORD, b"1", token=TOKEN)
        handle = self.site.handle_of((await self.site.store.stat(RECORD.image)).version or "")
        await self.site.pool.call("VDI.add_to_other_config", handle, document_key(RECORD.parts, 2), "2")
        assert await documents.read(RECORD) == b"2"
        await documents.discard(RECORD, token=TOKEN)
        assert (await documents.read(RECORD), await self.left()) == (b"2", 1)

    @pytest.mark.parametrize("match", ["VDI.add_to_other_config", "VDI.remove_from_other_config"])
    @pytest.mark.parametrize("step", ["start", "answer"])
    async def test_calls_that_fail_leave_the_old_or_the_new(self, documents: Documents, step: str, match: str) -> None:
        await self.image(RECORD.image)
        await documents.put(RECORD, b"1", token=TOKEN)
        await self.site.fake.controls.arm(where="rpc", step=step, action="drop", match=match)
        await documents.put(RECORD, b"2", token=TOKEN, replace=True)
        assert (await documents.read(RECORD), await self.left()) == (b"2", 1)
        await self.site.fake.controls.arm(where="rpc", step=step, action="drop", match=match, times=None)
        expected: tuple[bytes, ...] = (b"2", b"3")
        try:
            await documents.put(RECORD, b"3", token=TOKEN, replace=True)
            expected = (b"3",)  # only what it replaced could not be removed
        except Unavailable:
            assert match == "VDI.add_to_other_config"
        await self.site.fake.controls.disarm()
        assert await documents.read(RECORD) in expected
        await documents.put(RECORD, b"4", token=TOKEN, replace=True)
        assert (await documents.read(RECORD), await self.left()) == (b"4", 1)

    async def test_what_was_replaced_does_not_come_back(self, documents: Documents) -> None:
        """When removing is interrupted between two versions."""
        await self.image(RECORD.image)
        await documents.put(RECORD, b"1", token=TOKEN)
        handle = self.site.handle_of((await self.site.store.stat(RECORD.image)).version or "")
        await self.site.pool.call("VDI.add_to_other_config", handle, document_key(RECORD.parts, 2), "2")
        await self.site.fake.controls.arm(
            where="rpc", step="start", action="drop", match="VDI.remove_from_other_config", skip=1, times=None
        )
        with pytest.raises(Unavailable):
            await documents.remove(RECORD)
        await self.site.fake.controls.disarm()
        assert (await documents.read(RECORD), await self.left()) == (b"2", 1)

    async def test_they_have_bounds(self, documents: Documents) -> None:
        await self.image("a")
        with pytest.raises(TooLarge):
            await documents.put(About("a", ("record",)), b"x" * (64 * 1024 + 1), token=TOKEN)
        assert await self.left() == 0

    async def test_what_somebody_wrote_over_is_damaged(self, documents: Documents) -> None:
        await self.image(RECORD.image)
        handle = self.site.handle_of((await self.site.store.stat(RECORD.image)).version or "")
        await self.site.pool.call("VDI.add_to_other_config", handle, document_key(RECORD.parts, 1), "base64:not at all")
        with pytest.raises(IntegrityError, match="is damaged"):
            await documents.read(RECORD)
