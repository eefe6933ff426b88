"""VHDs of disks over time, for tests: the first one whole, each other one the difference from the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from hypothesis import strategies as st

from hypervisors.images.vhd_stream import BLOCK, Parent, VhdLayout, layout
from stores.contract import KiB
from tests.disk_histories import SECTOR, Version, finished, versions_of_a_disk

GRAIN = 4 * KiB
SIZES = st.integers(1, 3 * BLOCK // SECTOR).map(lambda sectors: sectors * SECTOR) | st.sampled_from([BLOCK, 2 * BLOCK])


@dataclass(frozen=True)
class VhdHistory:
    versions: tuple[Version, ...]

    def layouts(self) -> list[VhdLayout]:
        return [
            layout(
                len(version.content),
                version.extents,
                unique_id=id_of(number),
                parent=parent_of(number) if number else None,
            )
            for number, version in enumerate(self.versions)
        ]

    def images(self) -> list[bytes]:
        return [finished(made, v.content) for made, v in zip(self.layouts(), self.versions, strict=True)]


def id_of(number: int) -> UUID:
    return UUID(int=number + 1)


def parent_of(number: int) -> Parent:
    return Parent(id_of(number - 1), f"{number - 1}.vhd", datetime(2026, 1, number, tzinfo=UTC))


@st.composite
def vhd_histories(draw: st.DrawFn, *, least: int = 1, most: int = 1, resized: bool = True) -> VhdHistory:
    """Of so many versions."""
    grain = draw(st.sampled_from([SECTOR, GRAIN, BLOCK]))
    sizes = SIZES if resized else st.just(draw(SIZES))
    return VhdHistory(draw(versions_of_a_disk(sizes, grain, least=least, most=most)))


def overlaid(parts: Sequence[tuple[int, bytes]], below: bytes, size: int) -> bytes:
    """A disk of that size, of which these parts are changed."""
    disk = bytearray(below[:size].ljust(size, b"\0"))
    for offset, data in parts:
        disk[offset : offset + len(data)] = data
    return bytes(disk)
