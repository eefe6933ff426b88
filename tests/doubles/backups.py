"""A volume, its snapshots and its backups, for tests: what a guest and a management server would do."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyqcow

from hypervisors.copying import Copied
from hypervisors.verbs import Copy, Create, Delete
from stores.contract import MiB
from stores.to import DataStoreTO, ImageFormat, SnapshotObjectTO, TemplateObjectTO, VolumeObjectTO
from tests.doubles.disk_images import content_of, qemu_img
from tests.doubles.world import World
from tests.images import qemu_io

SIZE = 4 * MiB


@dataclass
class Lab:
    """`contents`: what the volume held when each snapshot was made, as a hash."""

    here: World
    volume: VolumeObjectTO
    to: DataStoreTO
    contents: dict[str, str] = field(default_factory=dict)
    commands: int = 0

    def call(self) -> Any:
        self.commands += 1
        return self.here.call(f"c-{self.commands}")

    @property
    def path(self) -> Path:
        return self.here.path(self.volume)

    def write(self, *commands: str) -> None:
        """As a guest: commands of qemu-io."""
        assert self.volume.format is not None
        qemu_io(self.path, self.volume.format, *commands)

    async def snapshot(self, name: str) -> SnapshotObjectTO:
        asked = SnapshotObjectTO(name=name, volume=self.volume, dataStore=self.volume.dataStore)
        made = await self.here.operations.create(self.call(), Create(asked))
        assert isinstance(made, SnapshotObjectTO)
        assert self.volume.format is not None
        self.contents[name] = content_of(self.path, self.volume.format)
        return made

    def local(self, name: str) -> SnapshotObjectTO:
        return SnapshotObjectTO(path=f"{self.volume.path}/{name}", dataStore=self.volume.dataStore)

    def remote(self, name: str, **more: Any) -> SnapshotObjectTO:
        return SnapshotObjectTO(path=ref_of(name), dataStore=self.to, **more)

    async def back_up(self, name: str, parent: str | None = None, *, name_there: str | None = None) -> Copied:
        target = self.remote(name_there or name, parentSnapshotPath=ref_of(parent) if parent else None)
        return await self.here.operations.copy(self.call(), Copy(self.local(name), target))

    async def incremental(self, name: str, parent: str) -> Copied:
        """Which it must be."""
        made = await self.back_up(name, parent)
        assert made.note is None, made.note
        assert isinstance(made.data, SnapshotObjectTO)
        assert made.data.parentSnapshotPath == ref_of(parent)
        return made

    async def restored(self, name: str, image_format: ImageFormat = ImageFormat.QCOW2, **more: Any) -> str:
        """The hash of what a restore brings back. Read by QEMU, and a qcow2 by libqcow as well."""
        source = self.remote(name, **more)
        target = VolumeObjectTO(uuid="restored", dataStore=self.here.pool("other"), format=image_format)
        made = (await self.here.operations.copy(self.call(), Copy(source, target))).data
        path = self.here.path(made)
        found = content_of(path, image_format)
        if image_format is ImageFormat.QCOW2:
            subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(path)], check=True, capture_output=True)
            assert read_by_libqcow(path) == found
        await self.here.operations.delete(self.call(), Delete(made))
        assert self.here.files("other") == set()
        return found

    async def delete(self, snapshot: SnapshotObjectTO, *, merge: bool = False) -> None:
        await self.here.operations.delete(self.call(), Delete(snapshot, merge=merge))


def ref_of(name: str) -> str:
    """Of a backup."""
    return f"snapshots/2/7/{name}"


async def lab(here: World, to: DataStoreTO, image_format: ImageFormat = ImageFormat.QCOW2) -> Lab:
    """With a volume that has data in its first MiB."""
    asked = VolumeObjectTO(uuid="v", dataStore=here.pool(), size=SIZE, format=image_format)
    made = await here.operations.create(here.call("c-volume"), Create(asked))
    assert isinstance(made, VolumeObjectTO)
    found = Lab(here, made, to)
    found.write("write -P 1 0 1M")
    return found


async def linked_lab(here: World, to: DataStoreTO) -> Lab:
    """Whose volume is a linked clone."""
    base = await lab(here, to)
    template = TemplateObjectTO(path="v", imageDataStore=here.pool())
    asked = VolumeObjectTO(uuid="clone", dataStore=here.pool())
    made = (await here.operations.copy(here.call("c-clone"), Copy(template, asked))).data
    assert isinstance(made, VolumeObjectTO)
    return Lab(here, made, base.to)


def read_by_libqcow(path: Path) -> str:
    file = pyqcow.file()
    file.open(str(path))
    try:
        return hashlib.sha256(file.read_buffer_at_offset(file.get_media_size(), 0)).hexdigest()
    finally:
        file.close()


def read_by_hand(chain: list[Path], folder: Path) -> str:
    """What qemu-img alone makes of objects, newest first: as docs/backups.md says. In `folder`, on copies."""
    folder.mkdir()
    for path in chain:
        shutil.copyfile(path, folder / path.name)
    for path, below in pairwise(chain):
        qemu_img("rebase", "-u", "-f", "qcow2", "-b", below.name, "-F", "qcow2", str(folder / path.name))
    return content_of(folder / chain[0].name, ImageFormat.QCOW2)


def manifest_in(directory: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / f"{ref_of(name)}.manifest.json").read_text())
    return found


def forget_bitmaps(path: Path) -> None:
    """As a tool might that the agent knows nothing of."""
    info = json.loads(qemu_img("info", "-f", "qcow2", "--output=json", str(path)))
    for bitmap in info["format-specific"]["data"]["bitmaps"]:
        qemu_img("bitmap", "-f", "qcow2", "--remove", str(path), bitmap["name"])


def die_writing(path: Path, command: str) -> None:
    """A guest writes and is killed with -9: its bitmaps are never brought up to date."""
    writer = subprocess.Popen(["qemu-io", "-f", "qcow2", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdin is not None
    assert writer.stdout is not None
    writer.stdin.write(f"{command}\nflush\n".encode())
    writer.stdin.flush()
    while b"bytes" not in writer.stdout.readline():
        pass
    writer.kill()
    writer.communicate()
