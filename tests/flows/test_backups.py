"""Backups: whole and incremental, into S3 and a directory; restored to the last byte, broken in every way, merged, looked at."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypervisors.backups.manifest import BackupDamaged, BrokenChain
from hypervisors.contract import ImageInUse
from hypervisors.verbs import Copy, Create, Delete, Resize, Revert
from stores.contract import KiB, MiB
from stores.errors import AlreadyExists, InvalidReference, NotFound, StorageError
from stores.to import DataStoreTO, ImageFormat, SnapshotObjectTO, TemplateObjectTO, VolumeObjectTO
from tests.buckets import keys, uploads
from tests.doubles.backups import SIZE, Lab, lab, linked_lab, manifest_in, read_by_hand, ref_of
from tests.doubles.disk_images import content_of
from tests.doubles.fault_proxy import FaultProxy
from tests.doubles.mounts import mounted_xfs
from tests.doubles.shelf import Shelf
from tests.doubles.world import World, records_of, world


@pytest.fixture(params=["directory", "s3"])
async def either(request: pytest.FixtureRequest, shelf: Shelf) -> Lab:
    """Backups into a directory, or into S3."""
    to: DataStoreTO = shelf.s3() if request.param == "s3" else shelf.here.directory()
    return await lab(shelf.here, to)


@pytest.fixture
async def lab_(here: World) -> Lab:
    """Backups into a directory."""
    return await lab(here, here.directory())


def stored(lab: Lab) -> set[str]:
    """Everything in the directory of backups, unfinished files included."""
    return lab.here.files("images")


def objects(*names: str) -> set[str]:
    return {ref for name in names for ref in (ref_of(name), f"{ref_of(name)}.manifest.json")}


# ----------------------------------------------------------------------------------------------------- there and back


async def test_a_chain(either: Lab) -> None:
    """Two snapshots that are not backed up in between, a discard, a larger disk; then everything local is gone."""
    lab = either
    full = await lab_snapshot(lab, "s1")
    assert isinstance(full.data, SnapshotObjectTO)
    assert (full.data.path, full.data.parentSnapshotPath, full.note) == (ref_of("s1"), None, None)
    lab.write("write -P 2 1M 64k", "discard 0 64k")
    await lab.snapshot("s2")
    lab.write("write -P 3 2M 64k")
    await lab.snapshot("s3")
    await lab.incremental("s3", "s1")
    await lab.here.operations.resize(lab.call(), Resize(lab.volume, 2 * SIZE))
    lab.write("write -P 4 6M 64k")
    await lab.snapshot("s4")
    delta = await lab.incremental("s4", "s3")
    assert isinstance(delta.data, SnapshotObjectTO)
    assert delta.data.physicalSize is not None
    assert delta.data.physicalSize <= 8 * 64 * KiB  # the cluster that changed, and six of metadata
    for name in ("s1", "s2", "s3", "s4"):
        await lab.delete(lab.local(name))
    for name in ("s1", "s3", "s4"):
        assert await lab.restored(name) == lab.contents[name]
    assert await lab.restored("s4", ImageFormat.RAW) == lab.contents["s4"]
    parents = [ref_of("s1"), ref_of("s3")]
    assert await lab.restored("s4", parents=parents) == lab.contents["s4"]
    for _ in range(2):
        verified = await lab.here.operations.verify_backup(lab.call(), lab.to, ref_of("s4"))
        assert verified.sound, verified
        assert [checked.ref for checked in verified.chain] == [ref_of("s4"), *reversed(parents)]


async def lab_snapshot(lab: Lab, name: str, parent: str | None = None):  # type: ignore[no-untyped-def]
    await lab.snapshot(name)
    return await lab.back_up(name, parent)


async def test_what_is_left_in_s3(shelf: Shelf) -> None:
    """Two objects for each backup, and nothing else: no unfinished upload, no file in the pool."""
    found = await lab(shelf.here, shelf.s3())
    await lab_snapshot(found, "s1")
    found.write("write -P 2 1M 64k")
    await lab_snapshot(found, "s2", "s1")
    client = shelf.seaweed.client()
    try:
        assert keys(client, shelf.bucket) == objects("s1", "s2")
        assert uploads(client, shelf.bucket) == []
    finally:
        client.close()
    ours = {name for name in shelf.here.files() if not name.startswith(".storage-agent/s")}
    assert ours == records_of("v")


async def test_by_hand(lab_: Lab, tmp_path: Path) -> None:
    """With nothing but the objects and qemu-img."""
    await lab_snapshot(lab_, "s1")
    lab_.write("write -P 2 1M 64k", "discard 0 128k", "write -z 512k 64k")
    await lab_snapshot(lab_, "s2", "s1")
    lab_.write("write -P 3 3M 100k")
    await lab_snapshot(lab_, "s3", "s2")
    folder = lab_.here.root / "images"
    chain = [folder / ref_of(name) for name in ("s3", "s2", "s1")]
    assert read_by_hand(chain, tmp_path / "raw") == lab_.contents["s3"]
    assert read_by_hand(chain[1:], tmp_path / "raw") == lab_.contents["s2"]
    assert [manifest_in(folder, name)["changed"] for name in ("s2", "s3")] == [256 * KiB, 128 * KiB]


async def test_an_incremental_without_a_change(lab_: Lab) -> None:
    await lab_snapshot(lab_, "s1")
    await lab_.snapshot("s2")
    await lab_.incremental("s2", "s1")
    assert manifest_in(lab_.here.root / "images", "s2")["changed"] == 0
    assert await lab_.restored("s2") == lab_.contents["s1"]


async def test_a_linked_clone_is_backed_up_with_what_it_stands_on(here: World) -> None:
    lab = await linked_lab(here, here.directory())
    lab.write("write -P 7 2M 64k")
    await lab_snapshot(lab, "s1")
    lab.write("discard 0 64k", "write -P 8 3M 64k")
    await lab.snapshot("s2")
    await lab.incremental("s2", "s1")
    for name in ("s1", "s2"):
        assert await lab.restored(name) == lab.contents[name]


async def test_a_raw_volume_has_no_memory(here: World) -> None:
    """Of what changed: every backup is whole, and says so."""
    found = await lab(here, here.directory(), ImageFormat.RAW)
    await lab_snapshot(found, "s1")
    found.write("write -P 2 1M 64k")
    made = await lab_snapshot(found, "s2", "s1")
    assert "full backup" in made.note
    assert made.data.parentSnapshotPath is None
    assert await found.restored("s2") == found.contents["s2"]


async def test_where_files_share_blocks(tmp_path: Path) -> None:
    """Snapshots are files there, and each has its own past in it, also after a revert to an older one."""
    with mounted_xfs(tmp_path / "mounted", tmp_path / "xfs") as base:
        async with world(root=base) as here:
            found = await lab(here, here.directory())
            await lab_snapshot(found, "s1")
            found.write("write -P 2 1M 64k")
            await found.snapshot("s2")
            await found.incremental("s2", "s1")
            await here.operations.revert(found.call(), Revert(found.local("s1")))
            found.write("write -P 3 2M 64k")
            await found.snapshot("s3")
            await found.incremental("s3", "s1")
            elsewhere = await found.back_up("s3", "s2")  # the same snapshot, to the same name
            assert elsewhere.data == (await found.back_up("s3")).data
            for name in ("s1", "s2", "s3"):
                assert await found.restored(name) == found.contents[name]


async def test_a_snapshot_in_the_pool_becomes_a_volume(lab_: Lab) -> None:
    await lab_.snapshot("s1")
    lab_.write("write -P 9 0 2M")
    for uuid, size in (("one", None), ("two", 2 * SIZE)):
        target = VolumeObjectTO(uuid=uuid, dataStore=lab_.here.pool("other"), size=size)
        made = (await lab_.here.operations.copy(lab_.call(), Copy(lab_.local("s1"), target))).data
        assert content_of(lab_.here.path(made), ImageFormat.QCOW2, size=SIZE) == lab_.contents["s1"]
        assert made.size == size or SIZE  # type: ignore[union-attr]


async def test_a_template_from_a_backup(lab_: Lab) -> None:
    """Made again it is there already."""
    await lab_snapshot(lab_, "s1")
    target = TemplateObjectTO(uuid="t", imageDataStore=lab_.here.pool("other"))
    made = [(await lab_.here.operations.copy(lab_.call(), Copy(lab_.remote("s1"), target))).data for _ in range(2)]
    assert made[0] == made[1]
    assert content_of(lab_.here.path(made[0]), ImageFormat.QCOW2) == lab_.contents["s1"]


# --------------------------------------------------------------------------------------------------- random histories

CLUSTER = 64 * KiB
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "zero", "discard", "grow", "snapshot", "backup", "backup", "delete"]),
        st.integers(0, SIZE // 4096 - 1),
        st.integers(1, 70),
    ),
    min_size=4,
    max_size=14,
)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(actions=ACTIONS)
def test_random_histories(actions: list[tuple[str, int, int]]) -> None:
    """Whatever happens between the snapshots, and whichever of them are backed up or deleted: each backup comes back."""
    asyncio.run(_history(actions))


async def _history(actions: list[tuple[str, int, int]]) -> None:
    async with world() as here:
        found = await lab(here, here.directory())
        last: str | None = None
        size, backed_up, local = SIZE, [], []
        for number, (action, place, length) in enumerate([*actions, ("backup", 0, 1)]):
            where = f"{place * 4 * KiB} {min(length * 4 * KiB, SIZE - place * 4 * KiB)}"
            name = f"s{number}"
            match action:
                case "write":
                    found.write(f"write -P {number + 2} {where}")
                case "zero":
                    found.write(f"write -z {where}")
                case "discard":
                    found.write(f"discard {where}")
                case "grow":
                    size += length * 512
                    await here.operations.resize(found.call(), Resize(found.volume, size))
                case "delete" if local:
                    await found.delete(found.local(local.pop(place % len(local))))
                case "snapshot":
                    await found.snapshot(name)
                    local.append(name)
                case "backup":
                    await found.snapshot(name)
                    local.append(name)
                    if last is None:
                        await found.back_up(name)
                    else:
                        await found.incremental(name, last)
                    last = name
                    backed_up.append(name)
        for name in backed_up:
            assert await found.restored(name) == found.contents[name]
        for name in local:
            await found.delete(found.local(name))
        assert (await here.operations.verify_backup(found.call(), found.to, ref_of(backed_up[-1]))).sound


# ---------------------------------------------------------------------------------------------------- not incremental


@pytest.mark.parametrize(
    "why",
    ["no such parent", "parent elsewhere", "bitmap lost", "reverted", "shrunk", "crashed writer", "broken parent"],
)
async def test_a_full_one_where_changes_are_not_known(lab_: Lab, why: str) -> None:
    """And it says why. What it gives back is right in any case."""
    await lab_snapshot(lab_, "s1")
    lab_.write("write -P 2 1M 64k")
    parent = "s1"
    match why:
        case "no such parent":
            parent = "none"
        case "parent elsewhere":
            parent = "../8/s1"
            folder = lab_.here.root / "images/snapshots/2"
            shutil.copytree(folder / "7", folder / "8")
            parent = "x/s1"
        case "bitmap lost":
            forget_bitmaps(lab_)
        case "reverted":
            await lab_.here.operations.revert(lab_.call(), Revert(lab_.local("s1")))
        case "shrunk":
            await lab_.delete(lab_.local("s1"))
            await lab_.here.operations.resize(lab_.call(), Resize(lab_.volume, SIZE // 2, shrink_ok=True))
        case "crashed writer":
            mark_bitmaps_in_use(lab_.path)
        case "broken parent":
            (lab_.here.root / "images" / ref_of("s1")).unlink()
    made = await lab_snapshot(lab_, "s2", parent)
    assert "full backup" in made.note
    assert made.data.parentSnapshotPath is None
    assert await lab_.restored("s2") == lab_.contents["s2"]
    lab_.write("write -P 3 1M 64k")
    await lab_.snapshot("s3")
    await lab_.incremental("s3", "s2")  # from there on it goes on
    assert await lab_.restored("s3") == lab_.contents["s3"]
