"""kill -9 in the middle of work on snapshots and backups: the next start finishes or undoes it, and says which."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hypervisors.contract import HypervisorType
from hypervisors.verbs import Copy, Create, Delete, Request, Revert
from stores.to import ImageFormat, SnapshotObjectTO, VolumeObjectTO
from tests.doubles.backups import Lab, lab, ref_of
from tests.doubles.disk_images import content_of, qemu_img
from tests.doubles.dying import in_world, killed_in
from tests.doubles.world import World

STEPS = ("rename", "unlink")
"""Of files: what is not under its name does not count after a crash."""

TOOLS = ("bitmap", "snapshot")
"""What qemu-img changes volumes by."""

TOKEN = "c-dying"


@pytest.fixture
def base() -> Iterator[Path]:
    """Short: sockets are made in it."""
    made = Path(tempfile.mkdtemp(prefix="sa-"))
    yield made
    shutil.rmtree(made)


@dataclass
class Scenario:
    """`prepare` makes what there is before. `check` looks at what there is after the recovery, told whether it was finished."""

    prepare: Callable[[Lab], Awaitable[None]]
    request: Callable[[Lab], Request]
    check: Callable[[Lab, bool], Awaitable[None]]
    outcomes: set[str]
    image_format: ImageFormat = ImageFormat.QCOW2


async def carried_out(lab: Lab, request: Request) -> Any:
    operations, call = lab.here.operations, lab.here.call(TOKEN)
    match request:
        case Create():
            return await operations.create(call, request)
        case Delete():
            return await operations.delete(call, request)
        case Revert():
            return await operations.revert(call, request)
        case Copy():
            return await operations.copy(call, request)


def existing(here: World, contents: dict[str, str], image_format: ImageFormat) -> Lab:
    """The lab of an earlier process."""
    volume = VolumeObjectTO(path="v", dataStore=here.pool(), format=image_format)
    return Lab(here, volume, here.directory(), contents, commands=100)


def each_step(base: Path, scenario: Scenario) -> None:
    contents: dict[str, str] = {}

    async def prepare(here: World) -> None:
        made = await lab(here, here.directory(), scenario.image_format)
        await scenario.prepare(made)
        contents.update(made.contents)

    async def die(here: World) -> None:
        made = existing(here, contents, scenario.image_format)
        await carried_out(made, scenario.request(made))

    async def examine(here: World) -> str:
        made = existing(here, contents, scenario.image_format)
        request = scenario.request(made)
        result = await here.operations.recover(HypervisorType.KVM, request, TOKEN)
        files = here.files()
        again = await here.operations.recover(HypervisorType.KVM, request, TOKEN)
        assert again == result
        assert here.files() == files
        await scenario.check(made, result.outcome == "finished")
        return result.outcome

    in_world(base, prepare)
    subprocess.run(["cp", "-a", str(base / "root"), str(base / "prepared")], check=True)
    outcomes: set[str] = set()
    for step in range(1, 60):
        shutil.rmtree(base / "root")
        subprocess.run(["cp", "-a", str(base / "prepared"), str(base / "root")], check=True)
        if not killed_in(base, die, step, durable=STEPS, tools=TOOLS):
            assert step > 3
            assert outcomes == scenario.outcomes
            return
        shutil.rmtree(base / "run")  # systemd empties it between two lives
        outcomes.add(in_world(base, examine))
    raise AssertionError("no end of steps")


def bitmaps(lab: Lab) -> dict[str, list[str]]:
    info = json.loads(qemu_img("info", "-f", "qcow2", "--output=json", str(lab.path)))
    return {found["name"]: found["flags"] for found in info["format-specific"]["data"].get("bitmaps", [])}


def points(lab: Lab) -> list[str]:
    found: list[str] = json.loads((lab.here.root / "pool/.storage-agent/images/v.json").read_text())["points"]
    return found


async def goes_on(lab: Lab, name: str, parent: str | None) -> None:
    """The next backup is right, and incremental where it was to be."""
    lab.write("write -P 77 3M 64k")
    await lab.snapshot(name)
    if parent is None:
        await lab.back_up(name)
    else:
        await lab.incremental(name, parent)
    assert await lab.restored(name) == lab.contents[name]


# ------------------------------------------------------------------------------------------------------------ snapshots


def snapshot(lab: Lab) -> Request:
    return Create(SnapshotObjectTO(path="v/s2", volume=lab.volume, dataStore=lab.here.pool()))


@pytest.mark.parametrize("image_format", [ImageFormat.QCOW2, ImageFormat.RAW])
def test_snapshot(base: Path, image_format: ImageFormat) -> None:
    async def prepare(lab: Lab) -> None:
        await lab.snapshot("s1")
        await lab.back_up("s1")
        lab.write("write -P 2 1M 64k")
        lab.contents["s2"] = content_of(lab.path, image_format)

    async def check(lab: Lab, finished: bool) -> None:
        assert content_of(lab.path, image_format) == lab.contents["s2"]
        if not finished:
            assert not any("s2" in name for name in lab.here.files())
            assert len(points(lab)) <= 1
            await carried_out(lab, snapshot(lab))
        if image_format is ImageFormat.QCOW2:
            flags = bitmaps(lab)
            assert [flags[point] for point in points(lab)] == [["auto"], ["auto"]]
            assert len(flags) == 2
        lab.write("write -P 9 0 1M")
        await lab.here.operations.copy(lab.call(), backup(lab, incremental=image_format is ImageFormat.QCOW2))
        assert await lab.restored("s2") == lab.contents["s2"]

    each_step(base, Scenario(prepare, snapshot, check, {"undone"}, image_format))  # the record is the last step


def test_delete_a_snapshot(base: Path) -> None:
    """Which was not backed up: what was tracked by it is not lost."""

    async def prepare(lab: Lab) -> None:
        await lab.snapshot("s1")
        await lab.back_up("s1")
        lab.write("write -P 2 1M 64k")
        await lab.snapshot("s2")
        lab.write("write -P 3 2M 64k")
        await lab.snapshot("s3")

    async def check(lab: Lab, finished: bool) -> None:
        assert finished
        assert len(bitmaps(lab)) == len(points(lab)) == 2
        await lab.incremental("s3", "s1")
        assert await lab.restored("s3") == lab.contents["s3"]

    each_step(base, Scenario(prepare, lambda lab: Delete(lab.local("s2")), check, {"finished"}))


@pytest.mark.parametrize("image_format", [ImageFormat.QCOW2, ImageFormat.RAW])
def test_revert(base: Path, image_format: ImageFormat) -> None:
    async def prepare(lab: Lab) -> None:
        await lab.snapshot("s1")
        lab.write("write -P 2 0 2M")
        lab.contents["now"] = content_of(lab.path, image_format)

    async def check(lab: Lab, finished: bool) -> None:
        assert content_of(lab.path, image_format) == lab.contents["s1" if finished else "now"]
        assert lab.here.files() >= {"v", ".storage-agent/images/v.json", ".storage-agent/snapshots/v/s1"}
        assert not any("partial" in name for name in lab.here.files())
        await carried_out(lab, Revert(lab.local("s1")))
        assert content_of(lab.path, image_format) == lab.contents["s1"]
        await goes_on(lab, "s9", None)

    outcomes = {"undone", "finished"}
    each_step(base, Scenario(prepare, lambda lab: Revert(lab.local("s1")), check, outcomes, image_format))


# -------------------------------------------------------------------------------------------------------------- backups


def backup(lab: Lab, *, incremental: bool = True) -> Copy:
    parent = ref_of("s1") if incremental else None
    return Copy(lab.local("s2"), lab.remote("s2", parentSnapshotPath=parent))


async def two_snapshots(lab: Lab) -> None:
    await lab.snapshot("s1")
    await lab.back_up("s1")
    lab.write("write -P 2 1M 64k")
    await lab.snapshot("s2")


def test_back_up(base: Path) -> None:
    """The first one is never harmed; the second one is there or is not; the same again makes it, in place of what was left."""

    async def check(lab: Lab, finished: bool) -> None:
        assert await lab.restored("s1") == lab.contents["s1"]
        made = await lab.here.operations.copy(lab.call(), backup(lab))
        assert made.note is None
        assert await lab.restored("s2") == lab.contents["s2"]
        objects = {ref_of(name) + suffix for name in ("s1", "s2") for suffix in ("", ".manifest.json")}
        partial = {name for name in lab.here.files("images") if name.endswith(".partial")}
        assert lab.here.files("images") - partial == objects
        await goes_on(lab, "s3", "s2")

    each_step(base, Scenario(two_snapshots, backup, check, {"undone"}))


def test_merge(base: Path) -> None:
    """Until the very end every backup can be restored, and the same again goes on."""

    async def prepare(lab: Lab) -> None:
        await two_snapshots(lab)
        await lab.incremental("s2", "s1")

    def merge(lab: Lab) -> Request:
        return Delete(lab.remote("s1"), merge=True)

    async def check(lab: Lab, finished: bool) -> None:
        assert await lab.restored("s2") == lab.contents["s2"]
        await lab.delete(lab.remote("s1"), merge=True)
        assert await lab.restored("s2") == lab.contents["s2"]
        left = {name for name in lab.here.files("images") if not name.endswith(".partial")}
        assert len(left) == 2
        assert f"{ref_of('s2')}.manifest.json" in left

    each_step(base, Scenario(prepare, merge, check, {"undone"}))
