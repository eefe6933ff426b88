"""Disks over time, for tests of backups: extents of all alignments, clusters of all sizes that QEMU has, resizes in between."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from hypervisors.images.formats import file_node, image_node, json_filename
from hypervisors.images.pieces import Data, ImageLayout, Metadata
from hypervisors.images.qcow2_stream import Layout, layout
from stores.contract import Extent, MiB
from stores.to import ImageFormat

SECTOR = 512


@dataclass(frozen=True)
class Version:
    """A disk at one moment, and what is known to have changed since the moment before."""

    content: bytes
    extents: tuple[Extent, ...]


@dataclass(frozen=True)
class History:
    """The first version is backed up in full, each other one as a delta."""

    cluster: int
    versions: tuple[Version, ...]

    def layouts(self) -> list[Layout]:
        return [
            layout(len(version.content), version.extents, cluster=self.cluster, delta=number > 0)
            for number, version in enumerate(self.versions)
        ]

    def images(self) -> list[bytes]:
        return [finished(made, v.content) for made, v in zip(self.layouts(), self.versions, strict=True)]


@st.composite
def histories(draw: st.DrawFn, *, least: int = 1, most: int = 1) -> History:
    """Of so many versions."""
    cluster = 1 << draw(st.integers(9, 21))
    sizes = st.integers(1, max(3 * cluster, min(200 * cluster, MiB)) // SECTOR).map(lambda sectors: sectors * SECTOR)
    return History(cluster, draw(versions_of_a_disk(sizes, cluster, least=least, most=most)))


@st.composite
def versions_of_a_disk(
    draw: st.DrawFn, sizes: st.SearchStrategy[int], cluster: int, *, least: int, most: int
) -> tuple[Version, ...]:
    """So many, of these sizes. The extents like borders of clusters."""
    versions: list[Version] = []
    for number in range(draw(st.integers(least, most))):
        size = draw(sizes)
        extents = draw(_extents(size, cluster))
        before = versions[-1].content if versions else b""
        content = bytearray(before[:size].ljust(size, b"\0"))
        chance = random.Random(number + len(extents))
        for extent in extents:
            part = slice(extent.offset, extent.offset + extent.length)
            content[part] = bytes(extent.length) if extent.zero else chance.randbytes(extent.length)
        versions.append(Version(bytes(content), extents))
    return tuple(versions)


@st.composite
def _extents(draw: st.DrawFn, size: int, cluster: int) -> tuple[Extent, ...]:
    borders = st.tuples(st.integers(0, size // cluster), st.sampled_from([0, 0, 0, -SECTOR, SECTOR, -1, 1, 7]))
    places = st.integers(0, size) | borders.map(lambda at: min(max(at[0] * cluster + at[1], 0), size))
    cuts = sorted({0, size, *draw(st.lists(places, max_size=12))})
    kinds = draw(st.lists(st.sampled_from("dz-"), min_size=len(cuts) - 1, max_size=len(cuts) - 1))
    return tuple(
        Extent(start, end - start, zero=kind == "z")
        for start, end, kind in zip(cuts, cuts[1:], kinds, strict=False)
        if kind != "-"
    )


def expected_kinds(version: Version, cluster: int, *, delta: bool) -> list[str]:
    """The rule byte by byte: whether each cluster is `d`ata, `z`ero, or left out."""
    known = bytearray(b"-" * len(version.content))
    for extent in version.extents:
        known[extent.offset : extent.offset + extent.length] = (b"z" if extent.zero else b"d") * extent.length
    kinds = []
    for start in range(0, len(known), cluster):
        found = known[start : start + cluster]
        if b"d" in found or (delta and b"z" in found and b"-" in found):
            kinds.append("d")
        else:
            kinds.append("z" if delta and b"z" in found else "-")
    return kinds


def finished(made: ImageLayout, disk: bytes, start: int = 0, stop: int | None = None) -> bytes:
    """The image of that disk, or a part of it."""
    parts = []
    for piece in made.pieces(start, stop):
        match piece:
            case Metadata(content):
                parts.append(content)
            case Data(offset, length):
                assert 0 < length <= len(disk) - offset  # never beyond the disk
                parts.append(disk[offset : offset + length])
    return b"".join(parts)


def chained(paths: Sequence[Path]) -> str:
    """The last image over all before it, as a file name for qemu's tools: they are told, since none of the images says so."""
    node: dict[str, object] | None = None
    for path in paths:
        node = {**image_node(ImageFormat.QCOW2, file_node(str(path))), "backing": node}
    assert node is not None
    return json_filename(node)


def sha(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()
