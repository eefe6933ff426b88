"""The memory budget: page-aligned buffers that every transfer of the process shares."""

from __future__ import annotations

import mmap
import os
from collections.abc import Hashable

from stores.contract import MiB
from stores.transfer.fairness import FairShare

PIECE = 2 * MiB
"""Size of one buffer. Large enough that system calls and thread switches cost little, small enough that eight transfers share
the default budget with three pieces in flight each. How much one GET asks for is another matter (`stores.transfer.pump`)."""


BUSY = 4
"""Buffers being filled and emptied for each processor, over all transfers, as long as there are no more transfers than that.
A thread works on each; more of them move no more bytes, but the event loop waits ever longer for its turn among them."""


class BufferPool:
    """At most `memory // PIECE` buffers of `PIECE` bytes, made when first needed, dropped when the last one comes back.

    They are anonymous mappings: aligned to pages as direct I/O wants them, and outside the allocator's arenas, so that
    giving them back shrinks the process. For the event loop's thread, but for `pressed`.
    """

    def __init__(self, memory: int) -> None:
        if memory < PIECE:
            raise ValueError(f"the memory budget must be at least {PIECE} bytes, got {memory}")
        self._share = FairShare(memory // PIECE, share=BUSY * (os.cpu_count() or 1))
        self._spare: list[memoryview] = []

    @property
    def taken(self) -> int:
        """Buffers that are out."""
        return self._share.taken

    def pressed(self, owner: Hashable) -> bool:
        """Whether `owner` should give back a buffer soon, for others to go on. From any thread."""
        return self._share.pressed(owner)

    async def acquire(self, owner: Hashable) -> memoryview:
        """A buffer with any content. Waits for one within the budget; an owner with none is served before it gets a second."""
        await self._share.acquire(owner)
        if self._spare:
            return self._spare.pop()
        return memoryview(mmap.mmap(-1, PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    def release(self, owner: Hashable, buffer: memoryview) -> None:
        """Gives back what `acquire` gave. Nobody may touch `buffer` any more."""
        self._spare.append(buffer)
        self._share.release(owner)
        if self._share.taken == 0:
            self._spare.clear()
