"""The map of an image that `hypervisors.images.qcow2_stream` made, read back from the image itself, without QEMU.

Of the tables only the map is believed: which clusters are data and which are zero. From it the image is laid out once more,
and every byte that is not data must be the same. So a layout that is returned belongs to an image without a leak, a cluster
used twice, a wrong reference count, or a feature of which nothing is known here. That it is the right image, only a digest
can tell.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby

from hypervisors.contract import ImageRefused
from hypervisors.images import qcow2
from hypervisors.images.parsing import HEAD, refuse
from hypervisors.images.pieces import Data, Metadata
from hypervisors.images.qcow2 import Header
from hypervisors.images.qcow2_stream import ENTRY, ZERO_CLUSTER, Layout, layout
from stores.contract import Extent, MiB, RangeReader
from stores.errors import TooLarge
from stores.transfer.engine import TransferEngine
from stores.transfer.pieces import known_size

_WINDOW = 1 * MiB
"""How much of the tables is read at once, and kept."""


async def read_layout(reader: RangeReader, engine: TransferEngine) -> Layout:
    """The layout of the image in `reader`, whether full or a delta. Reads its tables, twice, and of its data one cluster.

    `ImageRefused` for an image that is damaged outside its data, or written by anybody else, whatever QEMU makes of it.
    Raises what `reader` raises.
    """
    size = known_size(reader)
    head = await reader.read(0, min(HEAD, size))
    qcow2.parse(head, size)
    header = qcow2.read_header(head)
    if not header.virtual_size:
        raise _foreign(0)
    extents = await _extents(reader, engine, header, size)
    try:
        found = await engine.run(partial(layout, header.virtual_size, extents, cluster=header.cluster, delta=True))
    except TooLarge as error:
        raise _foreign(0) from error
    if found.size != size:
        raise _foreign(min(found.size, size))
    for start, length in _windows(found):
        different = await engine.run(_first_difference, found, start, await reader.read(start, length))
        if different is not None:
            raise _foreign(different)
    return found


async def _extents(reader: RangeReader, engine: TransferEngine, header: Header, size: int) -> list[Extent]:
    """What the tables map, if they follow one another as ours do."""
    l1_table = _numbers(await reader.read(header.l1_offset, header.l1_entries * ENTRY))
    tables = [index for index, entry in enumerate(l1_table) if entry]
    at_once = max(_WINDOW // header.cluster, 1)
    extents: list[Extent] = []
    for number in range(0, len(tables), at_once):
        some = tables[number : number + at_once]
        start, length = l1_table[some[0]] % (1 << 63), len(some) * header.cluster  # the highest bit is a flag
        if start + length > size:
            raise _foreign(header.l1_offset)
        extents += await engine.run(_mapped, await reader.read(start, length), some, header)
    return extents


def _mapped(content: bytes, tables: Sequence[int], header: Header) -> list[Extent]:
    """What L2 tables map, inside the disk; `tables` are their indices in the L1 table."""
    extents: list[Extent] = []
    entries = header.cluster // ENTRY
    for number, index in enumerate(tables):
        position = index * entries * header.cluster
        numbers = _numbers(content[number * header.cluster : (number + 1) * header.cluster])
        for kind, count in _runs(min(entry, ZERO_CLUSTER + 1) for entry in numbers):
            length = min(count * header.cluster, header.virtual_size - position)
            if kind and length > 0:
                extents.append(Extent(position, length, zero=kind == ZERO_CLUSTER))
            position += count * header.cluster
    return extents


def _runs(kinds: Iterator[int]) -> Iterator[tuple[int, int]]:
    return ((kind, len(list(same))) for kind, same in groupby(kinds))


def _numbers(table: bytes) -> array[int]:
    numbers = array("Q", table)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


def _windows(expected: Layout) -> Iterator[tuple[int, int]]:
    """Offset and length of the parts that hold everything but data: the tables, and the cluster that is filled up."""
    for start in range(0, expected.data_at, _WINDOW):
        yield start, min(_WINDOW, expected.data_at - start)
    if expected.data_at < expected.size:
        yield expected.size - expected.cluster, expected.cluster


def _first_difference(expected: Layout, start: int, content: bytes) -> int | None:
    """Where the first byte of `content`, which is from `start` on, should be another. Of data nothing is known."""
    position = 0
    for piece in expected.pieces(start, start + len(content)):
        match piece:
            case Metadata(made):
                found = content[position : position + len(made)]
                if found != made:
                    return start + position + next(at for at in range(len(made)) if found[at] != made[at])
                position += len(made)
            case Data(_, length):
                position += length
    return None


def _foreign(offset: int) -> ImageRefused:
    return refuse(
        "qcow2-layout",
        f"from byte {offset} on, the qcow2 image is not what its own map calls for: it was damaged, or was not written as"
        " a backup; use another copy of it",
        offset=offset,
    )
