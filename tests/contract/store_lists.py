"""The store contract: listing and counting."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from stores.contract import DataStore
from stores.errors import (
    InvalidReference,
    StoreUnsupported,
)
from stores.paths import RECORDS
from tests.contract.store_hooks import STRANGE_REFS, ReadHooks
from tests.objects import refs


class StoreLists(ReadHooks):
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
