"""Cutting an object into pieces on a fixed grid, and pieces into spans that are asked for at once."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

from stores.contract import Extent, RangeReader
from stores.errors import IntegrityError
from stores.transfer.buffers import PIECE

WINDOW = 4096 * PIECE
"""How far ahead the source is asked for its extents: lists of bounded length, however large and scattered the object."""

ZEROES = memoryview(mmap.mmap(-1, PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)).toreadonly()
"""A piece of zeroes that nobody writes; its pages are the kernel's one zero page and take no memory."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an object. Data pieces begin at a multiple of `PIECE` and have at most that length; holes have any length."""

    index: int
    offset: int
    length: int
    zero: bool
    here: bool = False  # the destination holds it already

    @property
    def wanted(self) -> bool:
        """Whether it has to be read from the source."""
        return not self.zero and not self.here


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


async def windows(source: RangeReader) -> AsyncGenerator[list[Piece], None]:
    """All pieces of `source`, in order, `WINDOW` bytes at a time. `IntegrityError` when its size is unknown."""
    size = known_size(source)
    index = 0
    for start in range(0, size, WINDOW):
        length = min(WINDOW, size - start)
        found = cells(start, length, await source.extents(start, length))
        window = [Piece(number, *cell) for number, cell in enumerate(found, index)]
        index += len(window)
        yield window


def span_pieces(left: int, *, workers: int, limit: int) -> int:
    """How many pieces to ask for at once when `left` are still to be divided among `workers`: `limit`, a power of two, until
    that would leave some of the workers idle before the others are done; then ever less."""
    part = min(limit, max(1, left // workers))
    return 1 << (part.bit_length() - 1)


def take_span(todo: deque[Piece], *, workers: int, limit: int) -> deque[Piece]:
    """Moves the next span out of `todo`: pieces to be read without a gap between them but holes, or one that need not be read.

    Spans end at multiples of their own length, where servers that keep objects in blocks are likely to have borders too.
    """
    span = deque([todo.popleft()])
    number = span[0].offset // PIECE
    most = span_pieces(len(todo) + 1, workers=workers, limit=limit)
    left = most - number % most - 1 if span[0].wanted else 0
    while left and todo:
        holes = 1 if todo[0].zero and len(todo) > 1 else 0
        if not todo[holes].wanted:
            break
        span.extend(todo.popleft() for _ in range(holes + 1))
        left -= 1
    return span


def known_size(source: RangeReader) -> int:
    """The object's size in bytes; `IntegrityError` when the store does not tell it."""
    if source.info.size is None:
        raise IntegrityError(f"the size of {source.info.ref} is unknown: it cannot be read in ranges, only as a stream")
    return source.info.size


def zero_views(length: int) -> Iterator[memoryview]:
    """A run of `length` zeroes, in views of at most `PIECE`."""
    for start in range(0, length, PIECE):
        yield ZEROES[: min(PIECE, length - start)]
