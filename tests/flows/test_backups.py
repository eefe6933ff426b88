"""Backups: whole and incremental, into S3 and a directory; restored to the last byte, broken, merged, looked at."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypervisors.backups.manifest import BackupDamaged, BrokenChain
from hypervisors.backups.overview import Tree
from hypervisors.contract import ImageInUse
from hypervisors.copying import Copied
from hypervisors.verbs import Copy, Resize, Revert
from stores.contract import KiB
from stores.errors import AlreadyExists, InvalidReference, NotFound, StorageError
from stores.to import DataStoreTO, ImageFormat, SnapshotObjectTO, TemplateObjectTO, VolumeObjectTO
from tests.buckets import keys, uploads
from tests.doubles.backups import (
    SIZE,
    Lab,
    die_writing,
    forget_bitmaps,
    lab,
    linked_lab,
    manifest_in,
    read_by_hand,
    ref_of,
)
from tests.doubles.disk_images import content_of
from tests.doubles.fault_proxy import FaultProxy
from tests.doubles.mounts import xfs_with_a_short_path
from tests.doubles.shelf import Shelf
from tests.doubles.world import Phases, World, records_of, world
from tests.images import patch


@pytest.fixture(params=["directory", "s3"])
async def either(request: pytest.FixtureRequest, shelf: Shelf) -> Lab:
    """Backups into a directory, or into S3."""
    to: DataStoreTO = shelf.s3() if request.param == "s3" else shelf.here.directory()
    return await lab(shelf.here, to)


@pytest.fixture
async def lab_(here: World) -> Lab:
    """Backups into a directory."""
    return await lab(here, here.directory())


async def backed_up(lab: Lab, name: str, parent: str | None = None) -> Copied:
    await lab.snapshot(name)
    return await lab.back_up(name, parent)


def assert_whole(made: Copied) -> None:
    """Although it was to build on another one; and it says why."""
    assert "full backup" in (made.note or "")
    assert isinstance(made.data, SnapshotObjectTO)
    assert made.data.parentSnapshotPath is None


def stored(lab: Lab) -> set[str]:
    """Everything in the directory of backups, unfinished files included."""
    return lab.here.files("images")


def objects(*names: str) -> set[str]:
    return {ref for name in names for ref in (ref_of(name), f"{ref_of(name)}.manifest.json")}


# ----------------------------------------------------------------------------------------------------- there and back


async def test_a_chain(either: Lab) -> None:
    """Two snapshots that are not backed up in between, a discard, a larger disk; then everything local is gone."""
    lab = either
    full = await backed_up(lab, "s1")
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


async def test_what_is_left_in_s3(shelf: Shelf) -> None:
    """Two objects for each backup, and nothing else: no unfinished upload, no file in the pool."""
    found = await lab(shelf.here, shelf.s3())
    await backed_up(found, "s1")
    found.write("write -P 2 1M 64k")
    await backed_up(found, "s2", "s1")
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
    await backed_up(lab_, "s1")
    lab_.write("write -P 2 1M 64k", "discard 0 128k", "write -z 512k 64k")
    await backed_up(lab_, "s2", "s1")
    lab_.write("write -P 3 3M 100k")
    await backed_up(lab_, "s3", "s2")
    folder = lab_.here.root / "images"
    chain = [folder / ref_of(name) for name in ("s3", "s2", "s1")]
    assert read_by_hand(chain, tmp_path / "three") == lab_.contents["s3"]
    assert read_by_hand(chain[1:], tmp_path / "two") == lab_.contents["s2"]
    assert [manifest_in(folder, name)["changed"] for name in ("s2", "s3")] == [256 * KiB, 128 * KiB]


async def test_an_incremental_without_a_change(lab_: Lab) -> None:
    await backed_up(lab_, "s1")
    await lab_.snapshot("s2")
    await lab_.incremental("s2", "s1")
    assert manifest_in(lab_.here.root / "images", "s2")["changed"] == 0
    assert await lab_.restored("s2") == lab_.contents["s1"]


async def test_a_linked_clone_is_backed_up_with_what_it_stands_on(here: World) -> None:
    lab = await linked_lab(here, here.directory())
    lab.write("write -P 7 2M 64k")
    await backed_up(lab, "s1")
    lab.write("discard 0 64k", "write -P 8 3M 64k")
    await lab.snapshot("s2")
    await lab.incremental("s2", "s1")
    for name in ("s1", "s2"):
        assert await lab.restored(name) == lab.contents[name]


async def test_a_raw_volume_has_no_memory(here: World) -> None:
    """Of what changed: every backup is whole, and says so."""
    found = await lab(here, here.directory(), ImageFormat.RAW)
    await backed_up(found, "s1")
    found.write("write -P 2 1M 64k")
    made = await backed_up(found, "s2", "s1")
    assert_whole(made)
    assert await found.restored("s2") == found.contents["s2"]


async def test_where_files_share_blocks() -> None:
    """Snapshots are files there, and each has its own past in it, also after a revert to an older one."""
    with xfs_with_a_short_path() as base:
        async with world(root=base) as here:
            found = await lab(here, here.directory())
            await backed_up(found, "s1")
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
    await backed_up(lab_, "s1")
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
    max_size=12,
)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(actions=ACTIONS)
def test_random_histories(actions: list[tuple[str, int, int]]) -> None:
    """Whatever happens between the snapshots, and whichever of them are backed up or deleted: each backup comes back."""
    asyncio.run(_history(actions))


async def _history(actions: list[tuple[str, int, int]]) -> None:
    async with world() as here:
        found = await lab(here, here.directory())
        last: str | None = None
        size, sent, local = SIZE, list[str](), list[str]()
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
                    sent.append(name)
        for name in sent:
            assert await found.restored(name) == found.contents[name]
        chain = [here.root / "images" / ref_of(name) for name in reversed(sent)]
        assert read_by_hand(chain, here.root / "by-hand") == found.contents[sent[-1]]
        for name in local:
            await found.delete(found.local(name))
        assert (await here.operations.verify_backup(found.call(), found.to, ref_of(sent[-1]))).sound


# ---------------------------------------------------------------------------------------------------- not incremental


@pytest.mark.parametrize(
    "why",
    ["no such parent", "parent elsewhere", "bitmap lost", "reverted", "shrunk", "crashed writer", "broken parent"],
)
async def test_a_full_one_where_changes_are_not_known(lab_: Lab, why: str) -> None:
    """And it says why. What it gives back is right in any case."""
    await backed_up(lab_, "s1")
    lab_.write("write -P 2 1M 64k")
    parent = "s1"
    match why:
        case "no such parent":
            parent = "none"
        case "parent elsewhere":
            parent = "below/s2"
            await lab_.snapshot("s2")
            await lab_.back_up("s2", name_there=parent)
            await lab_.delete(lab_.local("s2"))
        case "bitmap lost":
            forget_bitmaps(lab_.path)
        case "reverted":
            await lab_.here.operations.revert(lab_.call(), Revert(lab_.local("s1")))
        case "shrunk":
            await lab_.delete(lab_.local("s1"))
            await lab_.here.operations.resize(lab_.call(), Resize(lab_.volume, SIZE // 2, shrink_ok=True))
        case "crashed writer":
            die_writing(lab_.path, "write -P 6 1M 64k")
        case "broken parent":
            (lab_.here.root / "images" / ref_of("s1")).unlink()
    with structlog.testing.capture_logs() as logs:
        made = await backed_up(lab_, "s3", parent)
    assert_whole(made)
    assert [line["why"] for line in logs if line["event"] == "backup is full"] == [made.note]
    assert await lab_.restored("s3") == lab_.contents["s3"]
    lab_.write("write -P 3 1M 64k")
    await lab_.snapshot("s4")
    await lab_.incremental("s4", "s3")  # from there on it goes on
    assert await lab_.restored("s4") == lab_.contents["s4"]


# ------------------------------------------------------------------------------------------------------ broken chains


BREAKAGES = ("manifest gone", "object gone", "object cut", "object changed", "another manifest", "tables")


def break_it(path: Path, how: str) -> None:
    """The backup whose object is `path`."""
    manifest = path.with_name(path.name + ".manifest.json")
    match how:
        case "manifest gone":
            manifest.unlink()
        case "object gone":
            path.unlink()
        case "object cut":
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size - 512)
        case "object changed":
            patch(path, -100, b"\xff")
        case "another manifest":
            manifest.write_bytes(manifest.read_bytes().replace(b'"depth"', b' "depth"'))
        case "tables":
            patch(path, 2 * CLUSTER, b"\xff" * 8)


async def test_a_broken_chain_is_refused_before_anything_is_written(lab_: Lab) -> None:
    """Whichever of its backups is broken, and however; those below that one are still good."""
    await backed_up(lab_, "s1")
    for before, name in (("s1", "s2"), ("s2", "s3")):
        lab_.write(f"write -P {name[1]} 1M 64k")
        await lab_.snapshot(name)
        await lab_.incremental(name, before)
    whole = lab_.here.root / "images"
    target = VolumeObjectTO(uuid="restored", dataStore=lab_.here.pool("other"))
    for which, below in (("s1", None), ("s2", "s1"), ("s3", "s2")):
        for how in BREAKAGES:
            name = f"{which} {how}"
            shutil.copytree(whole, lab_.here.root / name)
            lab_.to = lab_.here.directory(name)
            break_it(lab_.here.root / name / ref_of(which), how)
            with pytest.raises((BrokenChain, BackupDamaged)) as refused:
                await lab_.here.operations.copy(lab_.call(), Copy(lab_.remote("s3"), target))
            assert refused.value.details["ref"] == ref_of(which)
            assert ref_of(which) in refused.value.message
            assert lab_.here.files("other") == set()
            verified = await lab_.here.operations.verify_backup(lab_.call(), lab_.to, ref_of("s3"))
            assert not verified.sound
            told = verified.fault or next(checked.fault for checked in verified.chain if checked.fault)
            assert ref_of(which) in (told or "")
            if below is not None and how == "object gone":
                assert await lab_.restored(below) == lab_.contents[below]


async def test_a_parent_of_the_same_name_is_not_the_parent(lab_: Lab) -> None:
    """It was deleted behind the agent's back, and another backup took its name."""
    await backed_up(lab_, "s1")
    lab_.write("write -P 2 1M 64k")
    await lab_.snapshot("s2")
    await lab_.incremental("s2", "s1")
    for ref in objects("s1"):
        (lab_.here.root / "images" / ref).unlink()
    await lab_.back_up("s2", name_there="s1")
    with pytest.raises(BrokenChain, match="another one of the same name"):
        await lab_.restored("s2")
    with pytest.raises(BrokenChain, match="the command says"):
        await lab_.restored("s1", parents=[ref_of("s0")])


async def test_a_moved_store_is_read_once_more(lab_: Lab) -> None:
    """Versions are others there: then the content's digest decides."""
    await backed_up(lab_, "s1")
    folder = lab_.here.root / "images"
    shutil.copytree(folder, lab_.here.root / "moved")
    moved = lab_.remote("s1").model_copy(update={"dataStore": lab_.here.directory("moved")})
    target = VolumeObjectTO(uuid="restored", dataStore=lab_.here.pool("other"))
    await lab_.here.operations.copy(lab_.call(), Copy(moved, target))
    patch(lab_.here.root / "moved" / ref_of("s1"), -100, b"\xff")
    with pytest.raises(BackupDamaged):
        await lab_.here.operations.copy(lab_.call(), Copy(moved, target.model_copy(update={"uuid": "again"})))
    assert lab_.here.files("other") == records_of("restored")


# ----------------------------------------------------------------------------------------------- failures on the way


@pytest.mark.parametrize("delay", [0, 0.05, 0.15, 0.25])
async def test_a_cancelled_incremental_harms_nothing(lab_: Lab, delay: float) -> None:
    await backed_up(lab_, "s1")
    lab_.write("write -P 2 1M 64k")
    await lab_.snapshot("s2")
    files = lab_.here.files()
    sending = asyncio.create_task(lab_.back_up("s2", "s1"))
    await asyncio.sleep(delay)
    sending.cancel()
    with suppress(asyncio.CancelledError):
        await sending
    if sending.cancelled():
        assert stored(lab_) == objects("s1")
        assert {name for name in lab_.here.files() if "/sent/" not in name} == {f for f in files if "/sent/" not in f}
        await lab_.incremental("s2", "s1")
    assert stored(lab_) == objects("s1", "s2")
    for name in ("s1", "s2"):
        assert await lab_.restored(name) == lab_.contents[name]


@pytest.mark.parametrize("phase", ["inspect", "send", "publish"])
async def test_a_store_that_goes_away(shelf: Shelf, phase: str) -> None:
    """Before the object, with it, and after it; then it is back, and nothing is left but the two backups."""
    found = await lab(shelf.here, shelf.s3())
    await backed_up(found, "s1")
    found.write("write -P 2 1M 1M")
    await found.snapshot("s2")
    progress = Phases()
    progress.wanted = phase
    async with FaultProxy(shelf.seaweed.port) as proxy:
        target = found.remote("s2", parentSnapshotPath=ref_of("s1")).model_copy(
            update={"dataStore": shelf.s3(port=proxy.port)}
        )
        request = Copy(found.local("s2"), target)
        sending = asyncio.create_task(found.here.operations.copy(found.here.call("c-gone", progress), request))
        await progress.reached.wait()
        proxy.cut_after = 0
        with pytest.raises(StorageError):
            await sending
        assert await found.restored("s1") == found.contents["s1"]
        proxy.cut_after = None
        made = await found.here.operations.copy(found.call(), request)
        assert made.note is None
    assert await found.restored("s2") == found.contents["s2"]
    client = shelf.seaweed.client()
    try:
        assert keys(client, shelf.bucket) == objects("s1", "s2")
    finally:
        client.close()


async def test_a_parent_that_goes_while_it_is_built_upon(lab_: Lab) -> None:
    """By the hand of another host: nothing that cannot be restored is called a backup."""
    await backed_up(lab_, "s1")
    lab_.write("write -P 2 1M 64k")
    await lab_.snapshot("s2")
    images = lab_.here.root / "images"

    class Deleting(Phases):
        def phase(self, name: str, total: int | None = None) -> None:
            super().phase(name, total)
            if name == "publish":
                for ref in objects("s1"):
                    (images / ref).unlink()

    request = Copy(lab_.local("s2"), lab_.remote("s2", parentSnapshotPath=ref_of("s1")))
    with pytest.raises(BrokenChain, match="while"):
        await lab_.here.operations.copy(lab_.here.call("c-late", Deleting()), request)
    assert stored(lab_) == set()
    assert_whole(await lab_.here.operations.copy(lab_.call(), request))
    assert await lab_.restored("s2") == lab_.contents["s2"]


async def test_a_cancelled_restore_leaves_nothing(lab_: Lab) -> None:
    await backed_up(lab_, "s1")
    lab_.write("write -P 2 1M 64k")
    await backed_up(lab_, "s2", "s1")
    target = VolumeObjectTO(uuid="restored", dataStore=lab_.here.pool("other"))
    for delay in (0.0, 0.01, 0.03, 0.06):
        request = Copy(lab_.remote("s2"), target)
        restoring = asyncio.create_task(lab_.here.operations.copy(lab_.call(), request))
        await asyncio.sleep(delay)
        restoring.cancel()
        with suppress(asyncio.CancelledError):
            await restoring
        if not restoring.cancelled():
            break
        assert lab_.here.files("other") == set()


async def test_several_at_once(lab_: Lab) -> None:
    """Of one volume: each reads its own moment, whatever the others do."""
    names = ("s1", "s2", "s3")
    for name in names:
        lab_.write(f"write -P {name[1]} {name[1]}00k 300k")
        await lab_.snapshot(name)
    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(lab_.back_up(name))
    for name in names:
        assert await lab_.restored(name) == lab_.contents[name]


async def test_names_that_are_taken(lab_: Lab) -> None:
    await backed_up(lab_, "s1")
    before = stored(lab_)
    again = await lab_.back_up("s1")  # the very same
    assert again.data.path == ref_of("s1")
    await lab_.snapshot("s2")
    with pytest.raises(AlreadyExists, match="another snapshot"):
        await lab_.back_up("s2", name_there="s1")
    foreign = lab_.here.root / "images/foreign"
    foreign.write_bytes(b"precious")
    target = SnapshotObjectTO(path="foreign", dataStore=lab_.to)
    with pytest.raises(AlreadyExists, match="no backup"):
        await lab_.here.operations.copy(lab_.call(), Copy(lab_.local("s2"), target))
    assert foreign.read_bytes() == b"precious"
    await lab_.delete(target)  # as the error says
    assert not foreign.exists()
    with pytest.raises(InvalidReference, match="manifest"):
        await lab_.back_up("s2", name_there="s2.manifest.json")
    with pytest.raises(NotFound):
        await lab_.back_up("s9")
    assert stored(lab_) == before


# ------------------------------------------------------------------------------------------------- delete and merge


async def test_delete_in_the_middle(either: Lab) -> None:
    lab = either
    await backed_up(lab, "s1")
    for before, name in (("s1", "s2"), ("s2", "s3"), ("s3", "s4")):
        lab.write(f"write -P {name[1]} {name[1]}00k 64k", "discard 0 64k")
        await lab.snapshot(name)
        await lab.incremental(name, before)
    for name, child in (("s1", "s2"), ("s2", "s3")):
        with pytest.raises(ImageInUse) as refused:
            await lab.delete(lab.remote(name))
        assert refused.value.details["children"] == [ref_of(child)]
    for name in ("s2", "s1"):
        for _ in range(2):
            await lab.delete(lab.remote(name), merge=True)
        with pytest.raises(BrokenChain):
            await lab.restored(name)
        for left in ("s3", "s4"):
            assert await lab.restored(left) == lab.contents[left]
    tree = await lab.here.operations.backup_tree(lab.to, "snapshots")
    (root,) = tree.roots
    assert (root.ref, [child.ref for child in root.children]) == (ref_of("s3"), [ref_of("s4")])
    assert tree.strays == ()
    lab.write("write -P 9 3M 64k")
    await lab.snapshot("s5")
    await lab.incremental("s5", "s3")  # a merged one can be built on
    assert await lab.restored("s5") == lab.contents["s5"]
    for name in ("s5", "s4", "s3"):
        await lab.delete(lab.remote(name))
    assert (await lab.here.operations.backup_tree(lab.to)).roots == ()


async def test_a_merge_that_was_interrupted_goes_on(lab_: Lab) -> None:
    await backed_up(lab_, "s1")
    lab_.write("write -P 2 1M 64k")
    await lab_.snapshot("s2")
    await lab_.incremental("s2", "s1")
    for delay in (0.0, 0.01, 0.02, 0.04, 0.08):
        merging = asyncio.create_task(lab_.delete(lab_.remote("s1"), merge=True))
        await asyncio.sleep(delay)
        merging.cancel()
        with suppress(asyncio.CancelledError):
            await merging
        assert await lab_.restored("s2") == lab_.contents["s2"]
    await lab_.delete(lab_.remote("s1"), merge=True)
    (merged,) = {name for name in stored(lab_) if ".full-" in name}
    assert stored(lab_) == {merged, f"{ref_of('s2')}.manifest.json"}
    assert await lab_.restored("s2") == lab_.contents["s2"]


async def test_the_tree_shows_what_is_wrong(lab_: Lab) -> None:
    await backed_up(lab_, "s1")
    for name in ("s2", "s3"):
        lab_.write(f"write -P {name[1]} 1M 64k")
        await lab_.snapshot(name)
        await lab_.incremental(name, "s1")
    folder = lab_.here.root / "images"
    (folder / "snapshots/2/7/stray").write_bytes(b"x")
    tree = await lab_.here.operations.backup_tree(lab_.to, "snapshots/2")
    (root,) = tree.roots
    assert (root.ref, root.volume, root.snapshot, root.fault) == (ref_of("s1"), "v", "s1", None)
    assert [child.ref for child in root.children] == [ref_of("s2"), ref_of("s3")]
    assert tree.strays == (ref_of("stray"),)
    (folder / ref_of("s1")).unlink()
    (folder / f"{ref_of('s3')}.manifest.json").write_text("{}")
    tree = await lab_.here.operations.backup_tree(lab_.to)
    faults = {node.ref: node.fault for node in tree.roots}
    assert "is not there" in (faults[ref_of("s1")] or "")
    assert "no manifest" in (faults[ref_of("s3")] or "")
    assert await lab_.here.operations.backup_tree(lab_.to, "nothing") == Tree((), ())
