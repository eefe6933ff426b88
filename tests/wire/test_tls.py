"""TLS inside frames, and what hostile peers get: `agent/transports/cloudstack/tls.py`."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import struct
import tracemalloc
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.security import SecuritySetup
from agent.transports.cloudstack.errors import LinkError, LinkLost, LinkProtocolError
from agent.transports.cloudstack.tls import (
    Identity,
    TlsChannel,
    TlsEngine,
    Trust,
    check_server,
    client_context,
    connect,
    read_pins,
)
from agent.transports.cloudstack.wire import Frame, FrameReader, frame
from stores.contract import MiB
from stores.errors import TlsFailed
from tests.doubles.management_server.authority import Authority, shared_authority

NOW = datetime.datetime.now(datetime.UTC)
AUTHORITY = shared_authority()
PINNED = Trust((AUTHORITY.certificate,))
CHANGE_CIPHER_SPEC = b"\x14"  # type of the record that begins the server's last flight


class Server:
    """The other end of an engine, in memory."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = (context or AUTHORITY.server_context()).wrap_bio(self.incoming, self.outgoing, server_side=True)

    def handshake(self, data: bytes) -> bytes:
        self.incoming.write(data)
        with suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.outgoing.read()

    def seal(self, plain: bytes) -> bytes:
        self.tls.write(plain)
        return self.outgoing.read()


def handshaken(behind: bytes = b"", pieces: int = 1 << 20) -> tuple[TlsEngine, Server, bytes]:
    """Both ends after the handshake, and what the engine did not take. `behind`: what arrives together with the server's last
    flight, unencrypted; `pieces`: bytes that the engine gets at a time."""
    engine, server = TlsEngine(client_context()), Server()
    said = engine.begin()
    for _ in range(4):
        flight = server.handshake(said)
        if flight.startswith(CHANGE_CIPHER_SPEC):
            flight += behind
        said = b""
        for start in range(0, len(flight), pieces):
            answer, done = engine.handshake(flight[start : start + pieces])
            said += answer
            if done:
                return engine, server, engine.leftover + flight[start + pieces :]
    raise AssertionError("the handshake did not end")


# -------------------------------------------------------------------------------------------------------- the engine


def test_only_tls_1_2_without_resumption() -> None:
    engine, server, rest = handshaken()
    assert server.tls.version() == "TLSv1.2"
    assert rest == b""
    assert engine.peer == AUTHORITY.certificate
    assert not engine._tls.session.has_ticket  # type: ignore[union-attr]


def test_peer_that_only_speaks_tls_1_3_is_refused() -> None:
    context = AUTHORITY.server_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    engine, server = TlsEngine(client_context()), Server(context)
    with pytest.raises(ssl.SSLError):
        server.handshake(engine.begin())
    with pytest.raises(TlsFailed, match=r"has to speak TLS 1\.2"):
        engine.handshake(server.outgoing.read())


@pytest.mark.parametrize("pieces", [1, 3, 7, 100, 1 << 20])
def test_what_follows_the_handshake_is_the_first_frame(pieces: int) -> None:
    behind = frame(b"the first frame", follows=False)
    _, _, rest = handshaken(behind[:9], pieces)
    assert list(FrameReader().feed(rest + behind[9:])) == [Frame(b"the first frame", False)]


def test_records_both_ways() -> None:
    engine, server, _ = handshaken()
    assert engine.open(server.seal(b"down")) == b"down"
    assert engine.open(server.seal(b"two ") + server.seal(b"records")) == b"two records"
    server.incoming.write(engine.seal(memoryview(b"up")))
    assert server.tls.read() == b"up"


@pytest.mark.parametrize("change", [lambda r: r[:-1], lambda r: r + r[:4], lambda r: r[:3], lambda r: b"x" + r])
def test_frame_without_whole_records(change: Callable[[bytes], bytes]) -> None:
    engine, server, _ = handshaken()
    with pytest.raises(LinkProtocolError):
        engine.open(change(server.seal(b"x" * 50)))


def test_changed_record() -> None:
    engine, server, _ = handshaken()
    record = bytearray(server.seal(b"x" * 50))
    record[-1] ^= 1
    with pytest.raises(LinkProtocolError, match="refused"):
        engine.open(bytes(record))


def test_close_notify_is_an_end() -> None:
    engine, server, _ = handshaken()
    with pytest.raises(ssl.SSLWantReadError):
        server.tls.unwrap()
    goodbye = server.outgoing.read()
    with pytest.raises(EOFError):
        engine.open(goodbye)


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x16\x03\x03\xff\xff", b"\x16\x03\x03\x00\x00", b"\x00\x00\x00\x05hello"],
)
def test_peer_that_does_not_speak_tls(said: bytes) -> None:
    engine = TlsEngine(client_context())
    engine.begin()
    with pytest.raises((LinkProtocolError, TlsFailed)):
        engine.handshake(said)


def test_handshake_that_never_ends() -> None:
    """Empty handshake messages (HelloRequest), which a client has to ignore."""
    engine = TlsEngine(client_context())
    engine.begin()
    hello_request = b"\x16\x03\x03\x00\x04\x00\x00\x00\x00"
    tracemalloc.start()
    try:
        with pytest.raises((LinkProtocolError, TlsFailed)):
            deque((engine.handshake(hello_request) for _ in range(100_000)), maxlen=0)
        assert tracemalloc.get_traced_memory()[1] < 1 * MiB
    finally:
        tracemalloc.stop()


@given(st.binary(min_size=1, max_size=300))
def test_garbage_in_the_handshake(data: bytes) -> None:
    engine = TlsEngine(client_context())
    engine.begin()
    try:
        _, done = engine.handshake(data)
    except (LinkProtocolError, TlsFailed):
        return
    assert not done


@settings(max_examples=30)
@given(st.binary(min_size=1, max_size=300))
def test_garbage_in_frames(data: bytes) -> None:
    engine, _, _ = handshaken()
    with pytest.raises((LinkProtocolError, EOFError)):
        engine.open(data + b"\x17\x03\x03\x00\x01x")


# ------------------------------------------------------------------------------------------------------- who is there


def certificate(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def test_the_authority_itself_is_the_server() -> None:
    """Its key usage is for signing only: X.509's rules for servers would refuse it."""
    check_server(AUTHORITY.certificate, PINNED, NOW)


def test_server_that_the_authority_signed() -> None:
    check_server(certificate(AUTHORITY.issue("management-1")[0]), PINNED, NOW)


def test_pinned_server() -> None:
    server = certificate(AUTHORITY.issue("management-1")[0])
    check_server(server, Trust((server,)), NOW)


def test_stranger_of_the_same_name() -> None:
    other = Authority()
    for stranger in (other.certificate, certificate(other.issue("management-1")[0])):
        with pytest.raises(TlsFailed, match="neither pinned nor signed"):
            check_server(stranger, PINNED, NOW)


def test_signed_by_a_server_that_is_no_authority() -> None:
    server = certificate(AUTHORITY.issue("ca.cloudstack.apache.org")[0])
    with pytest.raises(TlsFailed):
        check_server(certificate(AUTHORITY.issue("other")[0]), Trust((server,)), NOW)


def test_without_pins_nobody_is_believed_unless_that_was_said() -> None:
    with pytest.raises(TlsFailed):
        check_server(AUTHORITY.certificate, Trust(), NOW)
    check_server(AUTHORITY.certificate, Trust(unverified=True), NOW)


def test_expired_server() -> None:
    with pytest.raises(TlsFailed, match="is valid from"):
        check_server(AUTHORITY.certificate, PINNED, NOW + datetime.timedelta(days=3))


def test_pins_come_from_pem() -> None:
    assert len(read_pins(AUTHORITY.pem + Authority().pem, "cloudstack.ca_file")) == 2
    with pytest.raises(SecuritySetup, match="ca_file needs to hold certificates"):
        read_pins(b"nothing", "cloudstack.ca_file")


def test_identity_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(SecuritySetup, match="who the agent is"):
        client_context(Identity(tmp_path / "no.pem", tmp_path / "no.pem"))


# -------------------------------------------------------------------------------------------------- over a connection

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(peer: Peer) -> AsyncIterator[int]:
    """A port whose connections `peer` serves; they are closed behind it."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await peer(reader, writer)
        except (OSError, asyncio.CancelledError):
            return  # the client hung up, as it should, or the test is over
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)


async def connected(port: int, *, timeout: float = 10, trust: Trust = PINNED) -> TlsChannel:
    return await connect("127.0.0.1", port, context=client_context(), trust=trust, timeout=timeout, now=NOW)


async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Closes straight after accept, as an overloaded server does."""


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(struct.pack(">BHH", 22, 0x0303, 16384) + bytes(16384))
        await writer.drain()


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(b"\x16")
        await asyncio.sleep(0.02)


async def chatter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example.org ESMTP\r\n")
    await reader.read()


@pytest.mark.parametrize("peer", [nothing, silence, endless, trickle, chatter])
async def test_hostile_handshake_is_a_clean_end(peer: Peer) -> None:
    tracemalloc.start()
    try:
        async with listening(peer) as port:
            with pytest.raises((LinkError, TlsFailed)):
                await connected(port, timeout=0.5)
        assert tracemalloc.get_traced_memory()[1] < 4 * MiB
    finally:
        tracemalloc.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_nobody_listens() -> None:
    async with listening(nothing) as port:
        pass
    with pytest.raises(LinkLost, match=f"no connection to 127.0.0.1:{port}"):
        await connected(port)


async def test_stranger_gets_nothing_but_a_handshake() -> None:
    heard = bytearray()

    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = Server(Authority().server_context())
        while data := await reader.read(65536):
            if server.tls.cipher() is not None:
                heard.extend(data)
            writer.write(server.handshake(data))

    async with listening(stranger) as port:
        with pytest.raises(TlsFailed, match="neither pinned"):
            await connected(port)
    assert heard == b""


def after_handshake(raw: Callable[[Server], bytes]) -> Peer:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = Server()
        while True:
            writer.write(server.handshake(await reader.read(65536)))
            try:
                server.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                continue
        writer.write(raw(server))
        await writer.drain()
        await reader.read()

    return peer


@pytest.mark.parametrize(
    "raw",
    [
        lambda server: b"\x17\x03\x03\x00\x10" + bytes(16),  # a record that is not framed
        lambda server: struct.pack(">I", 0),
        lambda server: struct.pack(">I", 18001) + bytes(18001),
        lambda server: struct.pack(">I", 0x7FFFFFFF),
        lambda server: frame(server.seal(b"x")[:-1], follows=False),
        lambda server: frame(bytes(5000), follows=False),
    ],
)
async def test_hostile_frames_are_a_clean_end(raw: Callable[[Server], bytes]) -> None:
    async with listening(after_handshake(raw)) as port:
        channel = await connected(port)
        try:
            with pytest.raises(LinkProtocolError):
                await channel.receive()
        finally:
            await channel.close()


async def test_message_that_never_ends_is_given_up() -> None:
    async with listening(after_handshake(endless_message)) as port:
        channel = await connected(port)
        tracemalloc.start()
        try:
            with pytest.raises(LinkProtocolError, match="more than"):
                await channel.receive()
        finally:
            tracemalloc.stop()
            await channel.close()


def endless_message(server: Server) -> bytes:
    """Two thousand and one full records, each to be followed by another."""
    return b"".join(frame(server.seal(bytes(16384)), follows=True) for _ in range(2049))
