"""What changed between two snapshots of a disk, as the pool's changed block tracking tells it.

Source: VDI.list_changed_blocks of xen-api. The answer is a bitmap in base64, with a bit for each 64 KiB of the disk, which has
been written if the bit is set. That the first block's bit is the highest of the first byte has not been seen on a real host.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

from hypervisors.xen.errors import XapiFailure
from hypervisors.xen.session import PoolClient
from stores.contract import KiB
from stores.errors import IntegrityError

GRAIN = 64 * KiB

_UNKNOWN = {
    "VDI_NO_CBT_METADATA",
    "SR_BACKEND_FAILURE_457",
    "SR_BACKEND_FAILURE_458",
    "SR_BACKEND_FAILURE_459",
    "SR_BACKEND_FAILURE_460",
}
"""The storage manager has no record of what changed, or the two disks are not of one history."""

_AT_ONCE = 8 * KiB
"""Bytes of the bitmap that are spelled out in digits at a time."""


async def changed_blocks(client: PoolClient, base: str, vdi: str) -> Iterator[tuple[int, int]] | None:
    """(offset, length) of what was written between `base` and the later `vdi`, in order and apart; whole blocks, so perhaps
    more than changed, never less. None where the pool cannot tell. Of the two, only `vdi` needs to have its content still.

    The caller iterates where that may block: a large disk takes seconds.
    """
    size = int(await client.call("VDI.get_virtual_size", vdi))
    try:
        told = await client.call("VDI.list_changed_blocks", base, vdi)
    except XapiFailure as problem:
        if problem.code in _UNKNOWN:
            return None
        raise
    return ranges(str(told), size)


def ranges(bitmap: str, size: int) -> Iterator[tuple[int, int]]:
    """What `bitmap` says of a disk of `size` bytes: (offset, length), in order and apart. Bits beyond the disk do not count.
    `IntegrityError` for a bitmap that is none, or too short to tell of all of the disk."""
    try:
        bits = base64.b64decode(bitmap, validate=True)
    except (binascii.Error, ValueError) as error:
        raise IntegrityError(f"what the pool says of changed blocks is no base64: {error}") from error
    blocks = -(-size // GRAIN)
    if len(bits) * 8 < blocks:
        raise IntegrityError(
            f"the pool tells of {len(bits) * 8} blocks, and a disk of {size} bytes has {blocks}",
            needed=blocks,
            seen=len(bits) * 8,
        )
    return _cut(_runs(bits), size)


def _cut(runs: Iterator[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """In bytes, as far as it is inside the disk."""
    for first, stop in runs:
        start, end = first * GRAIN, min(stop * GRAIN, size)
        if start < end:
            yield start, end - start


def _runs(bits: bytes) -> Iterator[tuple[int, int]]:
    """The first bit of each run of set ones, and the one behind it."""
    first = stop = 0
    for start in range(0, len(bits), _AT_ONCE):
        some = bits[start : start + _AT_ONCE]
        for run in re.finditer("1+", f"{int.from_bytes(some):0{len(some) * 8}b}"):
            begin, end = (start * 8 + at for at in run.span())
            if begin != stop:
                if first < stop:
                    yield first, stop
                first = begin
            stop = end
    if first < stop:
        yield first, stop
