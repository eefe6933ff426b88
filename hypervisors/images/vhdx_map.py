"""Where in a VHDX that stands for itself each part of its disk is: for reading objects at random.

Of what the image says, nothing is believed before it is checked (`hypervisors.images.vhdx_reading`); and no two parts of the
disk are in one place.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import aclosing

from hypervisors.images.parsing import refuse
from hypervisors.images.qcow2_stream import Run
from hypervisors.images.vhdx_reading import open_image
from stores.contract import RangeReader
from stores.transfer.engine import TransferEngine

MOST_RUNS = 1 << 21
"""What the largest disk has in whole blocks of the usual 32 MiB: 48 MiB of numbers. Neighbours are one."""


class VhdxMap:
    """What is in no run is zero. `block`: bytes of the image's blocks. `read_map` makes it."""

    def __init__(self, virtual_size: int, block: int) -> None:
        self.virtual_size = virtual_size
        self.block = block
        self._offsets, self._lengths, self._places = array("Q"), array("Q"), array("Q")

    def runs(self) -> Iterator[Run]:
        """The parts of the disk that the image has, in order and apart; each one's `host` is its place in the image."""
        return map(Run, self._offsets, self._lengths, self._places)

    def add(self, offset: int, length: int, place: int) -> None:
        """One more, behind the last. `ImageRefused` for too many."""
        if self._offsets:
            last = self._lengths[-1]
            if (self._offsets[-1] + last, self._places[-1] + last) == (offset, place):
                self._lengths[-1] += length
                return
        if len(self._offsets) == MOST_RUNS:
            raise refuse(
                "vhdx-blocks", f"the VHDX's disk is in more than {MOST_RUNS} parts: convert it", limit=MOST_RUNS
            )
        self._offsets.append(offset)
        self._lengths.append(length)
        self._places.append(place)

    def check_apart(self) -> None:
        """`ImageRefused` where two parts lie over one another."""
        end = 0
        for place, length in sorted(zip(self._places, self._lengths, strict=True)):
            if place < end:
                raise refuse("vhdx-table", f"two blocks of the VHDX are in one place, at {place}", place=place)
            end = place + length


async def read_map(file: RangeReader, engine: TransferEngine) -> VhdxMap:
    """`ImageRefused` for an image that is damaged, and for a differencing disk; otherwise what `file` raises."""
    image = await open_image(file, engine)
    if image.parent is not None:
        raise refuse("vhdx-parent", "the VHDX is a differencing disk, and its parent is missing")
    found = VhdxMap(image.virtual_size, image.block)
    async with aclosing(image.runs(0, image.virtual_size)) as runs:
        async for run in runs:
            if run.place is not None:
                found.add(run.offset, run.length, run.place)
    await engine.run(found.check_apart)
    return found
