"""The first phase of an NBD connection, as a client speaks it: fixed newstyle, structured replies. No I/O.

Source: "Fixed newstyle negotiation" and "Option types" of the NBD protocol,
https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from stores.bridge.options import Inbox
from stores.bridge.wire import (
    CLIENT_FLAGS,
    CONTEXT,
    GREETING,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    MAGIC,
    MAX_PAYLOAD,
    OPTION,
    OPTION_MAGIC,
    U16,
    U32,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    ProtocolError,
    TransmissionFlag,
)
from stores.errors import AccessDenied, NotFound, StoreError, StoreUnsupported, Unavailable
from stores.secret import Secret

_MOST_REPLIES = 1000
"""To one option; servers send two or three."""

_REFUSALS: dict[int, tuple[type[StoreError], str]] = {
    OptionReply.ERR_UNKNOWN: (NotFound, "the server has no such export"),
    OptionReply.ERR_POLICY: (AccessDenied, "the server's policy forbids it"),
    OptionReply.ERR_SHUTDOWN: (Unavailable, "the server is shutting down"),
}


@dataclass(frozen=True, slots=True)
class Export:
    """What the server says about an export. `size` in bytes."""

    size: int
    flags: int
    max_request: int = MAX_PAYLOAD

    @property
    def many_connections(self) -> bool:
        """Whether the server promises the same content on several connections at once."""
        return bool(self.flags & TransmissionFlag.CAN_MULTI_CONN)


class Negotiation:
    """One connection's way to an export. Send whatever `feed` returns, until `export` is there."""

    def __init__(self, name: str | Secret, context: str | None, *, tls: bool = False) -> None:
        """`context`: the one to be asked about by block status; None for a connection that only reads. A name that is a
        secret is not repeated, nor what the server says of it. `tls`: nothing is asked for before the connection is secured.
        """
        self._name = name
        self._context = context
        self._inbox = Inbox()
        self._greeted = False
        self._options = [Option.STRUCTURED_REPLY, *([Option.SET_META_CONTEXT] if context else []), Option.GO]
        if tls:
            self._options.insert(0, Option.STARTTLS)
        self.handshake_due = False
        """Set when the server waits for the TLS handshake, after which `secured` goes on."""
        self._replies = 0
        self._told: Export | None = None
        self._max_request = MAX_PAYLOAD
        self.context_id: int | None = None
        """The number by which the server's block status names the context; None when it has no such context."""
        self.export: Export | None = None
        """Set when the negotiation is over."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the server; what to answer.

        `NotFound` for an unknown export, `AccessDenied`, `StoreUnsupported` for a server without what we need, `Unavailable`
        for one that shuts down; `ProtocolError` for what is not NBD.
        """
        self._inbox.add(data)
        answer = b""
        if not self._greeted:
            greeting = self._inbox.numbers(GREETING)
            if greeting is None:
                return b""
            answer = self._greet(*greeting)
        while self.export is None and not self.handshake_due and (reply := self._inbox.option_reply()) is not None:
            answer += self._handle(*reply)
        if (self.export is not None or self.handshake_due) and self._inbox.rest:
            # Before the handshake it may be anybody who does.
            raise ProtocolError("the server speaks before it is asked")
        return answer

    def secured(self) -> bytes:
        """The handshake was made: what to send now."""
        self.handshake_due = False
        return self._ask()

    def _greet(self, magic: int, style: int, flags: int) -> bytes:
        if magic != MAGIC:
            raise ProtocolError(f"it greets with {magic:#018x}")
        if style != OPTION_MAGIC or not flags & HandshakeFlag.FIXED_NEWSTYLE:
            raise self._unsupported("fixed newstyle negotiation")
        self._greeted = True
        return CLIENT_FLAGS.pack(flags & (HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)) + self._ask()

    def _ask(self) -> bytes:
        """The option whose turn it is."""
        option = self._options[0]
        name = (self._name.reveal() if isinstance(self._name, Secret) else self._name).encode()
        data = b""
        if option is Option.SET_META_CONTEXT:
            assert self._context is not None
            query = self._context.encode()
            data = U32.pack(len(name)) + name + U32.pack(1) + U32.pack(len(query)) + query
        elif option is Option.GO:
            # Block sizes are not asked for: a server that has been asked may insist on aligned requests.
            data = U32.pack(len(name)) + name + U16.pack(0)
        return OPTION.pack(OPTION_MAGIC, option, len(data)) + data

    def _handle(self, option: int, kind: int, data: bytes) -> bytes:
        asked = self._options[0]
        if option != asked:
            raise ProtocolError(f"a reply to option {option}, asked was {asked.name}")
        self._replies += 1
        if self._replies > _MOST_REPLIES:
            raise ProtocolError(f"no end of replies to {asked.name}")
        match kind:
            case OptionReply.ACK:
                return self._acknowledged()
            case OptionReply.INFO if asked is Option.GO:
                self._info(data)
            case OptionReply.META_CONTEXT if asked is Option.SET_META_CONTEXT:
                self._meta_context(data)
            case _ if kind >= 1 << 31:
                return self._refused(asked, kind, data)
            case _:
                raise ProtocolError(f"a reply of type {kind} to {asked.name}")
        return b""

    def _acknowledged(self) -> bytes:
        acknowledged = self._options.pop(0)
        if acknowledged is Option.STARTTLS:
            self.handshake_due = True
            return b""
        if acknowledged is not Option.GO:
            self._replies = 0
            return self._ask()
        if self._told is None:
            raise ProtocolError("the server does not tell the export's size")
        self.export = Export(self._told.size, self._told.flags, self._max_request)
        return b""

    def _refused(self, option: Option, kind: int, data: bytes) -> bytes:
        said = "" if isinstance(self._name, Secret) else printable(data)
        if option is Option.SET_META_CONTEXT:  # then there are no contexts, and reading is possible all the same
            self.context_id = None
            return self._acknowledged()
        if option is Option.STARTTLS:
            raise self._unsupported("TLS")
        if kind in _REFUSALS:
            error, text = _REFUSALS[kind]
            raise error(f"NBD export {self._name!r}: {text}" + (f" ({said})" if said else ""), export=str(self._name))
        if option is Option.GO:
            raise StoreUnsupported(
                f"the NBD server refuses export {self._name!r}: {said or f'error {kind:#x}'}", export=str(self._name)
            )
        raise self._unsupported("structured replies")

    def _info(self, data: bytes) -> None:
        if len(data) < U16.size:
            raise ProtocolError("information without a type")
        (kind,) = U16.unpack_from(data)
        if kind == Info.EXPORT:
            _, size, flags = _exactly(INFO_EXPORT, data)
            if size >= 1 << 63:  # offsets are signed numbers in every server
                raise ProtocolError(f"an export of {size} bytes")
            self._told = Export(size, flags)
        elif kind == Info.BLOCK_SIZE:
            most = _exactly(INFO_BLOCK_SIZE, data)[3]
            if most == 0:
                raise ProtocolError("requests of at most 0 bytes")
            self._max_request = min(MAX_PAYLOAD, most)

    def _meta_context(self, data: bytes) -> None:
        if len(data) < CONTEXT.size or data[CONTEXT.size :] != (self._context or "").encode():
            raise ProtocolError("a context that was not asked for")
        if self.context_id is not None:
            raise ProtocolError("the same context twice")
        (self.context_id,) = CONTEXT.unpack_from(data)

    def _unsupported(self, what: str) -> StoreUnsupported:
        return StoreUnsupported(
            f"the NBD server does not offer {what}; qemu-nbd, qemu and nbdkit do", export=str(self._name)
        )


def printable(text: bytes) -> str:
    """What a server says to a human, fit for a log: short and printable."""
    return "".join(c if c.isprintable() else " " for c in text[:500].decode(errors="replace")).strip()


def _exactly(form: struct.Struct, data: bytes) -> tuple[int, ...]:
    if len(data) != form.size:
        raise ProtocolError(f"information of {len(data)} bytes instead of {form.size}")
    return form.unpack(data)
