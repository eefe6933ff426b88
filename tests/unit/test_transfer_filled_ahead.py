"""Buffers that are filled while others are used: their content in order, and all of them given back."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from stores.contract import KiB
from stores.errors import Unavailable
from stores.transfer.buffers import PIECE, BufferPool
from stores.transfer.readahead import filled_ahead


class Source:
    def __init__(self, size: int, *, fails: bool = False) -> None:
        self._left = size
        self._fails = fails
        self.fills = 0

    async def fill(self, buffer: memoryview) -> int:
        self.fills += 1
        await asyncio.sleep(0)
        count = min(len(buffer), self._left)
        if count < len(buffer) and self._fails:
            raise Unavailable("gone")
        self._left -= count
        buffer[:count] = bytes([self.fills]) * count
        return count


@pytest.mark.parametrize("size", [0, 1, PIECE, 3 * PIECE, 3 * PIECE + 100])
@pytest.mark.parametrize("memory", [PIECE, 4 * PIECE])
async def test_pieces_come_in_order(size: int, memory: int) -> None:
    """Also where there is one buffer for all."""
    buffers = BufferPool(memory)
    source = Source(size)
    async with aclosing(filled_ahead(buffers, source.fill)) as pieces:
        seen = [(len(piece), piece[0], piece[-1]) async for piece in pieces]
    lengths = [PIECE] * (size // PIECE) + [size % PIECE] * (size % PIECE > 0)
    assert seen == [(length, number, number) for number, length in enumerate(lengths, 1)]
    assert buffers.taken == 0


async def test_the_next_is_filled_while_the_last_is_used() -> None:
    source = Source(4 * PIECE)
    async with aclosing(filled_ahead(BufferPool(4 * PIECE), source.fill)) as pieces:
        await anext(pieces)
        for _ in range(5):
            await asyncio.sleep(0)
        assert source.fills == 2


@pytest.mark.parametrize("taken", [0, 1, 2])
async def test_left_early(taken: int) -> None:
    buffers = BufferPool(4 * PIECE)
    async with aclosing(filled_ahead(buffers, Source(9 * PIECE).fill)) as pieces:
        for _ in range(taken):
            await anext(pieces)
    assert buffers.taken == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_failure_is_raised_in_its_turn() -> None:
    buffers = BufferPool(4 * PIECE)
    async with aclosing(filled_ahead(buffers, Source(2 * PIECE + KiB, fails=True).fill)) as pieces:
        assert [len(await anext(pieces)), len(await anext(pieces))] == [PIECE, PIECE]
        with pytest.raises(Unavailable, match="gone"):
            await anext(pieces)
    assert buffers.taken == 0
