"""TLS inside link frames: the handshake goes over the socket as it is, and every record after it inside a frame.

That is why asyncio's own TLS cannot be used. `TlsEngine` is the part without input and output; `TlsChannel` puts it on a
stream and moves whole messages.

TLS 1.2 only, without tickets and without resumption: in that handshake the server speaks last, so no frame of ours can be
read, and lost, with the client's last flight; and a server that frames its records does not frame 1.3's tickets. For the same
reason the handshake reads one record at a time: what follows the server's last one is the first frame.

The server's certificate is usually the self-signed authority itself, without a host name and with a key usage that X.509's
rules forbid for a server. So it is not checked by those rules but held against pinned certificates: it has to be one of them,
or be signed by one. Nothing is sent before that.
"""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import struct
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from agent.security import SecuritySetup
from agent.transports.cloudstack.errors import LinkLost, LinkProtocolError
from agent.transports.cloudstack.wire import FrameReader, MessageReader, frame, slices
from stores.contract import KiB
from stores.errors import TlsFailed

_RECORD = struct.Struct(">BHH")  # content type, version, length (RFC 5246, 6.2.1)
_KINDS = range(20, 24)  # change_cipher_spec, alert, handshake, application_data
_MAX_RECORD = 16 * KiB + 2 * KiB  # of a ciphertext
_MAX_HANDSHAKE = 256 * KiB  # certificates and all; a peer that sends more never means to finish
_READ = 64 * KiB


@dataclass(frozen=True)
class Trust:
    """Which servers are believed: `pins` are their certificates or those of their authority. Without pins anybody is, which
    has to be said: `unverified`."""

    pins: tuple[x509.Certificate, ...] = ()
    unverified: bool = False


@dataclass(frozen=True)
class Identity:
    """Files of the agent's certificate chain and its key (PEM, without a passphrase)."""

    certificate: Path
    key: Path


def read_pins(text: bytes, origin: str) -> tuple[x509.Certificate, ...]:
    """The certificates in PEM text. SecuritySetup where there are none, `origin` says where they came from."""
    try:
        return tuple(x509.load_pem_x509_certificates(text))
    except ValueError as error:
        raise SecuritySetup(f"{origin} needs to hold certificates (PEM): {error}", origin=origin) from error


def client_context(identity: Identity | None = None) -> ssl.SSLContext:
    """What the agent offers. The server's certificate is checked by `TlsEngine`, see above. SecuritySetup for bad files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    if identity is not None:
        try:
            context.load_cert_chain(identity.certificate, identity.key, password=_no_passphrase)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise SecuritySetup(
                f"cannot use {identity.certificate} and {identity.key} to show who the agent is: {error}",
                certificate=str(identity.certificate),
            ) from error
    return context


def _no_passphrase() -> str:
    raise ValueError("the private key is encrypted; give it without a passphrase")


def check_server(certificate: x509.Certificate, trust: Trust, now: datetime.datetime) -> None:
    """TlsFailed unless the certificate is pinned or signed by a pinned authority, and valid at `now`."""
    if trust.unverified:
        return
    if not any(certificate == pin or _signed_by(certificate, pin) for pin in trust.pins):
        raise TlsFailed(
            f"the management server's certificate {certificate.subject.rfc4514_string()!r} is neither pinned nor signed by a"
            " pinned authority: is this the right server, and cloudstack.ca_file its authority?",
            issuer=certificate.issuer.rfc4514_string(),
        )
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise TlsFailed(
            f"the management server's certificate is valid from {certificate.not_valid_before_utc} to"
            f" {certificate.not_valid_after_utc}, and it is {now}: renew it, or set the clock"
        )


def _signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        if not authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        certificate.verify_directly_issued_by(authority)
    except (x509.ExtensionNotFound, ValueError, TypeError, InvalidSignature):
        return False
    return True


class TlsEngine:
    """One side of a TLS session, bytes in and bytes out."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing)
        self._handshaken = 0
        self._unread = bytearray()

    def begin(self) -> bytes:
        """The first flight."""
        self._step()
        return self._outgoing.read()

    def handshake(self, data: bytes) -> tuple[bytes, bool]:
        """What to send for `data`, in any pieces, and whether the handshake is over. What came after its last record is left in
        `leftover`. TlsFailed where it cannot succeed, LinkProtocolError where the peer does not speak TLS or never ends."""
        self._handshaken += len(data)
        self._unread += data
        done = False
        while not done and (record := self._next_record()):
            self._incoming.write(record)
            done = self._step()
        if not done and self._handshaken > _MAX_HANDSHAKE:
            raise LinkProtocolError(
                f"the TLS handshake was not over after {_MAX_HANDSHAKE} bytes", limit=_MAX_HANDSHAKE
            )
        return self._outgoing.read(), done

    @property
    def leftover(self) -> bytes:
        """What arrived behind the handshake: the beginning of the first frame."""
        return bytes(self._unread)

    @property
    def peer(self) -> x509.Certificate:
        """Once the handshake is over: whom the peer has proved to be."""
        der = self._tls.getpeercert(binary_form=True)
        if der is None:
            raise TlsFailed("the management server showed no certificate")
        try:
            return x509.load_der_x509_certificate(der)
        except ValueError as error:
            raise TlsFailed(f"the management server's certificate cannot be read: {error}") from error

    def open(self, payload: bytes) -> bytes:
        """A frame's payload decrypted. EOFError when the peer says that it ends the session."""
        _check_whole_records(payload)
        self._incoming.write(payload)
        plain = bytearray()
        try:
            while piece := self._tls.read(_READ):
                plain += piece
        except ssl.SSLWantReadError:
            return bytes(plain)
        except ssl.SSLError as error:
            raise LinkProtocolError(f"a TLS record was refused: {error.reason or error}") from error
        raise EOFError

    def seal(self, plain: memoryview) -> bytes:
        """At most `wire.MAX_RECORD` bytes, encrypted: one record."""
        self._tls.write(plain)
        return self._outgoing.read()

    def _step(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise TlsFailed(
                f"no TLS session with the management server: {error.reason or error}; it has to speak TLS 1.2, and may want a"
                " certificate of this agent"
            ) from error
        return True

    def _next_record(self) -> bytes | None:
        if len(self._unread) < _RECORD.size:
            return None
        kind, _, length = _RECORD.unpack_from(self._unread)
        if kind not in _KINDS or not 0 < length <= _MAX_RECORD:
            raise LinkProtocolError("the peer does not speak TLS: is something else than CloudStack listening?")
        end = _RECORD.size + length
        if len(self._unread) < end:
            return None
        record = bytes(self._unread[:end])
        del self._unread[:end]
        return record


def _check_whole_records(payload: bytes) -> None:
    at = 0
    while at + _RECORD.size <= len(payload):
        at += _RECORD.size + _RECORD.unpack_from(payload, at)[2]
    if at != len(payload):
        raise LinkProtocolError("a frame needs to hold whole TLS records, and its last one is cut")


class TlsChannel:
    """Whole messages over a connection. One task reads, one writes; `close` is for whoever opened it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, engine: TlsEngine) -> None:
        """After the handshake; see `connect`."""
        self._reader = reader
        self._writer = writer
        self._engine = engine
        self._frames = FrameReader()
        self._messages = MessageReader()
        self._decrypted = iter(self._frames.feed(engine.leftover))

    @property
    def local_address(self) -> str:
        """This host's address on the way to the server."""
        return str(self._writer.get_extra_info("sockname")[0])

    @property
    def peer(self) -> x509.Certificate:
        """Whom the server has proved to be."""
        return self._engine.peer

    async def receive(self) -> bytearray | None:
        """The next message; None when the peer closed the connection. LinkLost, LinkProtocolError."""
        while True:
            for got in self._decrypted:
                try:
                    plain = self._engine.open(got.payload)
                except EOFError:
                    return None
                message = self._messages.feed(plain, follows=got.follows)
                if message is not None:
                    return message
            data = await self._read()
            if not data:
                return None
            self._decrypted = iter(self._frames.feed(data))

    async def send(self, message: bytes) -> None:
        """Returns when the message is with the system, apart from what its buffers take. Cancelled in between it leaves half a
        message behind: the connection is of no use then."""
        try:
            for piece, follows in slices(message):
                self._writer.write(frame(self._engine.seal(piece), follows=follows))
                await self._writer.drain()
        except OSError as error:
            raise LinkLost(f"the connection to the management server broke: {error}") from error

    async def close(self) -> None:
        """At once, as peers do: nothing that is not sent yet is waited for."""
        self._writer.transport.abort()
        try:
            await self._writer.wait_closed()
        except OSError:
            return  # it broke before: then it is closed as well

    async def _read(self) -> bytes:
        try:
            return await self._reader.read(_READ)
        except OSError as error:
            raise LinkLost(f"the connection to the management server broke: {error}") from error


async def connect(
    host: str, port: int, *, context: ssl.SSLContext, trust: Trust, timeout: float, now: datetime.datetime
) -> TlsChannel:
    """A connection on which messages can be sent. `timeout` in seconds, for all of it.

    LinkLost: nobody there, or closed meanwhile, as an overloaded server does. TlsFailed: not the server that is trusted.
    """
    where = f"{host}:{port}"
    writer = None
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, port)
            _keep_alive(writer)
            return await _handshaken(reader, writer, context, trust, now)
    except TimeoutError:
        _abort(writer)
        raise LinkLost(f"{where} was not ready within {timeout:g} s", server=where) from None
    except OSError as error:
        _abort(writer)
        raise LinkLost(f"no connection to {where}: {error}", server=where) from error
    except BaseException:
        _abort(writer)
        raise


async def _handshaken(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    context: ssl.SSLContext,
    trust: Trust,
    now: datetime.datetime,
) -> TlsChannel:
    engine = TlsEngine(context)
    writer.write(engine.begin())
    done = False
    while not done:
        data = await reader.read(_READ)
        if not data:
            raise LinkLost(
                "the management server closed the connection during the handshake: it is overloaded, or leaving"
            )
        answer, done = engine.handshake(data)
        writer.write(answer)
        await writer.drain()
    check_server(engine.peer, trust, now)
    return TlsChannel(reader, writer, engine)


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _abort(writer: asyncio.StreamWriter | None) -> None:
    if writer is not None:
        writer.transport.abort()
