"""Bytes in memory of which runs of zeroes take no room."""

from __future__ import annotations

from stores.contract import Extent, KiB

BLOCK = 64 * KiB

_ZEROES = bytes(BLOCK)


class SparseBytes:
    """What was never written reads as zeroes."""

    def __init__(self, size: int = 0) -> None:
        self.size = size
        self._blocks: dict[int, bytearray] = {}

    def append(self, data: memoryview) -> None:
        self.write_at(self.size, data)

    def write_at(self, offset: int, data: memoryview) -> None:
        self.size = max(self.size, offset + len(data))
        while data:
            index, within = divmod(offset, BLOCK)
            part = data[: BLOCK - within]
            self._put(index, within, part)
            offset += len(part)
            data = data[len(part) :]

    def _put(self, index: int, within: int, part: memoryview) -> None:
        if index not in self._blocks:
            if part == _ZEROES[: len(part)]:
                return
            self._blocks[index] = bytearray(BLOCK)
        self._blocks[index][within : within + len(part)] = part

    def read_into(self, offset: int, buffer: memoryview) -> None:
        while buffer:
            index, within = divmod(offset, BLOCK)
            count = min(BLOCK - within, len(buffer))
            block = self._blocks.get(index, _ZEROES)
            buffer[:count] = memoryview(block)[within : within + count]
            buffer = buffer[count:]
            offset += count

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Neighbouring blocks of one sort joined, clipped to the range."""
        end = offset + length
        runs: list[Extent] = []
        at = offset
        for index in sorted(i for i in self._blocks if (i + 1) * BLOCK > offset and i * BLOCK < end):
            start, stop = max(index * BLOCK, offset), min((index + 1) * BLOCK, end)
            if start > at:
                runs.append(Extent(at, start - at, zero=True))
            if runs and not runs[-1].zero:
                runs[-1] = Extent(runs[-1].offset, stop - runs[-1].offset, zero=False)
            else:
                runs.append(Extent(start, stop - start, zero=False))
            at = stop
        if at < end:
            runs.append(Extent(at, end - at, zero=True))
        return runs
