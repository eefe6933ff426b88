"""Contents of virtual disks: chains of copy-on-write nodes over sparse files, as SM keeps VHDs.

A node holds whole 2 MiB blocks; what neither it nor any node below it holds reads as zeroes. Snapshots and clones turn the
leaf into a read-only base copy under two new leaves, so they cost nothing until something is written.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

MiB = 1 << 20
BLOCK = 2 * MiB
"""Bytes that a node holds or does not, and that an SR charges for."""
CBT_BLOCK = 64 * 1024
"""Bytes per bit of changed block tracking."""


class Node:
    """One VHD of a chain."""

    def __init__(self, path: Path, parent: Node | None) -> None:
        self.path = path
        self.parent = parent
        self.blocks: set[int] = set()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def chain(self) -> list[Node]:
        """From this one down to the bottom."""
        return [self] if self.parent is None else [self, *self.parent.chain()]

    def pread(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        return data + bytes(length - len(data))

    def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        written = os.pwrite(self._fd, data, offset)
        assert written == len(data)

    def remove(self) -> None:
        os.close(self._fd)
        self.path.unlink()


class Nodes:
    """All nodes of one SR."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._numbers = itertools.count(1)
        self.all: list[Node] = []

    def make(self, parent: Node | None) -> Node:
        node = Node(self._folder / f"{next(self._numbers)}.node", parent)
        self.all.append(node)
        return node

    def remove(self, node: Node) -> None:
        self.all.remove(node)
        node.remove()

    def held(self) -> int:
        """Bytes in blocks of all nodes."""
        return sum(len(node.blocks) for node in self.all) * BLOCK

    def collect(self, leaves: list[Node]) -> dict[Node, Node]:
        """What SM's garbage collector does: removes nodes that no leaf stands on, and merges a hidden node with its child where
        it has only one. Returns which node took whose place; disks whose leaf is a key must be told."""
        needed = {node for leaf in leaves for node in leaf.chain()}
        for node in [node for node in self.all if node not in needed]:
            self.remove(node)
        moved: dict[Node, Node] = {}
        standing = set(leaves)
        while (pair := self._only_child(standing)) is not None:
            node, child = pair
            for block in child.blocks:
                node.pwrite(block * BLOCK, child.pread(block * BLOCK, BLOCK))
            node.blocks |= child.blocks
            for grandchild in self.all:
                if grandchild.parent is child:
                    grandchild.parent = node
            if child in standing:
                moved[child] = node
                standing = standing - {child} | {node}
            self.remove(child)
        return moved

    def _only_child(self, leaves: set[Node]) -> tuple[Node, Node] | None:
        """A hidden node, and the one node that stands on it."""
        for node in self.all:
            above = [child for child in self.all if child.parent is node]
            if node not in leaves and len(above) == 1:
                return node, above[0]
        return None

    def close(self) -> None:
        for node in list(self.all):
            self.remove(node)


class Tracking:
    """Changed block tracking: what was written since the snapshot before, one bit for each 64 KiB."""

    def __init__(self, before: Tracking | None) -> None:
        self.before = before
        self.changed: set[int] = set()


class Disk:
    """The content of one VDI. Offsets and sizes are bytes."""

    def __init__(self, nodes: Nodes, size: int, leaf: Node | None = None) -> None:
        self.nodes = nodes
        self.size = size
        self.leaf = leaf if leaf is not None else nodes.make(None)
        self.tracking: Tracking | None = None
        self.short_by = 0
        """The lying host: so many bytes at the end are said to be written and are not."""

    @property
    def depth(self) -> int:
        return len(self.leaf.chain())

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        for block, start, count in _pieces(offset, length):
            holder = self._holder(block)
            parts.append(bytes(count) if holder is None else holder.pread(start, count))
        return b"".join(parts)

    def write(self, offset: int, data: bytes | memoryview, charge: Callable[[int], None] | None = None) -> None:
        """`charge` is called with the number of bytes that the SR has to find, before they are taken."""
        if offset + len(data) > self.size:
            raise ValueError(f"writing {len(data)} bytes at {offset} of a disk of {self.size}")
        whole = memoryview(data)[: max(0, self.size - self.short_by - offset)]
        for block, start, count in _pieces(offset, len(whole)):
            if block not in self.leaf.blocks:
                if charge is not None:
                    charge(BLOCK)
                holder = self._holder(block)
                if holder is not None and count < BLOCK:
                    self.leaf.pwrite(block * BLOCK, holder.pread(block * BLOCK, BLOCK))
                self.leaf.blocks.add(block)
            self.leaf.pwrite(start, whole[start - offset : start - offset + count])
        if self.tracking is not None and len(data):
            self.tracking.changed.update(range(offset // CBT_BLOCK, (offset + len(data) - 1) // CBT_BLOCK + 1))

    def fork(self) -> Disk:
        """A snapshot or a clone: both disks now have leaves of their own over what was this one's."""
        base = self.leaf
        self.leaf = self.nodes.make(base)
        return Disk(self.nodes, self.size, self.nodes.make(base))

    def allocated(self) -> list[int]:
        """Numbers of the blocks that hold something, in order."""
        return sorted(set().union(*(node.blocks for node in self.leaf.chain())))

    def changed_since(self, base: Disk) -> list[int]:
        """Numbers of the blocks that only one of both disks' chains holds."""
        apart = set(self.leaf.chain()) ^ set(base.leaf.chain())
        return sorted(set[int]().union(*(node.blocks for node in apart)))

    def digest(self) -> str:
        """SHA-256 of every byte of the disk."""
        digest = hashlib.sha256()
        for offset in range(0, self.size, BLOCK):
            digest.update(self.read(offset, min(BLOCK, self.size - offset)))
        return digest.hexdigest()

    def same(self, other: Disk) -> bool:
        """Whether each byte is. Blocks that neither holds are not read."""
        blocks = sorted({*self.allocated(), *other.allocated()})
        spans = [(block * BLOCK, min(BLOCK, self.size - block * BLOCK)) for block in blocks]
        return self.size == other.size and all(self.read(*span) == other.read(*span) for span in spans)

    def flatten(self, path: Path) -> None:
        """The disk as a sparse raw file."""
        with path.open("wb") as file:
            file.truncate(self.size)
            for block in self.allocated():
                file.seek(block * BLOCK)
                file.write(self.read(block * BLOCK, min(BLOCK, self.size - block * BLOCK)))

    def _holder(self, block: int) -> Node | None:
        return next((node for node in self.leaf.chain() if block in node.blocks), None)


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """(block, offset, length) of the parts of a range that lie in one block each."""
    end = offset + length
    while offset < end:
        count = min(end - offset, BLOCK - offset % BLOCK)
        yield offset // BLOCK, offset, count
        offset += count
