"""What LVM reports of a volume group, read: `--reportformat json`, sizes in bytes (lvmreport(7), lvs(8), vgs(8))."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

REPORT = ("--reportformat", "json", "--units", "b", "--nosuffix")

VOLUME_FIELDS = "lv_name,lv_uuid,lv_size,lv_attr,lv_active,lv_device_open,segtype,pool_lv,data_percent,lv_tags"
GROUP_FIELDS = "vg_name,vg_size,vg_free,vg_extent_size,vg_tags"

_GROWN = "sa.grown-from."
_ZEROES_NEW_BLOCKS = 7
"""Which character of a thin pool's `lv_attr` is `z` if so."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A logical volume. Sizes are bytes. `pool`: of a thin one. `used`: what it takes, of a thin one or of a pool."""

    name: str
    uuid: str
    size: int
    kind: str  # of its segments: linear, thin, thin-pool, ...
    pool: str | None
    used: int
    active: bool
    open: bool
    zeroes: bool
    """Only of a thin pool: whether what its volumes get reads as zeroes."""
    grown_from: int | None = None
    """It grew from that size, and what it got was not wiped yet."""

    @property
    def thin(self) -> bool:
        return self.kind == "thin"

    @property
    def makes_others(self) -> bool:
        """Whether it is no image, but what other volumes are made of."""
        return self.kind.endswith("-pool")


@dataclass(frozen=True, slots=True)
class Group:
    """A volume group. Bytes."""

    name: str
    size: int
    free: int
    extent: int
    tags: tuple[str, ...]

    def rounded(self, size: int) -> int:
        """What a volume of at least `size` bytes gets."""
        return max(1, -(-size // self.extent)) * self.extent


def read_volumes(report: bytes) -> list[Volume]:
    """Hidden volumes are not among them."""
    return [_volume(row) for section in json.loads(report)["report"] for row in section.get("lv", ())]


def read_groups(report: bytes) -> list[Group]:
    return [_group(row) for section in json.loads(report)["report"] for row in section.get("vg", ())]


def _volume(row: Mapping[str, str]) -> Volume:
    size = int(row["lv_size"])
    return Volume(
        name=row["lv_name"],
        uuid=row["lv_uuid"],
        size=size,
        kind=row["segtype"],
        pool=row["pool_lv"] or None,
        used=round(size * float(row["data_percent"]) / 100) if row["data_percent"] else size,
        active=row["lv_active"].startswith("active"),
        open=row["lv_device_open"] == "open",
        zeroes=row["lv_attr"][_ZEROES_NEW_BLOCKS] == "z",
        grown_from=min(_growths(row["lv_tags"]), default=None),
    )


def _growths(tags: str) -> list[int]:
    return [int(tag.removeprefix(_GROWN)) for tag in tags.split(",") if tag.startswith(_GROWN)]


def growth_tag(size: int) -> str:
    """The tag of a volume that had `size` bytes."""
    return f"{_GROWN}{size}"


def _group(row: Mapping[str, str]) -> Group:
    return Group(
        name=row["vg_name"],
        size=int(row["vg_size"]),
        free=int(row["vg_free"]),
        extent=int(row["vg_extent_size"]),
        tags=tuple(tag for tag in row["vg_tags"].split(",") if tag),
    )
