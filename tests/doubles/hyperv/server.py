"""The host's listener: HTTPS, authentication of each connection, and messages of WSMan."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import ssl
from dataclasses import dataclass
from xml.etree.ElementTree import ParseError

import spnego
from spnego.channel_bindings import GssChannelBindings
from spnego.exceptions import SpnegoError

from tests.doubles.hyperv import wsman
from tests.doubles.hyperv.faults import Faults, WireFault
from tests.doubles.hyperv.shells import Shells
from tests.doubles.xapi.http import BadRequest, Request, answer, page, read_request, reset, stalled

_SOAP = "application/soap+xml;charset=UTF-8"
_MUTUAL = "http://schemas.dmtf.org/wbem/wsman/1/wsman/secprofile/https/mutual"
MAX_ENVELOPE = 500 * 1024


class Dropped(Exception):
    """The connection is to be reset."""


@dataclass
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    context: spnego.ContextProxy | None = None
    trusted: bool = False


class Server:
    """On 127.0.0.1. `certificate`: of the host, as its clients see it (DER)."""

    def __init__(self, shells: Shells, faults: Faults, context: ssl.SSLContext, certificate: bytes) -> None:
        self._shells = shells
        self._faults = faults
        self._tls = context
        self._binding = b"tls-server-end-point:" + hashlib.sha256(certificate).digest()
        self._serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._listener: asyncio.Server | None = None
        self.refused = 0
        """Attempts with credentials that are wrong."""
        self.port = 0

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 20, ssl=self._tls)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """No new connections, and the ones that were are reset. `start` may follow."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for task, writer in dict(self._serving).items():
            reset(writer)
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    @property
    def connections(self) -> int:
        return len(self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = writer
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connection = Connection(reader, writer)
            await self._suffer(self._faults.at("connect", "before"), connection, "")
            while await self._request(connection):
                pass
        except Dropped:
            reset(writer)
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            pass  # the client has gone
        except asyncio.CancelledError:
            return  # only `stop` cancels; Python 3.11's stream server logs a cancelled handler as an error
        finally:
            writer.transport.abort()  # to part in TLS's way may take half a minute
            del self._serving[task]

    async def _request(self, connection: Connection) -> bool:
        """One request and its answer; whether there may be another one."""
        try:
            request = await read_request(connection.reader)
        except BadRequest:
            return False
        if request is None:
            return False
        body = await connection.reader.readexactly(request.content_length or 0)
        if request.method != "POST" or request.path != "/wsman":
            await self._send(connection, page(404, "Not found"))
            return False
        if (refusal := self._refusal(connection, request)) is not None:
            await self._send(connection, refusal)
            return True
        if not body:
            await self._send(connection, answer(200, b"", _SOAP, keep_alive=True))
            return True
        return await self._message(connection, body)

    def _refusal(self, connection: Connection, request: Request) -> bytes | None:
        """None once the client is known. Negotiate takes several requests on one connection."""
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        secured: ssl.SSLObject = connection.writer.get_extra_info("ssl_object")
        if scheme == _MUTUAL and secured.getpeercert():
            return None
        if scheme not in ("Negotiate", "Kerberos"):
            return None if connection.trusted else _unauthorised("Negotiate")
        if connection.context is None or connection.trusted:
            connection.trusted = False
            binding = GssChannelBindings(application_data=self._binding)
            connection.context = spnego.server(protocol="negotiate", channel_bindings=binding)
        try:
            token = connection.context.step(base64.b64decode(value))
        except SpnegoError:
            self.refused += 1
            connection.context = None
            return _unauthorised("Negotiate")
        if not connection.context.complete:
            return _unauthorised(f"Negotiate {base64.b64encode(token or b'').decode()}")
        connection.trusted = True
        return None

    async def _message(self, connection: Connection, body: bytes) -> bool:
        try:
            message = wsman.parsed(body)
        except (ValueError, ParseError):
            await self._send(connection, page(400, "no message"))
            return False
        try:
            if await self._suffer(self._faults.at(message.action, "before"), connection, message.id):
                return True
            if len(body) > MAX_ENVELOPE:
                raise wsman.WsmanFault(wsman.TOO_LARGE, "The envelope exceeds MaxEnvelopeSize.", "w:EncodingLimit")
            told = await self._acted(message)
        except wsman.WsmanFault as problem:
            told = answer(500, wsman.fault(message.id, problem), _SOAP, keep_alive=True)
        if await self._suffer(self._faults.at(message.action, "after"), connection, message.id):
            return True
        await self._send(connection, told)
        return True

    async def _acted(self, message: wsman.Message) -> bytes:
        if message.action == "Create":
            self._shells.create(message)
            body = wsman.created(message)
        elif message.action == "Command":
            await self._shells.command(message)
            body = wsman.commanded(message)
        elif message.action == "Receive":
            parts, done = await self._shells.receive(message)
            body = wsman.received(message, parts, done=done)
        else:
            if message.action == "Send":
                self._shells.send(message)
            elif message.action == "Signal":
                await self._shells.signal(message)
            elif message.action == "Delete":
                await self._shells.delete(message)
            else:
                raise wsman.WsmanFault(2150858754, "not supported", "w:ActionNotSupported")
            body = wsman.plain(message)
        return answer(200, body, _SOAP, keep_alive=True)

    async def _suffer(self, fault: WireFault | None, connection: Connection, message_id: str) -> bool:
        """What a fault does; whether an answer has been given."""
        if fault is None:
            return False
        if fault.action == "delay":
            await asyncio.sleep(fault.seconds)
            return False
        if fault.action == "fault":
            raise wsman.WsmanFault(fault.code, "as told")
        if fault.action == "http":
            await self._send(connection, page(fault.status, "as told"))
            raise Dropped
        if fault.action == "unauthorised":
            connection.trusted, connection.context = False, None
            await self._send(connection, _unauthorised("Negotiate"))
            return True
        if fault.action == "hang":
            await stalled(connection.reader, connection.writer, 0.0)
        raise Dropped

    async def _send(self, connection: Connection, data: bytes) -> None:
        connection.writer.write(data)
        await connection.writer.drain()


def _unauthorised(told: str) -> bytes:
    return answer(401, b"", _SOAP, keep_alive=True, www_authenticate=told)
