"""The store contract over memory, and over each wrapper around memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from stores.backends.memory import MemoryStore, SparseBytes
from stores.contract import GiB, MiB
from stores.transfer.engine import TransferEngine
from stores.wrappers.base import WrapperStore
from stores.wrappers.reporting import ReportingStore
from stores.wrappers.retrying import RetryingStore
from stores.wrappers.verified import Expected, VerifiedStore
from tests.contract.store_contract import StoreContract
from tests.contract.store_hooks import WriteHooks
from tests.doubles.counting import Counting


class MemoryHooks(WriteHooks):
    """Into a `MemoryStore`'s objects."""

    sparse_size = 64 * GiB + 17
    upload_part = 1 * MiB
    memory: MemoryStore

    @pytest.fixture(autouse=True)
    def fresh_memory(self) -> None:
        self.memory = MemoryStore("contract")

    async def put_directly(self, ref: str, data: bytes) -> None:
        await self.put_sparse_directly(ref, len(data), {0: data})

    async def put_sparse_directly(self, ref: str, size: int, pieces: dict[int, bytes]) -> None:
        sparse = SparseBytes(size)
        for offset, piece in pieces.items():
            sparse.write_at(offset, memoryview(piece))
        self.memory.publish(ref, sparse, replace=True)

    async def read_directly(self, ref: str) -> bytes | None:
        if ref not in self.memory._objects:
            return None
        found = self.memory._objects[ref].content
        data = bytearray(found.size)
        found.read_into(0, memoryview(data))
        return bytes(data)

    async def everything_left(self) -> set[str]:
        assert not self.memory._pending
        unfinished = {f"upload of {ref}" for ref, _ in self.memory._unfinished}
        return set(self.memory._objects) | unfinished


class OverMemory(MemoryHooks, StoreContract):
    pass


class TestMemoryStore(OverMemory):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return self.memory


class TestForwardingStore(OverMemory):
    @pytest.fixture
    def store(self) -> WrapperStore:
        return WrapperStore(self.memory)


class TestRetryingStore(OverMemory):
    @pytest.fixture
    def store(self) -> RetryingStore:
        return RetryingStore(self.memory)


class TestVerifiedStore(OverMemory):
    @pytest.fixture
    async def store(self) -> AsyncIterator[VerifiedStore]:
        engine = TransferEngine()
        expected = {"object": Expected(), "sparse": Expected(size=self.sparse_size)}
        yield VerifiedStore(self.memory, expected, engine)
        await engine.aclose()


class TestReportingStore(OverMemory):
    @pytest.fixture
    def store(self) -> ReportingStore:
        return ReportingStore(self.memory, Counting())
