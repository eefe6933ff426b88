"""Objects on HTTP/1.1 servers as presentations: `HttpRangeReader` for servers with ranges, `HttpByteStream` for the rest."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from stores.contract import ByteStream, ObjectInfo, RangeReader
from stores.transfer.engine import TransferEngine


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """Where one GET goes. The address was resolved and checked by whoever made the target; nothing is resolved here."""

    host: str
    """Name for the Host header, SNI and the certificate check."""
    port: int
    address: str
    """IP literal to connect to."""
    tls: ssl.SSLContext | None
    """None for plain HTTP."""
    path: str = field(repr=False)
    """Request target, percent-encoded, with its query. May carry a signature and is therefore never shown."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent as they are, beside Host, Range, If-Match and Accept-Encoding, which the reader sets."""


class HttpRangeReader(RangeReader):
    """Any range of one object, by parallel GETs."""

    def __init__(self, engine: TransferEngine, info: ObjectInfo, target: Callable[[], Awaitable[HttpTarget]]) -> None:
        self.info = info

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        raise NotImplementedError


class HttpByteStream(ByteStream):
    """The whole object in order, for servers without ranges."""

    def __init__(self, engine: TransferEngine, info: ObjectInfo, target: Callable[[], Awaitable[HttpTarget]]) -> None:
        self.info = info

    def __aiter__(self) -> AsyncIterator[memoryview]:
        raise NotImplementedError
