"""The contract on a real OpenStack Swift."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from stores.backends import swift_segments as segments
from stores.backends.swift import SwiftStore
from stores.contract import DataStore
from stores.settings import StoreSettings
from stores.transfer.engine import TransferEngine
from tests.contract.store_contract import StoreContract
from tests.contract.store_hooks import WriteHooks
from tests.swift import Container, SwiftServer


@pytest.fixture(scope="module")
def container(swift: SwiftServer) -> Iterator[Container]:
    container = Container(swift, f"c-{uuid.uuid4().hex[:12]}")
    yield container
    container.ask("DELETE")


class SwiftHooks(WriteHooks):
    """Looks past the store with requests of its own. Segments of the objects that are there are no leftovers; others are."""

    container: Container
    opened_stores: list[SwiftStore]
    another: Callable[[], SwiftStore]

    @asynccontextmanager
    async def opened(self, container: Container, engine: TransferEngine) -> AsyncIterator[SwiftStore]:
        self.container = container
        to = container.server.to(container.name)
        self.another = lambda: SwiftStore(to, StoreSettings(), engine)
        self.opened_stores = [self.another()]
        yield self.opened_stores[0]
        for store in self.opened_stores:
            await store.aclose()
        container.empty()

    async def put_directly(self, ref: str, data: bytes) -> None:
        self.container.put(ref, data)

    async def read_directly(self, ref: str) -> bytes | None:
        return self.container.get(ref)

    async def everything_left(self) -> set[str]:
        names = self.container.names()
        large = {ref for ref in names if not ref.startswith(f"{segments.SEGMENTS}/")}
        return names - {name for ref in large for name in self._segments_of(ref)}

    async def reopened(self, store: DataStore) -> DataStore:
        self.opened_stores.append(self.another())
        return self.opened_stores[-1]

    def _segments_of(self, ref: str) -> set[str]:
        """What a manifest names."""
        _, headers, body = self.container.ask("GET", ref, query="?multipart-manifest=get")
        if "X-Static-Large-Object" not in headers:
            return set()
        return {entry["name"].removeprefix(f"/{self.container.name}/") for entry in json.loads(body)}


class TestSwift(SwiftHooks, StoreContract):
    @pytest.fixture
    async def store(self, container: Container, engine: TransferEngine) -> AsyncIterator[SwiftStore]:
        async with self.opened(container, engine) as store:
            yield store
