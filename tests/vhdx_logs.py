"""Logs of VHDX that were not closed, written by the specification and by nothing of ours."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from awscrt.checksums import crc32c

from stores.contract import KiB, MiB

SECTOR = 4 * KiB
LOG_AT, LOG_LENGTH = MiB, MiB
LOG_ID = b"this log's own id"[:16]


@dataclass(frozen=True)
class Data:
    offset: int
    content: bytes


@dataclass(frozen=True)
class Zeroes:
    offset: int
    length: int


def entry(
    writes: Sequence[Data | Zeroes],
    number: int,
    tail: int,
    *,
    size: int,
    flushed: int | None = None,
    log: bytes = LOG_ID,
) -> bytes:
    """An entry whose sequence begins at `tail` in the log, of a file that has `size` bytes."""
    descriptors, sectors = [], []
    for write in writes:
        match write:
            case Data(offset, content):
                assert len(content) == SECTOR
                descriptors.append(struct.pack("<4s4s8sQQ", b"desc", content[-4:], content[:8], offset, number))
                sectors.append(struct.pack("<4sI4084sI", b"data", number >> 32, content[8:-4], number & 0xFFFFFFFF))
            case Zeroes(offset, length):
                descriptors.append(struct.pack("<4sIQQQ", b"zero", 0, length, offset, number))
    described = 64 + 32 * len(writes)
    room = -(-described // SECTOR) * SECTOR
    length = room + SECTOR * len(sectors)
    least = size if flushed is None else flushed
    head = struct.pack("<4sIIIQII16sQQ", b"loge", 0, length, tail, number, len(writes), 0, log, least, size)
    return sealed((head + b"".join(descriptors)).ljust(room, b"\0") + b"".join(sectors))


def sealed(made: bytes) -> bytes:
    checksum = int(crc32c(made[:4] + bytes(4) + made[8:]))
    return made[:4] + checksum.to_bytes(4, "little") + made[8:]


def put(image: bytearray, entries: Sequence[bytes], at: int) -> int:
    """Into the log from `at` on, around its end; where the next one goes."""
    for made in entries:
        for start in range(0, len(made), SECTOR):
            place = LOG_AT + (at + start) % LOG_LENGTH
            image[place : place + SECTOR] = made[start : start + SECTOR]
        at = (at + len(made)) % LOG_LENGTH
    return at


def mark_open(image: bytearray, log: bytes = LOG_ID) -> None:
    """Both headers say that there is something to replay."""
    for place in (64 * KiB, 128 * KiB):
        header = bytearray(image[place : place + SECTOR])
        header[48:64] = log
        image[place : place + SECTOR] = sealed(bytes(header))


def torn(image: bytes, chance: random.Random) -> bytearray:
    """The image in the middle of its tables being written: some of their sectors hold anything, the log has the right ones,
    in several entries anywhere in the ring, and rests of what was in it before."""
    broken = bytearray(image)
    tables = [
        *range(192 * KiB, 320 * KiB, SECTOR),
        *range(2 * MiB, 2 * MiB + 128 * KiB, SECTOR),
        *range(3 * MiB, 3 * MiB + 64 * KiB, SECTOR),
    ]
    chosen = chance.sample(tables, chance.randint(1, 40))
    number = chance.randint(1, 1 << 40)
    at = chance.randrange(0, LOG_LENGTH, SECTOR)
    tail = at
    size = len(image)
    old = [Data(place, chance.randbytes(SECTOR)) for place in chosen[:3]]
    put(broken, [entry(old, number + 1000, 0, size=size, log=b"o" * 16)], (at - 64 * KiB) % LOG_LENGTH)
    stale = (at - 200 * KiB) % LOG_LENGTH
    put(broken, [entry(old, max(number - 500, 1), stale, size=size)], stale)
    first: list[Data | Zeroes] = [
        Data(place, chance.randbytes(SECTOR)) for place in chance.sample(chosen, chance.randint(0, len(chosen)))
    ]
    groups = [[right(image, place) for place in chosen[start : start + 9]] for start in range(0, len(chosen), 9)]
    for writes in [first, *groups]:
        at, number = put(broken, [entry(writes, number, tail, size=size)], at), number + 1
    unfinished = bytearray(entry(old, number, tail, size=size))
    unfinished[-1] ^= 1
    put(broken, [bytes(unfinished)], at)
    for place in chosen:
        broken[place : place + SECTOR] = chance.randbytes(SECTOR)
    mark_open(broken)
    return broken


def right(image: bytes, place: int) -> Data | Zeroes:
    content = image[place : place + SECTOR]
    return Data(place, content) if any(content) else Zeroes(place, SECTOR)
