"""What a large message costs on its way through frames, TLS, gzip and JSON."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from collections.abc import Sequence

import pytest

from agent.commands import Failure
from agent.transports.cloudstack.connection import Connection
from agent.transports.cloudstack.json_codec import Decoded, encode
from agent.transports.cloudstack.models import API, CLASSES, Envelope, WireAnswer
from agent.transports.cloudstack.tls import TlsChannel
from agent.transports.cloudstack.wire import Flag, Message, frame, slices
from agent.transports.cloudstack.wire import encode as message_bytes
from stores.contract import MiB
from tests.wire.test_tls import Server, handshaken

SIZE = 10 * MiB


class Sink(asyncio.StreamWriter):
    """Takes everything, keeps nothing."""

    def __init__(self) -> None:
        self.taken = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.taken += len(data)

    async def drain(self) -> None:
        return

    def __del__(self, warnings: object = None) -> None:
        return


class Nobody:
    def sent(self, message: Message, items: Sequence[Envelope]) -> None: ...

    def received(self, message: Message, items: Sequence[Decoded]) -> None: ...

    def up(self) -> None: ...

    def down(self, failure: Failure | None) -> None: ...


def connection() -> tuple[Connection, asyncio.StreamReader, Sink, Server]:
    engine, server, _ = handshaken()
    reader, sink = asyncio.StreamReader(), Sink()
    return Connection(TlsChannel(reader, sink, engine), Nobody()), reader, sink, server


@pytest.mark.parametrize("compress", [True, False])
async def test_message_in(compress: bool) -> None:
    here, reader, _, server = connection()
    command = CLASSES[f"{API}.GetStorageStatsCommand"](contextMap={"text": os.urandom(SIZE // 2).hex()})
    data = message_bytes(Message(1, Flag.REQUEST, encode([command])), compress=compress)

    async def arrive() -> None:
        for piece, follows in slices(data):
            reader.feed_data(frame(server.seal(bytes(piece)), follows=follows))
            await asyncio.sleep(0)

    tracemalloc.start()
    try:
        arriving = asyncio.create_task(arrive())
        heard = await here.receive()
        assert tracemalloc.get_traced_memory()[1] < 3 * SIZE
    finally:
        tracemalloc.stop()
    await arriving
    assert heard is not None
    assert heard.items == [command]


async def test_message_out() -> None:
    here, _, sink, _ = connection()
    answer = WireAnswer(result=True, details=os.urandom(SIZE // 2).hex())
    tracemalloc.start()
    try:
        await here.answer(Message(1, Flag.REQUEST, b"[]"), [answer])
        assert tracemalloc.get_traced_memory()[1] < 3 * SIZE
    finally:
        tracemalloc.stop()
    assert SIZE / 2 < sink.taken < SIZE
