"""A real volume group on a loop device, for LVM's own tool.

LVM writes and reads its metadata without the kernel's device-mapper (`--driverloaded n`), which is not everywhere; only
activation needs that. Here a volume is active as a loop device over its part of the group's: the bytes are where LVM puts them.
With device-mapper, activation is LVM's own: see `tests/system`.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from stores.backends.lvm_calls import Lvm
from stores.contract import MiB
from stores.tools.process import ToolRunner

SIZE = 512 * MiB


@dataclass
class VolumeGroup:
    name: str
    device: str
    options: tuple[str, ...]
    active: dict[str, str] = field(default_factory=dict)
    """By the names of volumes: their loop devices."""

    def lvm(self, *arguments: str) -> str:
        """LVM behind the back of what is tested."""
        command, *rest = arguments
        argv = ["lvm", command, *self.options, *rest]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    def make(self, name: str, size: int) -> None:
        """A thick volume with whatever was there before."""
        self.lvm("lvcreate", "--yes", "-an", "-Zn", "-Wn", "-L", f"{size}b", "-n", name, self.name)

    def volumes(self) -> set[str]:
        """Names of all, hidden ones included."""
        report = self.lvm("lvs", "-a", "--reportformat", "json", "-o", "lv_name", self.name)
        return {row["lv_name"].strip("[]") for row in json.loads(report)["report"][0]["lv"]}

    def activate(self, name: str) -> Path:
        if name not in self.active:
            start, size = self._place(name)
            argv = ["losetup", "--find", "--show", f"--offset={start}", f"--sizelimit={size}", self.device]
            self.active[name] = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
        return Path(self.active[name])

    def resized(self, name: str) -> None:
        """The same device has the size that the volume has now."""
        if name in self.active:
            start, size = self._place(name)
            subprocess.run(["losetup", "--detach", self.active[name]], check=True)
            argv = ["losetup", f"--offset={start}", f"--sizelimit={size}", self.active[name], self.device]
            subprocess.run(argv, check=True)

    def deactivate(self, name: str) -> None:
        if name in self.active:
            subprocess.run(["losetup", "--detach", self.active.pop(name)], check=True)

    def clear(self) -> None:
        for name in list(self.active):
            self.deactivate(name)
        self.lvm("lvremove", "--yes", self.name)
        if tags := self.tags():
            self.lvm("vgchange", *(f"--deltag={tag}" for tag in tags.split(",")), self.name)

    def tags(self) -> str:
        """Of the group itself."""
        return self._row("vgs", "vg_tags", self.name)["vg_tags"]

    def fill_with_garbage(self) -> None:
        """What volumes get from now on is not zero."""
        self.make("garbage", 64 * MiB)
        self.write("garbage", b"\xee" * 64 * MiB)
        self.lvm("lvremove", "--yes", f"{self.name}/garbage")

    def write(self, name: str, data: bytes) -> None:
        """To the beginning of the volume."""
        start, _ = self._place(name)
        with open(self.device, "r+b") as device:
            device.seek(start)
            device.write(data)
            device.flush()
            os.fsync(device.fileno())

    def read(self, name: str, length: int | None = None) -> bytes:
        """What the volume holds."""
        start, size = self._place(name)
        with open(self.device, "rb", buffering=0) as device:
            os.fsync(device.fileno())
            device.seek(start)
            return device.read(size if length is None else length)

    def _place(self, name: str) -> tuple[int, int]:
        """(offset, length) of the volume on the group's device; it has to be in one piece."""
        of_device = self._row("pvs", "pe_start,vg_extent_size", self.device)
        of_volume = self._row("lvs", "seg_pe_ranges,seg_size", f"{self.name}/{name}")
        first = int(of_volume["seg_pe_ranges"].rpartition(":")[2].partition("-")[0])
        return int(of_device["pe_start"]) + first * int(of_device["vg_extent_size"]), int(of_volume["seg_size"])

    def _row(self, command: str, fields: str, of: str) -> dict[str, str]:
        report = self.lvm(command, "--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields, of)
        ((row,),) = json.loads(report)["report"][0].values()
        return dict(row)


class LoopLvm(Lvm):
    """Activates as `VolumeGroup` does."""

    def __init__(self, runner: ToolRunner, group: VolumeGroup) -> None:
        super().__init__(runner, group.name, options=group.options)
        self._group = group

    async def activate(self, name: str) -> Path:
        return self._group.activate(name)

    async def deactivate(self, name: str) -> None:
        self._group.deactivate(name)

    async def resize(self, name: str, size: int) -> None:
        await super().resize(name, size)
        self._group.resized(name)

    async def remove(self, name: str) -> None:
        await super().remove(name)
        self._group.deactivate(name)

    async def rename(self, name: str, new: str) -> None:
        await super().rename(name, new)
        if name in self._group.active:
            self._group.active[new] = self._group.active.pop(name)


@contextmanager
def run_volume_group(directory: Path, size: int = SIZE) -> Iterator[VolumeGroup]:
    """Nothing of the host's disks is looked at, and nothing is kept in /etc/lvm."""
    image = directory / "physical-volume"
    with image.open("wb") as file:
        file.truncate(size)
    losetup = ["losetup", "--find", "--show", str(image)]
    device = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
    config = (
        f'devices {{ filter=["a|^{device}$|","r|.*|"] use_devicesfile=0 scan_lvs=0 }}'
        " global { use_lvmpolld=0 } activation { udev_sync=0 udev_rules=0 } backup { backup=0 archive=0 }"
    )
    group = VolumeGroup(f"sa{uuid.uuid4().hex[:12]}", device, ("--driverloaded", "n", "--config", config))
    try:
        group.lvm("pvcreate", device)
        group.lvm("vgcreate", "--physicalextentsize", "1m", group.name, device)
        yield group
    finally:
        for name in list(group.active):
            group.deactivate(name)
        subprocess.run(["losetup", "--detach", device], check=True)
        image.unlink()


@pytest.fixture(scope="session")
def only_volume_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VolumeGroup]:
    with run_volume_group(tmp_path_factory.mktemp("lvm")) as group:
        yield group


@pytest.fixture
def volume_group(only_volume_group: VolumeGroup) -> Iterator[VolumeGroup]:
    """An empty one."""
    yield only_volume_group
    only_volume_group.clear()
