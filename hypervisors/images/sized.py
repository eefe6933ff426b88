"""A disk that is made longer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from stores.contract import Ahead, BlockingCalls, Extent, ObjectInfo, RangeReader


class Sized(RangeReader):
    """The first `known` bytes of a disk, and zeroes up to `size`."""

    def __init__(self, inner: RangeReader, known: int, size: int) -> None:
        self.info = ObjectInfo(inner.info.ref, size)
        self.parallel = inner.parallel
        self._inner = inner
        self._known = known

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        count = max(0, min(len(buffer), self._known - offset))
        if count:
            await self._inner.read_into(offset, buffer[:count])
        buffer[count:] = bytes(len(buffer) - count)

    async def read_each(
        self,
        take: Callable[[], tuple[int, memoryview] | None],
        put: Callable[[int, memoryview], None],
        threads: BlockingCalls,
        *,
        ahead: Ahead = lambda: (),
    ) -> None:
        present = memoryview(b"")

        def take_known() -> tuple[int, memoryview] | None:
            """What there is of the next buffer; the rest of it, and buffers of which there is nothing, are zero."""
            nonlocal present
            while (wanted := take()) is not None:
                offset, present = wanted
                count = max(0, min(len(present), self._known - offset))
                present[count:] = bytes(len(present) - count)
                if count:
                    return offset, present[:count]
                put(offset, present)
            return None

        def known_ahead() -> Iterator[tuple[int, int]]:
            return ((offset, min(length, self._known - offset)) for offset, length in ahead() if offset < self._known)

        await self._inner.read_each(take_known, lambda offset, _: put(offset, present), threads, ahead=known_ahead)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        count = max(0, min(length, self._known - offset))
        beyond = [Extent(offset + count, length - count, zero=True)] if count < length else []
        return [*(await self._inner.extents(offset, count) if count else ()), *beyond]
