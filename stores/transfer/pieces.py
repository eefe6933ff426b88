"""Cutting an object into pieces on a fixed grid, and putting what was read in parallel back in order."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

from stores.contract import Extent, RangeReader
from stores.errors import IntegrityError
from stores.transfer.buffers import PIECE

WINDOW = 512 * PIECE
"""How far ahead the source is asked for its extents: a list of bounded length, however large and scattered the object."""

ZEROES = memoryview(mmap.mmap(-1, PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)).toreadonly()
"""A piece of zeroes that nobody writes; its pages are the kernel's one zero page and take no memory."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an object. Data pieces begin at a multiple of `PIECE` and have at most that length; holes have any length."""

    index: int
    offset: int
    length: int
    zero: bool


def cells(offset: int, length: int, extents: Sequence[Extent]) -> Iterator[tuple[int, int, bool]]:
    """Offset, length and whether all of it is a hole, for each run from `offset`, a multiple of `PIECE`.

    A cell of the grid with any data in it is read as a whole: its holes arrive as zeroes and are found again when it is
    written. So small extents neither make small requests nor break the alignment. Neighbouring holes are joined.
    """
    end = offset + length
    hole = offset
    for extent in extents:
        if extent.zero or not extent.length:
            continue
        start = max(hole, extent.offset - extent.offset % PIECE)
        if hole < start:
            yield hole, start - hole, True
            hole = start
        while hole < min(end, extent.offset + extent.length):
            yield hole, min(PIECE, end - hole), False
            hole = min(end, hole + PIECE)
    if hole < end:
        yield hole, end - hole, True


async def pieces(source: RangeReader) -> AsyncGenerator[Piece, None]:
    """All of `source`, in order. `IntegrityError` when its size is unknown."""
    size = known_size(source)
    index = 0
    for start in range(0, size, WINDOW):
        length = min(WINDOW, size - start)
        for offset, count, zero in cells(start, length, await source.extents(start, length)):
            yield Piece(index, offset, count, zero)
            index += 1


def known_size(source: RangeReader) -> int:
    """The object's size in bytes; `IntegrityError` when the store does not tell it."""
    if source.info.size is None:
        raise IntegrityError(f"the size of {source.info.ref} is unknown: it cannot be read in ranges, only as a stream")
    return source.info.size


def zero_views(length: int) -> Iterator[memoryview]:
    """A run of `length` zeroes, in views of at most `PIECE`."""
    for start in range(0, length, PIECE):
        yield ZEROES[: min(PIECE, length - start)]


class Turns:
    """Lets tasks that finish in any order go on in the order of their numbers, from 0."""

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}

    async def wait(self, number: int) -> None:
        """Returns when all smaller numbers are done."""
        if number != self._next:
            self._waiting[number] = asyncio.get_running_loop().create_future()
            await self._waiting[number]

    def done(self) -> None:
        """The number whose turn it is has been dealt with."""
        self._next += 1
        turn = self._waiting.pop(self._next, None)
        if turn is not None and not turn.done():
            turn.set_result(None)
