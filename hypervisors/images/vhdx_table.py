"""The block table of a VHDX: which entry is whose, and what it says.

Source: Microsoft's [MS-VHDX], 2.4 and 2.5. The disk is blocks; 2^23 sectors of it are a chunk. The table has the entries of a
chunk's blocks and then one for the chunk's sector bitmap, which tells of a differencing disk what is in the file and what is
the parent's. Of a bitmap the lowest bit of the first byte is the first sector.
"""

from __future__ import annotations

from dataclasses import dataclass

from stores.contract import MiB

ENTRY = 8
"""Bytes of an entry: the state in the lowest three bits, and where in the file the block is, in MiB, from bit 20 on."""

NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, FULLY_PRESENT, PARTIALLY_PRESENT = 0, 1, 2, 3, 6, 7

BITMAP = MiB
"""Bytes of a sector bitmap, of whatever block size."""

_CHUNK_SECTORS = BITMAP * 8
_STATE = 7


@dataclass(frozen=True, slots=True)
class Shape:
    """A disk of `virtual_size` bytes in blocks of `block` and sectors of `sector` bytes."""

    virtual_size: int
    block: int
    sector: int

    @property
    def blocks(self) -> int:
        return -(-self.virtual_size // self.block)

    @property
    def ratio(self) -> int:
        """Blocks of a chunk."""
        return _CHUNK_SECTORS * self.sector // self.block

    @property
    def block_bitmap(self) -> int:
        """Bytes of a bitmap that are of one block."""
        return BITMAP // self.ratio

    def entries(self, *, differencing: bool) -> int:
        """How many the table has. Unless the disk is differencing, there is none behind that of the last block."""
        if differencing:
            return -(-self.blocks // self.ratio) * (self.ratio + 1)
        return self.blocks + max(self.blocks - 1, 0) // self.ratio

    def entry(self, block: int) -> int:
        """The index of that block's entry."""
        return block + block // self.ratio

    def bitmap_entry(self, chunk: int) -> int:
        """The index of the entry of that chunk's bitmap."""
        return (chunk + 1) * (self.ratio + 1) - 1


def state(entry: int) -> int:
    return entry & _STATE


def place(entry: int) -> int:
    """Where in the file the block is, in bytes."""
    return entry >> 20 << 20
