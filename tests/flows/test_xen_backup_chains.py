"""Chains of backups of XenServer's disks, whatever was written, zeroed and grown between them: every moment comes back."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypervisors.contract import HypervisorType
from hypervisors.operations import Operations
from hypervisors.verbs import Call, Copy, Create, Delete, Resize
from stores.contract import KiB, MiB
from stores.to import PrimaryDataStoreTO, SnapshotObjectTO, VolumeObjectTO
from tests.disk_histories import sha
from tests.doubles.disk_images import qemu_img
from tests.doubles.world import World, world
from tests.laid_out import libvhdi
from tests.xen_place import XenPlace, xen_place

BLOCK = 2 * MiB
SMALLEST, LARGEST = 2, 4
"""Blocks of a disk."""


@dataclass(frozen=True)
class Step:
    """What happens to a disk until the next snapshot: it grows by so many blocks, then a guest writes. `parent`: whether the
    backup is to build on the one before."""

    grows: int
    writes: tuple[tuple[int, int, int], ...]  # offset, length, byte; 0 is zeroes
    parent: bool

    def apply(self, disk: bytes) -> tuple[bytes, list[tuple[int, bytes]]]:
        after = bytearray(disk + bytes(self.grows * BLOCK))
        done = []
        for offset, length, byte in self.writes:
            start = offset % len(after)
            data = bytes([byte]) * min(length, len(after) - start)
            after[start : start + len(data)] = data
            done.append((start, data))
        return bytes(after), done


PLACES = st.integers(0, LARGEST * BLOCK // 512 - 1).map(lambda sector: sector * 512) | st.sampled_from(
    [0, BLOCK - 512, BLOCK, 2 * BLOCK - 512, LARGEST * BLOCK - 512]
)
WRITES = st.tuples(
    PLACES, st.sampled_from([512, 4 * KiB, 64 * KiB, BLOCK, 3 * MiB]), st.sampled_from([0, 0, 1, 7, 255])
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[Step, ...]:
    room = LARGEST - SMALLEST
    steps = []
    for _ in range(draw(st.integers(2, 4))):
        grows = draw(st.sampled_from([0, 0, min(1, room)]))
        room -= grows
        writes = draw(st.lists(WRITES, max_size=3))
        steps.append(Step(grows, tuple(writes), parent=draw(st.sampled_from([True, True, True, False]))))
    return tuple(steps)


@dataclass
class Chain:
    here: World
    place: XenPlace
    operations: Operations
    commands: int = 0

    @property
    def sr(self) -> PrimaryDataStoreTO:
        return self.place.to()

    @property
    def volume(self) -> VolumeObjectTO:
        return VolumeObjectTO(uuid="v", path="v", dataStore=self.sr, size=SMALLEST * BLOCK)

    def call(self) -> Call:
        self.commands += 1
        return Call(f"c-{self.commands}", HypervisorType.XEN)

    def backup(self, number: int, parent: int | None = None) -> SnapshotObjectTO:
        store = self.here.directory("backups")
        above = f"b/{parent}" if parent is not None else None
        return SnapshotObjectTO(path=f"b/{number}", dataStore=store, parentSnapshotPath=above)

    async def taken(self, number: int, step: Step, disk: bytes) -> tuple[bytes, bool]:
        """The disk at the moment of this backup, and whether it builds on the one before."""
        after, writes = step.apply(disk)
        if step.grows:
            await self.operations.resize(self.call(), Resize(self.volume, len(after)))
        for offset, data in writes:
            self.place.write(self.place.named("v"), offset, data)
        snapshot = SnapshotObjectTO(name=f"s{number}", volume=self.volume, dataStore=self.sr)
        await self.operations.create(self.call(), Create(snapshot))
        kept = SnapshotObjectTO(path=f"v/s{number}", dataStore=self.sr)
        parent = number - 1 if step.parent and number else None
        made = await self.operations.copy(self.call(), Copy(kept, self.backup(number, parent)))
        assert made.note is None
        assert isinstance(made.data, SnapshotObjectTO)
        builds = made.data.parentSnapshotPath is not None
        assert builds is (parent is not None)
        if number:  # what was before it is not needed on the host any more
            await self.operations.delete(
                self.call(), Delete(SnapshotObjectTO(path=f"v/s{number - 1}", dataStore=self.sr))
            )
        return after, builds

    async def restored(self, number: int) -> bytes:
        target = VolumeObjectTO(uuid="r", path="r", dataStore=self.sr)
        await self.operations.copy(self.call(), Copy(self.backup(number), target))
        found = self.place.content(self.place.named("r"))
        await self.operations.delete(self.call(), Delete(target))
        return found

    def seen_by_others(self, numbers: Sequence[int]) -> str:
        """The last of these objects, over those before it, as libvhdi reads them; one alone as qemu does too."""
        paths = [self.here.root / "backups" / "b" / str(number) for number in numbers]
        with libvhdi(paths) as file:
            seen = sha(file.read_buffer_at_offset(file.get_media_size(), 0))
        if len(paths) == 1:
            raw = self.here.root / "seen.raw"
            image = f"driver=vpc,force_size_calc=current_size,file.filename={paths[0]}"
            qemu_img("convert", "-O", "raw", "--image-opts", image, str(raw))
            assert sha(raw.read_bytes()) == seen
        return seen


async def check(history: Sequence[Step], folder: Path) -> None:
    async with world() as here, xen_place(folder, here.engine) as place:
        operations = Operations(
            here.resolver, {HypervisorType.XEN: place.handler}, here.engine, lambda: 1_700_000_000.0
        )
        chain = Chain(here, place, operations)
        await operations.create(chain.call(), Create(chain.volume))
        disk, moments, below = bytes(SMALLEST * BLOCK), list[bytes](), list[int]()
        for number, step in enumerate(history):
            disk, builds = await chain.taken(number, step, disk)
            moments.append(disk)
            below = [*(below if builds else []), number]
            if (
                len({len(moments[each]) for each in below}) == 1
            ):  # libvhdi reads no child that is larger than its parent
                assert chain.seen_by_others(below) == sha(disk)
        for number, moment in enumerate(moments):
            assert sha(await chain.restored(number)) == sha(moment)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories())
def test_every_moment_comes_back(history: tuple[Step, ...]) -> None:
    with tempfile.TemporaryDirectory(prefix="sa-") as folder:  # short: sockets are made in it
        asyncio.run(check(history, Path(folder)))
