"""The log of a VHDX that was not closed: what has to be written into the file before anything in it may be believed. No I/O.

Source: Microsoft's [MS-VHDX], 2.3. The log is a ring of entries, each some sectors of 4 KiB, numbered one after another. What
counts is the newest sequence without a gap whose last entry says that it begins inside of it. Every check of the
specification has to hold before an entry counts; its checksum is looked at last, which is what takes time.
"""

from __future__ import annotations

import heapq
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from operator import attrgetter

from hypervisors.images import vhdx
from hypervisors.images.parsing import refuse, truncated
from stores.contract import KiB, MiB

LARGEST_LOG = 4 * MiB
"""Hyper-V and qemu have 1 MiB."""

_LARGEST_PADDING = 64 * KiB
"""Behind an entry, where the disk below has sectors of up to that size. With more, entries could claim one another's room, and
to look at all of them would take long."""

_SECTOR = 4 * KiB
_ENTRY = struct.Struct("<4sIIIQI4x16sQQ")
"""Signature, checksum, length, tail, number, descriptors, id of the log, least and last size of the file."""
_DESCRIPTOR = struct.Struct("<4s4s8sQQ")
"""Signature, the data's last 4 and first 8 bytes (of zeroes: nothing, and their length), place in the file, number."""
_DATA = struct.Struct("<4sI4084sI")
"""Signature, high half of the number, data, low half of the number."""


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes of the file from `start` to `stop`. `content` None: zeroes."""

    start: int
    stop: int
    content: bytes | None


@dataclass(frozen=True, slots=True)
class _Entry:
    at: int
    length: int
    tail: int
    number: int
    flushed: int
    last: int
    writes: tuple[Write, ...]


class Overlay:
    """The file as it is when the log is replayed: what is written over it, and how large it is then."""

    def __init__(self, writes: list[Write], size: int) -> None:
        """`writes` in the order of time."""
        self.size = size
        self._writes = list(_flattened(writes))

    def apply(self, offset: int, buffer: memoryview) -> None:
        """To the file's bytes from `offset` on."""
        end = offset + len(buffer)
        first = bisect_right(self._writes, offset, key=attrgetter("stop"))
        for index in range(first, len(self._writes)):
            write = self._writes[index]
            if write.start >= end:
                break
            start, stop = max(write.start, offset), min(write.stop, end)
            content = write.content
            part = bytes(stop - start) if content is None else content[start - write.start : stop - write.start]
            buffer[start - offset : stop - offset] = part


def replayed(log: bytes, log_id: bytes, size: int) -> Overlay:
    """What the log, whose entries have that id, makes of a file of `size` bytes. Takes time and memory as the log is long.

    `ImageRefused` where there is nothing in it to replay, although the file says so, and where the file was cut off.
    """
    sequence = _newest_sequence(log, log_id)
    if not sequence:
        raise refuse(
            "vhdx-log", "the VHDX was not closed, and its log has no whole sequence of entries: it was damaged"
        )
    head = sequence[-1]
    if size < head.flushed:
        raise truncated("VHDX file")
    begin = next(number for number, entry in enumerate(sequence) if entry.at == head.tail)
    writes = [write for entry in sequence[begin:] for write in entry.writes]
    return Overlay(writes, max([size, head.last, *(write.stop for write in writes)]))


def _newest_sequence(log: bytes, log_id: bytes) -> list[_Entry]:
    """Empty if there is no whole one."""
    ring = memoryview(log + log)  # what begins near its end goes on at its beginning

    @cache
    def entry_at(place: int) -> _Entry | None:
        return _read_entry(ring, place, log_id)

    newest: list[_Entry] = []
    tail = 0
    while tail < len(log):
        sequence = _sequence(entry_at, tail, len(log))
        if not any(entry.at == sequence[-1].tail for entry in sequence):
            tail += _SECTOR
            continue
        if not newest or sequence[-1].number > newest[-1].number:
            newest = sequence
        tail += sum(entry.length for entry in sequence)
    return newest


def _sequence(entry_at: Callable[[int], _Entry | None], tail: int, size: int) -> list[_Entry]:
    """From that place in a log of `size` bytes on, as far as entries follow one another."""
    sequence: list[_Entry] = []
    place = tail
    while (entry := entry_at(place)) and (not sequence or entry.number == sequence[-1].number + 1):
        sequence.append(entry)
        place = (place + entry.length) % size
    return sequence


def _read_entry(ring: memoryview, at: int, log_id: bytes) -> _Entry | None:
    """None unless there is one, and all of it is right."""
    signature, _, length, tail, number, count, of_log, flushed, last = _ENTRY.unpack_from(ring, at)
    if signature != b"loge" or of_log != log_id or not number:
        return None
    if not length or length % _SECTOR or length > len(ring) // 2 or _ENTRY.size + count * _DESCRIPTOR.size > length:
        return None
    content = ring[at : at + length]
    writes = _read_writes(content, number, count)
    if writes is None or int.from_bytes(content[4:8], "little") != vhdx.checksum(bytes(content)):
        return None
    return _Entry(at, length, tail, number, flushed, last, tuple(writes))


def _read_writes(content: memoryview, number: int, count: int) -> list[Write] | None:
    """What an entry wants written; None where it is not whole."""
    writes: list[Write] = []
    sector = -(-(_ENTRY.size + count * _DESCRIPTOR.size) // _SECTOR) * _SECTOR
    for at in range(_ENTRY.size, _ENTRY.size + count * _DESCRIPTOR.size, _DESCRIPTOR.size):
        signature, end, begin, start, of_entry = _DESCRIPTOR.unpack_from(content, at)
        if of_entry != number or start % _SECTOR:
            return None
        if signature == b"zero":
            length = int.from_bytes(begin, "little")
            if length % _SECTOR:
                return None
            writes.append(Write(start, start + length, None))
            continue
        if signature != b"desc" or sector + _SECTOR > len(content):
            return None
        data_signature, high, data, low = _DATA.unpack_from(content, sector)
        if data_signature != b"data" or high << 32 | low != number:
            return None
        writes.append(Write(start, start + _SECTOR, begin + data + end))
        sector += _SECTOR
    return writes if len(content) - sector < _LARGEST_PADDING else None


def _flattened(writes: list[Write]) -> Iterator[Write]:
    """The same without one over another, in the order of the file: where several are, the last one counts."""
    borders = sorted({border for write in writes for border in (write.start, write.stop)})
    in_order = sorted(range(len(writes)), key=lambda index: writes[index].start, reverse=True)
    open_ones: list[int] = []
    for start, stop in pairwise(borders):
        while in_order and writes[in_order[-1]].start <= start:
            heapq.heappush(open_ones, -in_order.pop())
        while open_ones and writes[-open_ones[0]].stop <= start:
            heapq.heappop(open_ones)
        if open_ones:
            write = writes[-open_ones[0]]
            content = write.content
            part = None if content is None else content[start - write.start : stop - write.start]
            yield Write(start, stop, part)
