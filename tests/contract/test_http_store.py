"""The reading half of the contract on nginx, with ranges and without, over http and https."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from stores.backends.http import HttpStore
from stores.settings import StoreSettings, UrlSettings
from stores.transfer.engine import TransferEngine
from tests.contract.store_reads import StoreReads
from tests.servers import NginxServer

LOOPBACK = UrlSettings(allow_http=True, ports=(), allow_networks=(ip_network("127.0.0.0/8"),))


class HttpContract(StoreReads):
    """Puts files where nginx finds them."""

    directory: Path

    async def put_directly(self, ref: str, data: bytes) -> None:
        path = self.directory / ref
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{uuid.uuid4().hex}"
        temporary.write_bytes(data)
        # nginx makes its ETag of size and whole seconds: a file that changes within one second must show it.
        self.second = getattr(self, "second", 1_700_000_000) + 1
        os.utime(temporary, (self.second, self.second))
        temporary.rename(path)


class TestRanges(HttpContract):
    @pytest.fixture
    async def store(self, nginx: NginxServer, engine: TransferEngine) -> AsyncIterator[HttpStore]:
        name = uuid.uuid4().hex
        self.directory = nginx.root / name
        self.directory.mkdir()
        store = HttpStore(nginx.url(name), StoreSettings(urls=LOOPBACK), engine)
        yield store
        await store.aclose()


class TestTls(HttpContract):
    @pytest.fixture
    async def store(self, nginx: NginxServer, engine: TransferEngine) -> AsyncIterator[HttpStore]:
        name = uuid.uuid4().hex
        self.directory = nginx.root / name
        self.directory.mkdir()
        settings = StoreSettings(urls=LOOPBACK, ca_file=nginx.ca_file)
        store = HttpStore(nginx.url(name, tls=True), settings, engine)
        yield store
        await store.aclose()
