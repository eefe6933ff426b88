"""The bridge against clients that mean harm, and against many."""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress
from pathlib import Path

import pytest

from stores.bridge import Memory, serve
from stores.contract import MiB
from tests.doubles.nbd_client import DISC, GO, READ, WRITE, connected, negotiated, option
from tests.flows.bridge.place import Source, disk, sha256, whole

GARBAGE = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "unknown flags": b"\x80\x00\x00\x03",
    "option magic": b"\x00\x00\x00\x03" + bytes(16),
    "huge option": b"\x00\x00\x00\x03IHAVEOPT" + struct.pack(">II", GO, 2**32 - 1),
    "other export, old way": b"\x00\x00\x00\x03" + option(1, b"other"),
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_in_the_negotiation_closes_that_connection_only(socket: Path, name: str) -> None:
    async with serve(Source(disk()), socket), negotiated(socket) as good, connected(socket) as bad:
        bad.writer.write(GARBAGE[name])
        assert len(await bad.closed_by_server()) == 18, "the greeting and no more"
        assert (await good.ask(READ, 0, 3)).data == {0: disk()[:3]}


@pytest.mark.parametrize(
    "garbage", [bytes(28), struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, 2**32 - 1), b"\xff" * 100_000]
)
async def test_garbage_among_the_requests_closes_that_connection_only(socket: Path, garbage: bytes) -> None:
    async with serve(Source(disk()), socket), negotiated(socket) as good, negotiated(socket) as bad:
        bad.writer.write(garbage)
        assert await bad.closed_by_server() == b""
        assert (await good.ask(READ, 0, 3)).data == {0: disk()[:3]}


async def test_a_negotiation_that_never_ends_is_ended(socket: Path) -> None:
    async with serve(Source(disk()), socket, negotiation_s=0.3), connected(socket) as silent, connected(socket) as busy:

        async def chatter() -> int:
            """Bytes that the server has said in the meantime."""
            said = 0
            busy.writer.write(b"\x00\x00\x00\x03")
            with suppress(ConnectionError):  # it may end just when it has something to read
                while more := await busy.reader.read(1 << 16):
                    said += len(more)
                    busy.writer.write(option(3))
                    await asyncio.sleep(0.01)
            return said

        talking = asyncio.create_task(chatter())
        assert len(await silent.closed_by_server()) == 18
        assert await talking > 18
        async with negotiated(socket) as good:
            await asyncio.sleep(0.4)
            assert (await good.ask(READ, 0, 3)).data == {0: disk()[:3]}, "the limit is for the negotiation"


async def test_a_client_that_leaves_in_the_middle_of_everything_leaves_nothing(socket: Path) -> None:
    source = Source(disk())
    source.gate.clear()
    async with serve(source, socket):
        for _ in range(40):
            async with negotiated(socket) as client:
                for n in range(8):
                    client.send(READ, n * MiB, MiB)
                client.writer.write(b"\x25\x60")
                await client.writer.drain()
        source.gate.set()
        async with negotiated(socket) as good:
            assert sha256(await whole(good, len(disk()))) == sha256(disk())


async def test_a_client_that_does_not_read_starves_nobody(socket: Path) -> None:
    source = Source(disk())
    async with serve(source, socket, memory=Memory(4 * MiB)), negotiated(socket) as stuck, negotiated(socket) as good:
        for n in range(50):
            stuck.send(READ, n % 10 * MiB, MiB)
        stuck.writer.transport.pause_reading()  # type: ignore[attr-defined]  # selector transports have it
        await stuck.writer.drain()
        await asyncio.sleep(0.05)
        assert sha256(await whole(good, len(disk()))) == sha256(disk())
    assert source.most <= 4 * MiB


async def test_exports_share_memory(socket: Path) -> None:
    memory = Memory(16 * MiB)
    sources = [Source(disk(n)) for n in range(3)]
    paths = [socket.with_name(str(n)) for n in range(3)]
    async with serve(sources[0], paths[0], memory=memory), negotiated(paths[0]) as first:
        assert memory.share == 16 * MiB
        assert sha256(await whole(first, len(disk()))) == sha256(disk(0))
        async with serve(sources[1], paths[1], memory=memory), serve(sources[2], paths[2], memory=memory):
            assert memory.share == 16 * MiB // 3
            async with negotiated(paths[1]) as second, negotiated(paths[2]) as third:
                contents = await asyncio.gather(*(whole(client, len(disk())) for client in (first, second, third)))
            assert [sha256(content) for content in contents] == [sha256(disk(n)) for n in range(3)]
        assert memory.share == 16 * MiB


async def test_more_clients_than_are_served_at_once_wait_for_their_turn(socket: Path) -> None:
    async def one() -> str:
        async with negotiated(socket) as client:
            digest = sha256(await whole(client, len(disk())))
            client.send(DISC)
            return digest

    async with serve(Source(disk()), socket, memory=Memory(8 * MiB)):
        assert set(await asyncio.gather(*(one() for _ in range(24)))) == {sha256(disk())}
