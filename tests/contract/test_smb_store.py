"""The store contract on a real Samba."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stores.backends.smb import SmbStore
from stores.backends.smb_names import is_name
from stores.contract import DataStore
from stores.settings import StoreSettings
from stores.transfer.engine import TransferEngine
from tests.contract.store_hooks import STRANGE_REFS
from tests.contract.store_lists import StoreLists
from tests.contract.store_reads import StoreReads
from tests.contract.store_writes import StoreWrites
from tests.contract.test_filesystem_store import DirectoryHooks
from tests.objects import refs
from tests.samba import SambaServer

NAMES = [ref for ref in STRANGE_REFS if is_name(ref)]
"""Of the unusual names those that Windows gives no meaning of its own. The others: tests/unit/test_smb_names.py."""


class TestSamba(DirectoryHooks, StoreReads, StoreLists, StoreWrites):
    """Set-up and looking happen in the exported directory, behind Samba's back, which does not notice what changes in place
    there while it has a file open: so a new object comes by a rename."""

    async def put_directly(self, ref: str, data: bytes) -> None:
        await super().put_directly(f"{ref}.new", data)
        os.replace(self.root / f"{ref}.new", self.root / ref)

    @pytest.fixture(autouse=True)
    def folder(self, samba: SambaServer) -> Path:
        self.root = samba.root / uuid.uuid4().hex
        self.root.mkdir()
        return self.root

    @pytest.fixture
    async def store(self, samba: SambaServer, folder: Path, engine: TransferEngine) -> AsyncIterator[SmbStore]:
        before = set(os.listdir("/proc/self/fd"))
        store = SmbStore(samba.place(folder.name), StoreSettings(), engine, id="smb:test")
        yield store
        await store.aclose()
        assert set(os.listdir("/proc/self/fd")) <= before, "descriptors are left open"
        assert not [thread.name for thread in threading.enumerate() if "msg_worker" in thread.name]

    @pytest.mark.parametrize("ref", NAMES)
    async def test_unusual_names_are_taken_literally(self, store: DataStore, ref: str) -> None:
        await super().test_unusual_names_are_taken_literally(store, ref)

    @pytest.mark.parametrize("ref", NAMES)
    async def test_unusual_names_are_written_literally(self, store: DataStore, ref: str) -> None:
        await super().test_unusual_names_are_written_literally(store, ref)

    async def test_unusual_names_are_listed_literally(self, store: DataStore) -> None:
        await self._fill(NAMES)
        assert await refs(store.list()) == sorted(NAMES)
