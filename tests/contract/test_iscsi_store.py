"""LUNs of a real target, with CHAP, held to what the contract of stores of disks says of disks that others make."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from stores.backends.iscsi import IscsiStore
from stores.backends.iscsi_place import place_of
from stores.contract import DataStore, MiB
from stores.errors import AccessDenied, InvalidReference, NotFound, Unavailable
from stores.tools.process import ToolRunner
from tests.contract.store_devices import SIZE, StoreFillsDevices
from tests.objects import content
from tests.tgt import IscsiServer, TargetLun, run_tgt


class TestIscsiStore(StoreFillsDevices):
    missing = "iqn.2026-01.test.example:missing/1"
    knows_users = False

    @pytest.fixture
    async def store(self, tgt: IscsiServer) -> AsyncIterator[DataStore]:
        self.server = tgt
        self.luns: dict[str, TargetLun] = {}
        store = self._store(tgt)
        yield store
        await store.aclose()
        for lun in self.luns.values():
            tgt.remove(lun)

    def _store(self, tgt: IscsiServer, *, secret: str | None = None, port: int | None = None) -> IscsiStore:
        place = place_of(tgt.pool(secret=secret, port=port))
        return IscsiStore(place, ToolRunner(), id="pool:luns", timeout_s=5.0)

    async def put_directly(self, ref: str, data: bytes) -> None:
        await self.named(None, ref, data)

    async def named(self, store: DataStore | None, ref: str, data: bytes) -> str:
        lun = self.server.lun(data)
        self.luns[lun.ref] = lun
        return lun.ref

    async def read_directly(self, ref: str) -> bytes | None:
        return self.luns[ref].file.read_bytes() if ref in self.luns else None

    async def everything_left(self) -> set[str]:
        return set(self.luns)

    # ------------------------------------------------------------------------------------------------- its own habits

    @pytest.mark.parametrize("secret", ["wrong-secret-1", ""])
    async def test_without_the_right_secret(self, store: DataStore, tgt: IscsiServer, secret: str) -> None:
        ref = await self.named(store, "disk", content(SIZE))
        with pytest.raises(AccessDenied, match="CHAP") as refused:
            await self._store(tgt, secret=secret).stat(ref)
        assert tgt.secret not in repr((refused.value.message, refused.value.details))

    async def test_without_chap(self, store: DataStore, tgt: IscsiServer) -> None:
        lun = tgt.lun(content(SIZE), chap=False)
        assert (await self._store(tgt, secret="").stat(lun.ref)).size == SIZE
        tgt.remove(lun)

    async def test_what_is_no_disk(self, store: DataStore) -> None:
        target = (await self.named(store, "disk", content(SIZE))).removesuffix("/1")
        for ref in (f"{target}/0", f"{target}/7", f"{target}x/1"):
            with pytest.raises(NotFound):
                await store.stat(ref)

    @pytest.mark.parametrize(
        "ref", ["disk", "iqn.2026-01.a:b", "iqn.2026-01.a:b/x", "iqn.2026-01.a,b/1", "iqn.26-1.a/1"]
    )
    async def test_what_cannot_be_a_lun(self, store: DataStore, ref: str) -> None:
        with pytest.raises(InvalidReference):
            await store.stat(ref)

    async def test_a_portal_that_is_not_there(self, store: DataStore, tgt: IscsiServer) -> None:
        with pytest.raises(Unavailable):
            await self._store(tgt, port=1).stat(self.missing)

    async def test_a_portal_that_goes_away(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        with run_tgt(tmp_path_factory.mktemp("tgt")) as server:
            lun = server.lun(content(1 * MiB))
            store = self._store(server)
            await store.stat(lun.ref)
        with pytest.raises(Unavailable):
            await store.stat(lun.ref)
