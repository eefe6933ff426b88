"""The double of a management server does to an agent what makes mistakes show."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator

import pytest

from agent.transports.cloudstack import json_codec, wire
from agent.transports.cloudstack.models import WireAnswer
from agent.transports.cloudstack.models_session import PingCommand, ReadyAnswer, StartupRoutingCommand
from agent.transports.cloudstack.tls import TlsChannel, TlsEngine, Trust, client_context, connect
from agent.transports.cloudstack.wire import Flag, Message
from tests.doubles.management_server.attached import API, AttachedAgent
from tests.doubles.management_server.authority import shared_authority
from tests.doubles.management_server.packets import Packet
from tests.doubles.management_server.server import ManagementServer

STARTUP = json_codec.encode([StartupRoutingCommand(guid="g-LibvirtComputingResource")])
AUTHORITY = shared_authority()


@pytest.fixture
async def server() -> AsyncIterator[ManagementServer]:
    async with ManagementServer(AUTHORITY) as made:
        yield made


@pytest.fixture
async def channel(server: ManagementServer) -> AsyncIterator[TlsChannel]:
    made = await connect(
        "127.0.0.1",
        server.port,
        context=client_context(),
        trust=Trust((AUTHORITY.certificate,)),
        timeout=10,
        now=datetime.datetime.now(datetime.UTC),
    )
    yield made
    await made.close()


async def hear(channel: TlsChannel) -> Message:
    data = await asyncio.wait_for(channel.receive(), 10)
    assert data is not None
    message = wire.decode(data)
    assert message is not None
    return message


async def come_up(server: ManagementServer, channel: TlsChannel) -> AttachedAgent:
    await channel.send(wire.encode(Message(1, Flag.REQUEST, STARTUP)))
    assert b"StartupAnswer" in (await hear(channel)).content
    for _ in range(2):
        ready = await hear(channel)
        assert Flag.IN_SEQUENCE in ready.flags
        await channel.send(wire.encode(ready.answer(json_codec.encode([ReadyAnswer(result=True)]))))
    return await server.agent()


async def test_nothing_is_heard_before_an_introduction(server: ManagementServer, channel: TlsChannel) -> None:
    ping = json_codec.encode([PingCommand(hostType="Routing", hostId=1)])
    await channel.send(wire.encode(Message(1, Flag.REQUEST, ping)))
    await come_up(server, channel)
    assert [packet.elements[0][0] for packet in server.discarded] == [f"{API}PingCommand"]


async def test_queue_waits_for_the_in_sequence_bit(server: ManagementServer, channel: TlsChannel) -> None:
    agent = await come_up(server, channel)
    first, second = (
        asyncio.create_task(agent.ask(f"{API}PingTestCommand", {"n": n}, in_sequence=True)) for n in (1, 2)
    )
    request = await hear(channel)
    content = json_codec.encode([WireAnswer(result=True)])
    await channel.send(wire.encode(Message(request.sequence, Flag(0), content)))
    await first
    await asyncio.sleep(0.05)
    assert agent.queued == 1
    await channel.send(wire.encode(request.answer(content)))
    request = await hear(channel)
    assert agent.queued == 0
    await channel.send(wire.encode(request.answer(content)))
    await second
    assert len(agent.dropped) == 1  # what came again only for its bit


@pytest.mark.parametrize(
    "content",
    [
        b'[{"com.example.Invention":{"result":true}}]',
        b"[]",
        b'[{"com.cloud.agent.api.Answer":{}},{"com.cloud.agent.api.Answer":{}}]',
    ],
)
async def test_wrong_answers_are_dropped(server: ManagementServer, channel: TlsChannel, content: bytes) -> None:
    agent = await come_up(server, channel)
    asked = asyncio.create_task(agent.ask(f"{API}PingTestCommand"))
    request = await hear(channel)
    await channel.send(wire.encode(request.answer(content)))
    while not agent.dropped:
        await asyncio.sleep(0.01)
    assert not asked.done()
    asked.cancel()


async def test_host_that_is_not_ready_has_to_go(server: ManagementServer, channel: TlsChannel) -> None:
    await channel.send(wire.encode(Message(1, Flag.REQUEST, STARTUP)))
    await hear(channel)
    ready = await hear(channel)
    await channel.send(wire.encode(ready.answer(json_codec.encode([WireAnswer(result=False)]))))
    assert await asyncio.wait_for(channel.receive(), 10) is None


async def test_silent_agent_is_taken_for_dead(server: ManagementServer, channel: TlsChannel) -> None:
    server.behind_after = 0.1
    agent = await come_up(server, channel)
    assert await asyncio.wait_for(channel.receive(), 10) is None
    assert agent.reason == "behind on ping"


async def test_long_texts_are_gzip(server: ManagementServer, channel: TlsChannel) -> None:
    agent = await come_up(server, channel)
    for length, compressed in ((8000, False), (9000, True)):
        await agent.write(Packet(5, 0x21, [(f"{API}PingTestCommand", {"x": "x" * length})]))
        data = await asyncio.wait_for(channel.receive(), 10)
        assert data is not None
        assert bool(data[3] & 0x80) is compressed


async def test_what_is_sent_during_the_handshake_is_lost(server: ManagementServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    engine = TlsEngine(client_context())
    writer.write(engine.begin())
    done = False
    while not done:
        answer, done = engine.handshake(await reader.read(65536))
        writer.write(answer + b"hasty" if answer else b"")
    channel = TlsChannel(reader, writer, engine)
    try:
        await come_up(server, channel)
        assert server.violations == []
    finally:
        await channel.close()
