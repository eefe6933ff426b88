"""What the snapshots of every handler must do, as a mixin: a test module subclasses it and says how to make its volumes.

    class TestSomeSnapshots(SnapshotContract):
        @pytest.fixture
        async def snapshots(self, ...): ...
        def volume(self, content): ...         # a new volume of the handler that a guest would see as `content`
        def write(self, volume, offset, data): ...   # as a guest
        def seen(self, volume): ...            # what a guest would see
        def target(self, name): ...            # a pending write, in the place where volumes are
        def committed(self, name, spec): ...   # what was committed there, as a volume
        def in_use(self, volume): ...          # a guest has it open until the context ends

The hooks must not go through what is tested.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from contextlib import AbstractAsyncContextManager
from itertools import pairwise
from pathlib import Path

import pytest

from hypervisors.contract import ImageLocked, ImageSpec, Source
from hypervisors.snapshot_records import TAG, Kept
from hypervisors.snapshotting import Frozen, Snapshots
from stores.contract import Extent, KiB, MiB, PendingWrite, Silent
from stores.to import ImageFormat
from tests.deltas import applied, held
from tests.images import BytesReader

SIZE = 16 * MiB


def disk(seed: int = 1, size: int = SIZE) -> bytes:
    """Data at both ends and a hole between."""
    rng = random.Random(seed)
    return rng.randbytes(1 * MiB) + bytes(size - 1 * MiB - 4096) + rng.randbytes(4096)


class WithHoles(BytesReader):
    """Says of its empty middle that it is."""

    async def extents(self, offset: int, length: int) -> list[Extent]:
        edges = sorted(
            {offset, offset + length, *(at for at in (1 * MiB, SIZE - 64 * KiB) if offset < at < offset + length)}
        )
        return [
            Extent(start, stop - start, zero=start >= 1 * MiB and stop <= SIZE - 64 * KiB)
            for start, stop in pairwise(edges)
        ]


class SnapshotContract:
    """`filled`: the formats that a disk is written as. `frozen_in_use`: whether a snapshot is made while a guest writes.
    `files`: whether volumes are files."""

    filled: tuple[ImageFormat, ...]
    frozen_in_use = False
    files = True

    @abstractmethod
    def volume(self, content: bytes) -> Source: ...

    @abstractmethod
    def write(self, volume: Source, offset: int, data: bytes) -> None: ...

    @abstractmethod
    def seen(self, volume: Source) -> bytes: ...

    @abstractmethod
    def target(self, name: str) -> AbstractAsyncContextManager[PendingWrite]: ...

    @abstractmethod
    def committed(self, name: str, spec: ImageSpec) -> Source: ...

    @abstractmethod
    def in_use(self, volume: Source) -> AbstractAsyncContextManager[None]: ...

    async def freeze(
        self, snapshots: Snapshots, volume: Source, tag: str, points: tuple[str, ...] = ()
    ) -> tuple[Frozen, Source, str | None]:
        """And where its content is."""
        async with self.target(tag) as pending:
            frozen = await snapshots.freeze(volume, tag, points, pending)
            if frozen.kept is Kept.FILE:
                await pending.commit()
        await snapshots.settle(volume, tag, frozen.since)
        if frozen.kept is Kept.FILE:
            return frozen, self.committed(tag, volume.spec), None
        return frozen, volume, tag

    async def test_a_snapshot_keeps_what_was(self, snapshots: Snapshots, tmp_path: Path) -> None:
        before = disk()
        volume, spec = self.volume(before), ImageSpec(snapshots.backup_format)
        _, image, tag = await self.freeze(snapshots, volume, f"{TAG}1")
        self.write(volume, 1 * MiB, b"\1" * 64 * KiB)
        self.write(volume, 0, bytes(64 * KiB))
        async with snapshots.image(image, tag, spec) as made:
            assert (made.format, made.virtual_size) == (spec.format, SIZE)
            assert await held(made, tmp_path) == before
            assert 1 * MiB <= made.changed() <= SIZE / 2
        async with snapshots.image(volume, None, spec) as made:
            assert await held(made, tmp_path) == self.seen(volume)
        assert self.seen(volume) != before

    async def test_a_snapshot_becomes_a_volume(self, snapshots: Snapshots) -> None:
        before = disk()
        volume = self.volume(before)
        _, image, tag = await self.freeze(snapshots, volume, f"{TAG}1")
        self.write(volume, 0, bytes(64 * KiB))
        spec = ImageSpec(volume.spec.format, SIZE + 2 * MiB)
        async with self.target("made") as pending:
            written = await snapshots.extract(image, tag, pending, spec, Silent())
            await pending.commit()
        assert (written.format, written.virtual_size) == (volume.spec.format, SIZE + 2 * MiB)
        assert self.seen(self.committed("made", spec)) == before + bytes(2 * MiB)

    async def test_what_changed_between_snapshots(self, snapshots: Snapshots, tmp_path: Path) -> None:
        """Perhaps more, never less; and together over several."""
        one = disk()
        volume = self.volume(one)
        first, _, _ = await self.freeze(snapshots, volume, f"{TAG}1")
        assert first.since == ()
        if not first.tracked:
            return
        self.write(volume, 1 * MiB, b"\1" * 4 * KiB)
        two = self.seen(volume)
        second, image, tag = await self.freeze(snapshots, volume, f"{TAG}2", (f"{TAG}1",))
        assert second.since == (f"{TAG}1",)
        async with snapshots.delta(image, tag, second.since, SIZE) as made:
            assert made is not None
            assert (made.format, made.virtual_size) == (snapshots.backup_format, SIZE)
            assert await applied(one, made, tmp_path) == two
            assert 4 * KiB <= made.changed() <= 2 * MiB
        self.write(volume, 3 * MiB, b"\2" * 4 * KiB)
        three = self.seen(volume)
        third, image, tag = await self.freeze(snapshots, volume, f"{TAG}3", (f"{TAG}1", f"{TAG}2"))
        assert third.since == (f"{TAG}1", f"{TAG}2")
        async with snapshots.delta(image, tag, third.since[1:], SIZE) as made:
            assert made is not None
            assert await applied(two, made, tmp_path) == three
            assert 4 * KiB <= made.changed() <= 2 * MiB
        async with snapshots.delta(image, tag, third.since, SIZE) as made:
            assert made is not None
            assert await applied(one, made, tmp_path) == three
        async with snapshots.delta(image, tag, (f"{TAG}none",), SIZE) as made:
            assert made is None

    async def test_a_merged_point(self, snapshots: Snapshots, tmp_path: Path) -> None:
        one = disk()
        volume = self.volume(one)
        first, _, _ = await self.freeze(snapshots, volume, f"{TAG}1")
        if not first.tracked:
            return
        self.write(volume, 1 * MiB, b"\1" * 4 * KiB)
        await self.freeze(snapshots, volume, f"{TAG}2", (f"{TAG}1",))
        for _ in range(2):
            left = await snapshots.merge_point(volume, f"{TAG}2", (f"{TAG}1", f"{TAG}2"))
            assert left == (f"{TAG}1",)
        for _ in range(2):
            await snapshots.drop(volume, f"{TAG}2")
            await snapshots.forget_point(volume, f"{TAG}2")
        self.write(volume, 3 * MiB, b"\2" * 4 * KiB)
        third, image, tag = await self.freeze(snapshots, volume, f"{TAG}3", left)
        async with snapshots.delta(image, tag, third.since, SIZE) as made:
            assert made is not None
            assert await applied(one, made, tmp_path) == self.seen(volume)

    async def test_forgotten_points(self, snapshots: Snapshots) -> None:
        volume = self.volume(disk())
        first, _, _ = await self.freeze(snapshots, volume, f"{TAG}1")
        for _ in range(2):
            await snapshots.forget_points(volume)
        second, image, tag = await self.freeze(snapshots, volume, f"{TAG}2", (f"{TAG}1",))
        assert second.since == ()
        if first.tracked and first.kept is Kept.INSIDE:
            async with snapshots.delta(image, tag, (f"{TAG}1",), SIZE) as made:
                assert made is None

    async def test_going_back(self, snapshots: Snapshots) -> None:
        before = disk()
        volume = self.volume(before)
        frozen, image, _ = await self.freeze(snapshots, volume, f"{TAG}1")
        self.write(volume, 0, bytes(1 * MiB))
        for number in range(2):
            if frozen.kept is Kept.INSIDE:
                await snapshots.rewind(volume, f"{TAG}1")
                back = volume
            else:
                async with self.target(f"back-{number}") as pending:
                    await snapshots.duplicate(image, pending)
                    await pending.commit()
                back = self.committed(f"back-{number}", volume.spec)
            assert self.seen(back) == before
            self.write(back, 0, b"\7" * 4096)

    async def test_a_disk_becomes_an_image(self, snapshots: Snapshots) -> None:
        for image_format in self.filled:
            given, spec = disk(3), ImageSpec(image_format)
            async with self.target(f"filled-{image_format}") as pending:
                written = await snapshots.fill(WithHoles(given), pending, spec, Silent())
                await pending.commit()
            assert (written.format, written.virtual_size) == (image_format, SIZE)
            assert written.physical_size <= SIZE / 2
            assert self.seen(self.committed(f"filled-{image_format}", spec)) == given

    async def test_what_is_plain(self, snapshots: Snapshots) -> None:
        volume = self.volume(disk())
        if not self.files:
            assert not await snapshots.plain(volume)
            return
        assert await snapshots.plain(volume)
        frozen, _, _ = await self.freeze(snapshots, volume, f"{TAG}1")
        assert await snapshots.plain(volume) == (not frozen.tracked and frozen.kept is Kept.FILE)
        await snapshots.drop(volume, f"{TAG}1")
        await snapshots.forget_points(volume)
        assert await snapshots.plain(volume)

    async def test_a_volume_in_use(self, snapshots: Snapshots) -> None:
        volume = self.volume(disk())
        async with self.in_use(volume):
            with pytest.raises(ImageLocked):
                await snapshots.require_idle(volume)
            async with self.target("locked") as pending:
                if self.frozen_in_use:
                    await snapshots.freeze(volume, f"{TAG}1", (), pending)
                else:
                    with pytest.raises(ImageLocked):
                        await snapshots.freeze(volume, f"{TAG}1", (), pending)
        assert await snapshots.tags(volume) == frozenset()
