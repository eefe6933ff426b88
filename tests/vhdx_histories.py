"""VHDX of disks over time, for tests: the first one whole, each other one the difference from the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from hypothesis import strategies as st

from hypervisors.images.vhdx_parent import Parent
from hypervisors.images.vhdx_stream import Identity, VhdxLayout, layout
from stores.contract import Extent, MiB
from tests.disk_histories import Version, finished, versions_of_a_disk

BLOCK = MiB


@dataclass(frozen=True)
class VhdxHistory:
    sector: int
    versions: tuple[Version, ...]

    def layouts(self) -> list[VhdxLayout]:
        return [
            layout(
                len(version.content),
                version.extents,
                identity=identity_of(number),
                block=BLOCK,
                sector=self.sector,
                parent=parent_of(number) if number else None,
            )
            for number, version in enumerate(self.versions)
        ]

    def images(self) -> list[bytes]:
        return [finished(made, v.content) for made, v in zip(self.layouts(), self.versions, strict=True)]

    def for_libvhdi(self) -> VhdxHistory:
        """The same disks, for a reader that does not know of blocks that are zero as a whole, nor of a child that has
        nothing."""
        versions = []
        for version in self.versions:
            extents = tuple(replace(extent, zero=False) for extent in version.extents if extent.length)
            versions.append(replace(version, extents=extents or (Extent(0, self.sector, zero=False),)))
        return replace(self, versions=tuple(versions))


def identity_of(number: int) -> Identity:
    return Identity(disk=UUID(int=1), content=UUID(int=1000 + number), opening=UUID(int=2000 + number))


def parent_of(number: int) -> Parent:
    return Parent(identity_of(number - 1).content, f".\\{number - 1}.vhdx", f"\\\\?\\c:\\disks\\{number - 1}.vhdx")


@st.composite
def vhdx_histories(
    draw: st.DrawFn, *, least: int = 1, most: int = 1, resized: bool = True, sectors: Sequence[int] = (512, 4096)
) -> VhdxHistory:
    """Of so many versions, in blocks of 1 MiB."""
    sector = draw(st.sampled_from(sectors))
    of_any_size = st.integers(1, 5 * BLOCK // 2 // sector).map(lambda count: count * sector)
    sizes = of_any_size | st.sampled_from([BLOCK, 2 * BLOCK])
    if not resized:
        sizes = st.just(draw(sizes))
    unit = draw(st.sampled_from([sector, 8 * sector, BLOCK]))
    return VhdxHistory(sector, draw(versions_of_a_disk(sizes, unit, least=least, most=most)))
