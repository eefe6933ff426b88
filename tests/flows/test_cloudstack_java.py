"""Frames and TLS against a JDK's own `SSLEngine`, which shares no code with the agent or with the Python double."""

from __future__ import annotations

import asyncio
import datetime
import secrets
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs12

from agent.transports.cloudstack.link import LinkSettings
from agent.transports.cloudstack.tls import Trust, client_context, connect
from agent.transports.cloudstack.wire import Flag, Message, decode, encode
from tests.doubles.cloudstack_role import linked
from tests.doubles.management_server.authority import Authority, shared_authority

SOURCE = Path(__file__).parents[1] / "doubles" / "java" / "FrameServer.java"
API = "com.cloud.agent.api."


@dataclass
class JavaServer:
    port: int
    authority: Authority
    _output: asyncio.StreamReader

    async def says(self) -> str:
        """The next line that it prints."""
        line = await asyncio.wait_for(self._output.readline(), 20)
        assert line
        return line.decode().strip()


@pytest.fixture(scope="module")
def java_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("frame-server")
    subprocess.run(["javac", "-d", str(directory), str(SOURCE)], check=True, timeout=60)
    return directory


@pytest.fixture(scope="module")
def authority() -> Authority:
    return shared_authority()


@asynccontextmanager
async def running(classes: Path, keystore: Path) -> AsyncIterator[tuple[int, asyncio.StreamReader]]:
    """Ends with its standard input."""
    process = await asyncio.create_subprocess_exec(
        *("java", "-XX:TieredStopAtLevel=1", "-cp", str(classes), "FrameServer", str(keystore), "changeit"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
        yield int(line.removeprefix("port ")), process.stdout
    finally:
        process.stdin.close()
        await asyncio.wait_for(process.wait(), 20)


@pytest.fixture
async def java(java_classes: Path, authority: Authority, tmp_path: Path) -> AsyncIterator[JavaServer]:
    key = serialization.load_pem_private_key(authority.key_pem, None)
    assert isinstance(key, rsa.RSAPrivateKey)
    keystore = tmp_path / "server.p12"
    protected = serialization.BestAvailableEncryption(b"changeit")
    keystore.write_bytes(pkcs12.serialize_key_and_certificates(b"root", key, authority.certificate, None, protected))
    async with running(java_classes, keystore) as (port, output):
        yield JavaServer(port, authority, output)


async def test_long_messages_both_ways(java: JavaServer) -> None:
    channel = await connect(
        "127.0.0.1",
        java.port,
        context=client_context(),
        trust=Trust((java.authority.certificate,)),
        timeout=20,
        now=datetime.datetime.now(datetime.UTC),
    )
    try:
        assert await java.says() == "handshake TLSv1.2"
        for compress, length in ((True, 300_000), (False, 300_000), (True, 10), (False, 16_384 - 80)):
            content = b'[{"com.example.EchoCommand":{"text":"' + secrets.token_hex(length // 2).encode() + b'"}}]'
            await channel.send(encode(Message(3, Flag.REQUEST, content), compress=compress))
            data = await asyncio.wait_for(channel.receive(), 20)
            assert data is not None
            answer = decode(data)
            assert answer is not None
            assert (answer.sequence, answer.flags, answer.content) == (3, Flag.FROM_SERVER, content)
            assert await java.says() == "request 0 1 3 true com.example.EchoCommand"
    finally:
        await channel.close()


async def test_session_with_a_jdk(java: JavaServer, tmp_path: Path) -> None:
    settings = LinkSettings(pins=(java.authority.certificate,))
    async with linked(f"127.0.0.1:{java.port}", state=tmp_path / "state", settings=settings) as link:
        assert await java.says() == "handshake TLSv1.2"
        assert await java.says() == f"request 0 3 0 true {API}StartupRoutingCommand"
        heard = {await java.says() for _ in range(3)}
        assert heard == {
            f"answer 0 4 7 true {API}ReadyAnswer",
            f"answer 0 4 8 true {API}ReadyAnswer",
            f"answer 0 2 9 true {API}UnsupportedAnswer",
        }
        assert await java.says() == f"request 0 3 1 true {API}PingRoutingCommand"
        assert link.status.host_id == 7
    assert await java.says() == f"request 0 3 2 true {API}ShutdownCommand"


async def test_jdk_that_is_not_the_one(java: JavaServer, tmp_path: Path) -> None:
    stranger: x509.Certificate = Authority().certificate
    settings = LinkSettings(pins=(stranger,), retry_first_s=30)
    async with linked(f"127.0.0.1:{java.port}", state=tmp_path / "state", settings=settings):
        assert await java.says() == "handshake TLSv1.2"
        assert (await java.says()).startswith("closed ")  # having heard nothing
