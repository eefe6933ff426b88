"""Which layer of a chain holds each part of the disk: newest over oldest. Pure."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hypervisors.images.qcow2_stream import Run


@dataclass(frozen=True, slots=True)
class Layer:
    """What one image maps, in the order of the disk."""

    virtual_size: int
    runs: Iterable[Run]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the disk: in the image of layer `layer`, from byte `host` on; zero where `host` is None."""

    offset: int
    length: int
    layer: int
    host: int | None

    @property
    def end(self) -> int:
        return self.offset + self.length

    def within(self, start: int, stop: int) -> Part:
        """What of it lies between."""
        begin, end = max(self.offset, start), min(self.end, stop)
        host = None if self.host is None else self.host + begin - self.offset
        return Part(begin, end - begin, self.layer, host)


class Overlay:
    """The parts of a chain's disk that have any content, apart and in order. Numbers only: 28 bytes for each part."""

    def __init__(self, layers: Sequence[Layer], size: int) -> None:
        """`layers`, newest first; `size` of the disk: what lies beyond a layer's own end is zero in it, for all those below
        it too."""
        self._offsets, self._lengths, self._layers = array("Q"), array("Q"), array("H")
        self._hosts = array("Q")
        for part in _over(layers, size):
            if part.host is not None:
                self._offsets.append(part.offset)
                self._lengths.append(part.length)
                self._layers.append(part.layer)
                self._hosts.append(part.host)

    def parts(self, start: int, stop: int) -> Iterator[Part]:
        """Those between, cut to that."""
        index = max(bisect_right(self._offsets, start) - 1, 0)
        for number in range(index, len(self._offsets)):
            part = Part(self._offsets[number], self._lengths[number], self._layers[number], self._hosts[number])
            if part.offset >= stop:
                return
            if part.end > start:
                yield part.within(start, stop)


def _over(layers: Sequence[Layer], size: int) -> Iterator[Part]:
    lowest: Iterator[Part] = iter(())
    limits = [min(size, *(layer.virtual_size for layer in layers[: number + 1])) for number in range(len(layers))]
    for number in range(len(layers) - 1, -1, -1):
        lowest = _merged(_parts(layers[number].runs, number, limits[number]), lowest)
    return lowest


def _parts(runs: Iterable[Run], layer: int, limit: int) -> Iterator[Part]:
    for run in runs:
        if run.offset < limit:
            yield Part(run.offset, run.length, layer, run.host).within(0, limit)


def _merged(upper: Iterator[Part], lower: Iterator[Part]) -> Iterator[Part]:
    """All of `upper`, and of `lower` what it leaves open."""
    below = next(lower, None)
    for above in upper:
        while below is not None and below.offset < above.offset:
            yield below.within(below.offset, above.offset)
            below = next(lower, None) if below.end <= above.offset else below.within(above.offset, below.end)
        while below is not None and below.end <= above.end:
            below = next(lower, None)
        if below is not None and below.offset < above.end:
            below = below.within(above.end, below.end)
        yield above
    while below is not None:
        yield below
        below = next(lower, None)
