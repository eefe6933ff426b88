"""Structured replies, as a client reads them: where data belong, what is still missing, what extents are told. No I/O.

Source: "Structured reply chunk message" and "Metadata querying" of the NBD protocol,
https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md. Nothing that a server says is taken on trust: every chunk
has to lie inside of its request, no byte is told twice, and none is left out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hypervisors.nbd.negotiation import printable
from stores.bridge.wire import (
    CHUNK,
    CONTEXT,
    DESCRIPTOR,
    DONE,
    ERROR,
    HOLE,
    LONGEST_MESSAGE,
    OFFSET,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Errno,
    ProtocolError,
)
from stores.contract import MiB
from stores.errors import AccessDenied, DeviceFault, StoreError, StoreUnsupported, Unavailable

LONGEST_STATUS = 8 * MiB + CONTEXT.size
"""Most bytes of one block status: nbdkit tells at most 2**20 extents at once, qemu an eighth of that."""

_ERROR_BIT = 1 << 15
_LONGEST_ERROR = ERROR.size + LONGEST_MESSAGE + OFFSET.size


@dataclass(frozen=True, slots=True)
class ChunkHead:
    """One chunk of a reply: `length` bytes of payload follow it; `done` in the last one of its reply."""

    kind: int
    cookie: int
    length: int
    done: bool

    @property
    def error(self) -> bool:
        return bool(self.kind & _ERROR_BIT)


def chunk_head(data: bytes | bytearray) -> ChunkHead:
    """`ProtocolError` for another magic, for a chunk whose length its type cannot have, and for unknown types."""
    magic, flags, kind, cookie, length = CHUNK.unpack(data)
    if magic != STRUCTURED_REPLY_MAGIC:
        raise ProtocolError(f"reply magic is {magic:#010x}")
    head = ChunkHead(kind, cookie, length, bool(flags & DONE))
    if not _possible(head):
        raise ProtocolError(f"a chunk of type {kind:#x} and {length} bytes")
    return head


def _possible(head: ChunkHead) -> bool:
    if head.error:
        return ERROR.size <= head.length <= _LONGEST_ERROR
    match head.kind:
        case Chunk.NONE:
            return head.length == 0 and head.done
        case Chunk.OFFSET_DATA:
            return head.length > OFFSET.size
        case Chunk.OFFSET_HOLE:
            return head.length == HOLE.size
        case Chunk.BLOCK_STATUS:
            told = head.length - CONTEXT.size
            return 0 < told <= LONGEST_STATUS - CONTEXT.size and told % DESCRIPTOR.size == 0
        case _:
            return False


class ReadReply:
    """The reply to one read, as it arrives."""

    def __init__(self, offset: int, length: int) -> None:
        self.offset = offset
        self.length = length
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._missing = length

    def place(self, offset: int, length: int) -> tuple[int, int]:
        """Where in the request's memory these bytes belong: start and end. `ProtocolError` unless all of them were asked for,
        and not told before."""
        start = offset - self.offset
        end = start + length
        if length == 0 or start < 0 or end > self.length:
            raise ProtocolError(f"bytes {offset}+{length} in reply to a read of {self.offset}+{self.length}")
        at = bisect_right(self._starts, start)
        if (at > 0 and self._ends[at - 1] > start) or (at < len(self._starts) and self._starts[at] < end):
            raise ProtocolError(f"bytes {offset}+{length} are told twice")
        self._starts.insert(at, start)
        self._ends.insert(at, end)
        self._missing -= length
        return start, end

    def finish(self) -> None:
        """The last chunk was read. `ProtocolError` when it left something out."""
        if self._missing:
            raise ProtocolError(f"a reply to a read of {self.offset}+{self.length} leaves out {self._missing} bytes")


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive bytes of one state: the flags of the context that was asked about."""

    offset: int
    length: int
    state: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def runs(payload: bytes | bytearray, *, context_id: int | None, offset: int, length: int) -> list[Run]:
    """What a block status says about `length` bytes from `offset`, or about the first of them; neighbours of equal state are
    joined. The last extent may reach beyond what was asked for and is cut. `ProtocolError` for an extent of no length, for
    one that begins beyond, and for another context."""
    (told_id,) = CONTEXT.unpack_from(payload)
    if told_id != context_id:
        raise ProtocolError(f"block status of context {told_id}, asked was {context_id}")
    told: list[Run] = []
    at, end = offset, offset + length
    for size, state in DESCRIPTOR.iter_unpack(memoryview(payload)[CONTEXT.size :]):
        if size == 0 or at >= end:
            raise ProtocolError(f"an extent of {size} bytes at {at}, in reply to {offset}+{length}")
        told.append(Run(at, min(size, end - at), state))
        at += size
    return list(joined(told))


def joined(parts: Iterable[Run]) -> Iterator[Run]:
    """Neighbours of equal state as one."""
    last: Run | None = None
    for part in parts:
        if last is not None and (last.end, last.state) == (part.offset, part.state):
            last = Run(last.offset, last.length + part.length, last.state)
            continue
        if last is not None:
            yield last
        last = part
    if last is not None:
        yield last


def refusal(payload: bytes | bytearray, what: str) -> StoreError:
    """An error chunk, as one of our errors. `what` was being done."""
    number, length = ERROR.unpack_from(payload)
    if ERROR.size + length > len(payload) or number == 0:
        raise ProtocolError("an error that is none")
    said = printable(bytes(payload[ERROR.size : ERROR.size + length]))
    because = said or f"error {number}"
    match number:
        case Errno.EIO:
            return DeviceFault(f"{what} failed: {because}; check the disk or mount below the server", errno=number)
        case Errno.EPERM:
            return AccessDenied(f"{what} is not allowed: {because}", errno=number)
        case Errno.ENOMEM | Errno.ESHUTDOWN:
            return Unavailable(f"{what} failed: {because}", errno=number)
        case Errno.ENOTSUP:
            return StoreUnsupported(f"{what} is not supported by the server: {because}", errno=number)
        case _:
            return StoreError(f"{what} was refused: {because}", errno=number)
