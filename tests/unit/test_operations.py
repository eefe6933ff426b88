"""The verbs without servers: locks, plans, explanations, publication, recovery."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from hypervisors.context import require_room
from hypervisors.contract import HypervisorType, OperationUnsupported
from hypervisors.explaining import How, compression_of
from hypervisors.pools import Entry, entry_below
from hypervisors.primary import pool_of_store
from hypervisors.publishing import publishing
from hypervisors.records import Record
from hypervisors.verbs import (
    AttachIso,
    Call,
    ComputeChecksum,
    Copy,
    Create,
    CreatePool,
    Delete,
    GetStorageStats,
    ListObjects,
    Request,
    Resize,
    named,
    ref_of,
    touched,
)
from stores.contract import Kind, MiB, ObjectInfo, Usage
from stores.errors import AlreadyExists, InvalidReference, NoSpace
from stores.to import (
    S3TO,
    DataTO,
    ImageFormat,
    ImageStoreTO,
    PrimaryDataStoreTO,
    SnapshotObjectTO,
    TemplateObjectTO,
    VolumeObjectTO,
)
from tests.doubles.disk_images import qemu_img
from tests.doubles.world import World, records_of, world

POOL = PrimaryDataStoreTO(uuid="p1", poolType="Filesystem", path="/pool")
OTHER = PrimaryDataStoreTO(uuid="p2", poolType="Filesystem", path="/other")
S3 = S3TO.model_validate({"bucketName": "images", "endPoint": "http://127.0.0.1:1", "accessKey": "a", "secretKey": "b"})


@pytest.fixture
async def here() -> AsyncIterator[World]:
    async with world() as made:
        yield made


# -------------------------------------------------------------------------------------------------------------- names


def test_an_object_is_named_by_path_then_uuid_then_name() -> None:
    assert ref_of(VolumeObjectTO(path="/a/b", uuid="u", name="n", dataStore=POOL)) == "a/b"
    assert ref_of(VolumeObjectTO(uuid="u", name="n", dataStore=POOL)) == "u"
    assert ref_of(VolumeObjectTO(name="n", dataStore=POOL)) == "n"
    with pytest.raises(InvalidReference):
        ref_of(VolumeObjectTO(dataStore=POOL))


@pytest.mark.parametrize("path", [".storage-agent", ".storage-agent/images/x.json", "/.storage-agent/x"])
def test_no_command_names_our_records(path: str) -> None:
    with pytest.raises(InvalidReference):
        named(path)
    assert named(".storage-agent-not") == ".storage-agent-not"


# -------------------------------------------------------------------------------------------------------------- locks

TEMPLATE = TemplateObjectTO(path="t", imageDataStore=S3)
ON_POOL = TemplateObjectTO(path="t", imageDataStore=POOL)
VOLUME = VolumeObjectTO(path="v", dataStore=POOL)


@pytest.mark.parametrize(
    ("request_", "keys"),
    [
        (Copy(TEMPLATE, VOLUME), ("p1/v",)),
        (Copy(ON_POOL, VOLUME), ("p1/t", "p1/v")),
        (Copy(VOLUME, VolumeObjectTO(path="a", dataStore=OTHER)), ("p1/v", "p2/a")),
        (Create(VOLUME), ("p1/v",)),
        (Delete(VOLUME), ("p1/v",)),
        (Resize(VOLUME, 1), ("p1/v",)),
        (CreatePool(POOL), ("p1/",)),
        (ComputeChecksum(S3, "x"), ()),
        (GetStorageStats(POOL), ()),
        (ListObjects(POOL), ()),
    ],
)
def test_touched(request_: Request, keys: tuple[str, ...]) -> None:
    assert touched(request_) == keys


# --------------------------------------------------------------------------------------------------------- small rules


def test_room() -> None:
    require_room(Usage(used=90, capacity=100), 10, "s")
    require_room(Usage(used=90, capacity=None), 1000, "s")
    require_room(Usage(used=90, capacity=100), None, "s")
    with pytest.raises(NoSpace) as refused:
        require_room(Usage(used=90, capacity=100), 11, "s")
    assert (refused.value.details["needed"], refused.value.details["available"]) == (11, 10)


@pytest.mark.parametrize(
    ("path", "info", "expected"),
    [
        ("", ObjectInfo("a", 3, modified=7.0), Entry("a", "a", False, 3, 7.0)),
        ("", ObjectInfo("a/b/c", 3), Entry("a", "a", True, 0, 0.0)),
        ("a", ObjectInfo("a/b/c", 3), Entry("b", "a/b", True, 0, 0.0)),
        ("a", ObjectInfo("a/b", 3), Entry("b", "a/b", False, 3, 0.0)),
        ("a/b", ObjectInfo("a/b", 3), Entry("b", "a/b", False, 3, 0.0)),
    ],
)
def test_entries_of_a_listing(path: str, info: ObjectInfo, expected: Entry) -> None:
    assert entry_below(path, info) == expected


def test_compression_by_name() -> None:
    assert [compression_of(f"x.qcow2.{suffix}") for suffix in ("gz", "BZ2", "xz", "zst")] == [
        "gzip",
        "bzip2",
        "xz",
        "zstd",
    ]
    assert compression_of("x.qcow2") is None


# --------------------------------------------------------------------------------------------------------- explanations


async def test_explain_same_format(here: World) -> None:
    """A QCOW2 template in S3 to a QCOW2 volume: ranges, in place."""
    told = here.operations.explain(
        HypervisorType.KVM,
        Copy(
            TemplateObjectTO(path="t.qcow2", format=ImageFormat.QCOW2, imageDataStore=S3),
            VolumeObjectTO(uuid="v", dataStore=here.pool()),
        ),
    )
    assert (told.how, told.refusal) == (How.IN_PLACE, None)
    assert told.source is not None
    assert told.target is not None
    assert (told.source.chosen, told.source.via) == (Kind.RANGE_READER, "native")
    assert (told.target.chosen, told.target.via) == (Kind.LOCAL_PATH, "native")
    assert told.source.because
    assert len(told.source.reasons) == len(told.source.accepted)


@pytest.mark.parametrize("image_format", [ImageFormat.VHD, ImageFormat.VHDX, ImageFormat.VMDK, ImageFormat.RAW])
async def test_explain_conversion(here: World, image_format: ImageFormat) -> None:
    """From S3: the bridge, no cache."""
    told = here.operations.explain(
        HypervisorType.KVM,
        Copy(
            TemplateObjectTO(path="t", format=image_format, imageDataStore=S3),
            VolumeObjectTO(uuid="v", dataStore=here.pool()),
        ),
    )
    assert told.how is How.CONVERTED
    assert told.source is not None
    assert (told.source.chosen, told.source.via) == (Kind.NBD_EXPORT, "bridge")


async def test_explain_attach(here: World) -> None:
    """An ISO that has to be a file, in a store that has none to give."""
    told = here.operations.explain(HypervisorType.KVM, AttachIso(TemplateObjectTO(path="x.iso", imageDataStore=S3)))
    assert (told.how, told.refusal_kind) == (How.REFUSED, "RequirementNotMet")
    assert told.source is not None
    assert (told.source.accepted, told.source.chosen) == ((Kind.LOCAL_PATH,), None)
    local = TemplateObjectTO(path="x.iso", imageDataStore=here.directory())
    told = here.operations.explain(HypervisorType.KVM, AttachIso(local))
    assert (told.how, told.refusal) == (How.OPENED, None)


async def test_explain_link_and_refusals(here: World) -> None:
    pool = here.pool()
    template = TemplateObjectTO(path="t", imageDataStore=pool)
    told = here.operations.explain(HypervisorType.KVM, Copy(template, VolumeObjectTO(uuid="v", dataStore=pool)))
    assert told.how is How.LINKED
    for source, destination, kind in (
        (SnapshotObjectTO(path="v/s", dataStore=pool), TemplateObjectTO(uuid="v", imageDataStore=S3), None),
        (SnapshotObjectTO(path="v/s", dataStore=pool), VolumeObjectTO(uuid="v", dataStore=pool), None),
        (template, TemplateObjectTO(uuid="v", imageDataStore=S3), "OperationUnsupported"),
        (template, VolumeObjectTO(uuid="v", dataStore=POOL), None),
    ):
        told = here.operations.explain(HypervisorType.KVM, Copy(source, destination))
        assert told.refusal_kind == kind
    told = here.operations.explain(HypervisorType.XEN, Copy(template, VolumeObjectTO(uuid="v", dataStore=pool)))
    assert told.refusal_kind == "OperationUnsupported"
    assert here.files() == set()


async def test_explain_snapshots_and_backups(here: World) -> None:
    """What is read, what is written, and what happens to the bytes between."""
    pool, snapshot = here.pool(), SnapshotObjectTO(path="v/s", dataStore=here.pool())
    qcow2, raw = (VolumeObjectTO(path="v", dataStore=pool, format=f) for f in (ImageFormat.QCOW2, ImageFormat.RAW))
    away = TemplateObjectTO(path="t", imageDataStore=S3, format=ImageFormat.QCOW2)
    backup, back = SnapshotObjectTO(path="b/s", dataStore=S3), VolumeObjectTO(uuid="w", dataStore=pool)
    for source, destination, how, reads, writes in (
        (snapshot, backup, How.LAID_OUT, Kind.LOCAL_PATH, Kind.BYTE_STREAM),
        (backup, back, How.LAID_OUT, Kind.RANGE_READER, Kind.LOCAL_PATH),
        (qcow2, away, How.IN_PLACE, Kind.LOCAL_PATH, Kind.UPLOAD),
        (raw, away, How.LAID_OUT, Kind.LOCAL_PATH, Kind.BYTE_STREAM),
    ):
        told = here.operations.explain(HypervisorType.KVM, Copy(source, destination))
        assert (told.how, told.refusal) == (how, None)
        assert told.source is not None
        assert told.target is not None
        assert (told.source.chosen, told.target.chosen) == (reads, writes)
    refused = here.operations.explain(
        HypervisorType.KVM, Copy(snapshot, backup.model_copy(update={"format": ImageFormat.VHD}))
    )
    assert (refused.how, refused.refusal_kind) == (How.REFUSED, "OperationUnsupported")


# ---------------------------------------------------------------------------------------------------------- publication


def a_record(token: str = "c-1") -> Record:
    return Record(format=ImageFormat.RAW, virtual_size=1 * MiB, token=token, created=0.0)


async def make_image(here: World, *, meanwhile: bytes | None = None) -> None:
    """`meanwhile`: what somebody else publishes under the name."""
    store = here.resolver.store(here.pool())
    async with (
        publishing(pool_of_store(store), "v") as publication,
        store.write("v", Kind.LOCAL_PATH, token="c-1") as pending,
    ):
        if meanwhile is not None:
            (here.root / "pool" / "v").write_bytes(meanwhile)
        await publication.publish(pending, a_record())


async def test_both_or_neither_when_the_name_was_taken_meanwhile(here: World) -> None:
    with pytest.raises(AlreadyExists):
        await make_image(here, meanwhile=b"theirs")
    assert here.files() == {"v"}
    assert (here.root / "pool" / "v").read_bytes() == b"theirs"


@pytest.mark.parametrize("steps", range(20))
async def test_both_or_neither_when_cancelled(here: World, steps: int) -> None:
    """At any point of it; the loop's turns stand for points in time."""
    task = asyncio.create_task(make_image(here))
    for _ in range(steps):
        await asyncio.sleep(0.0005)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        assert here.files() == set()
    else:
        assert here.files() == records_of("v")


# ------------------------------------------------------------------------------------------------------------- recovery


async def test_a_finished_copy_is_recognised(here: World) -> None:
    volume = VolumeObjectTO(uuid="v1", dataStore=here.pool(), size=4 * MiB)
    made = await here.operations.create(here.call("c-1"), Create(volume))
    for _ in range(2):
        recovered = await here.operations.recover(HypervisorType.KVM, Create(volume), "c-1")
        assert (recovered.outcome, recovered.answer) == ("finished", made)
        assert here.files() == records_of("v1")


async def test_somebody_elses_image_is_not_touched(here: World) -> None:
    volume = VolumeObjectTO(uuid="v1", dataStore=here.pool(), size=4 * MiB)
    await here.operations.create(here.call("c-1"), Create(volume))
    recovered = await here.operations.recover(HypervisorType.KVM, Create(volume), "c-2")
    assert (recovered.outcome, recovered.answer) == ("undone", None)
    assert here.files() == records_of("v1")


async def test_recovery_needs_no_image_store(here: World) -> None:
    """The journal keeps no secrets: what it gives back of the source has `***` in their place."""
    source: DataTO = TemplateObjectTO.model_validate(
        TemplateObjectTO(path="t", imageDataStore=ImageStoreTO.model_validate({"uri": "https://u:p@h/"})).model_dump()
    )
    target = VolumeObjectTO(uuid="v1", dataStore=here.pool())
    assert (await here.operations.recover(HypervisorType.KVM, Copy(source, target), "c-1")).outcome == "undone"


@pytest.mark.parametrize("path", ["../escape", "a//b", ".storage-agent/x"])
async def test_a_request_that_could_not_begin_is_undone(here: World, path: str) -> None:
    pool = here.pool()
    rbd = PrimaryDataStoreTO(uuid="p", poolType="RBD", path="x")
    for request in (
        Create(VolumeObjectTO(path=path, dataStore=pool, size=1)),
        Delete(VolumeObjectTO(path=path, dataStore=pool)),
        Resize(VolumeObjectTO(path=path, dataStore=pool), 2),
        Copy(VolumeObjectTO(path="v", dataStore=pool), VolumeObjectTO(path="v", dataStore=rbd)),
        Copy(VolumeObjectTO(path="v", dataStore=pool), TemplateObjectTO(path="t", imageDataStore=S3)),
        CreatePool(rbd),
    ):
        assert (await here.operations.recover(HypervisorType.KVM, request, "c-1")).outcome == "undone"


async def test_deletion_is_finished_or_was_not_begun(here: World) -> None:
    volume = VolumeObjectTO(path="v1", dataStore=here.pool(), size=4 * MiB)
    await here.operations.create(here.call("c-1"), Create(volume))
    assert (await here.operations.recover(HypervisorType.KVM, Delete(volume), "c-2")).outcome == "undone"
    assert here.files() == records_of("v1")
    (here.root / "pool" / "v1").unlink()
    assert (await here.operations.recover(HypervisorType.KVM, Delete(volume), "c-2")).outcome == "finished"
    assert here.files() == set()


async def test_resize_has_either_size(here: World) -> None:
    volume = VolumeObjectTO(path="v1", dataStore=here.pool(), size=4 * MiB)
    made = await here.operations.create(here.call("c-1"), Create(volume))
    request = Resize(volume, 8 * MiB)
    assert (await here.operations.recover(HypervisorType.KVM, request, "c-2")).outcome == "undone"
    qemu_img("resize", "-f", "qcow2", str(here.path(made)), "8M")
    recovered = await here.operations.recover(HypervisorType.KVM, request, "c-2")
    assert recovered.outcome == "finished"
    assert isinstance(recovered.answer, VolumeObjectTO)
    assert recovered.answer.size == 8 * MiB
    record = await pool_of_store(here.resolver.store(here.pool())).records.load("v1")
    assert record is not None
    assert (record.virtual_size, record.token) == (8 * MiB, "c-1")


async def test_handlers_that_are_not_there(here: World) -> None:
    with pytest.raises(OperationUnsupported, match="KVM"):
        await here.operations.create(
            Call("c-1", HypervisorType.XEN), Create(VolumeObjectTO(uuid="v", dataStore=here.pool(), size=1))
        )
