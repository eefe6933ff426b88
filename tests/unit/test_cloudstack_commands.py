"""CloudStack's commands in the agent's terms, and the agent's answers in CloudStack's. Pure, so without an agent."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import commands
from agent.commands import Answer, Command, Failure, Outcome, PoolInfo, ProgressReport, State, VolumeStats
from agent.transports.cloudstack import commands_guests, commands_storage, commands_stores
from agent.transports.cloudstack.commands_downloads import copy_of, told
from agent.transports.cloudstack.commands_listings import templates, volumes
from agent.transports.cloudstack.commands_naming import downloaded, hypervisor_of
from agent.transports.cloudstack.commands_refused import REFUSED, refused, unsupported
from agent.transports.cloudstack.commands_route import Route
from agent.transports.cloudstack.models import WireAnswer, WireCommand
from agent.transports.cloudstack.models_images import DownloadAnswer, DownloadCommand
from agent.transports.cloudstack.models_objects import SnapshotMade, StorageFilerTO, TemplateMade, VolumeMade
from agent.transports.cloudstack.models_pools import (
    CreateStoragePoolCommand,
    GetStorageStatsAnswer,
    GetVolumeStatsAnswer,
    ModifyStoragePoolAnswer,
    ModifyStoragePoolCommand,
)
from agent.transports.cloudstack.models_storage import (
    AttachAnswer,
    AttachCommand,
    CopyCmdAnswer,
    CopyCommand,
    CreateObjectAnswer,
    DeleteCommand,
    DetachCommand,
    DettachCommand,
    DirectDownloadAnswer,
    ForgetObjectCmd,
    IntroduceObjectAnswer,
    IntroduceObjectCmd,
    MigrateVolumeAnswer,
    ResizeVolumeAnswer,
    RevertSnapshotCommand,
)
from hypervisors.contract import HypervisorType, OperationUnsupported
from stores.errors import InvalidReference, StorageError
from stores.secret import Secret
from stores.to import (
    S3TO,
    DataTO,
    DiskTO,
    ImageFormat,
    ImageStoreTO,
    NfsTO,
    PrimaryDataStoreTO,
    SnapshotObjectTO,
    TemplateObjectTO,
    VolumeObjectTO,
)
from tests.markdown import Page, code
from tests.wire.golden_messages import NAMES, message

POOL = PrimaryDataStoreTO(uuid="p-1", poolType="NetworkFilesystem")
OTHER = PrimaryDataStoreTO(uuid="p-2", poolType="Filesystem", path="/srv/p2")
S3 = S3TO(bucketName="b", accessKey="A", secretKey=Secret("s3cr3t"))
CACHE = NfsTO.model_validate({"_url": "nfs://h/cache", "_role": "ImageCache"})
NFS = NfsTO.model_validate({"_url": "nfs://h/secondary"})

ROUTES: dict[type[WireCommand], Route] = {
    **commands_storage.ROUTES,
    **commands_guests.ROUTES,
    **commands_stores.POOLS,
    **commands_stores.STORES,
}


def wire(name: str) -> WireCommand:
    found = message(name)
    assert isinstance(found, WireCommand)
    return found


def asked(command: WireCommand) -> Command:
    return ROUTES[type(command)].asks(command)


def ended(**outcome: Any) -> Answer:
    return Answer.final(
        "c-1",
        "Copy",
        State.SUCCEEDED,
        accepted_at=1,
        started_at=1,
        finished_at=2,
        outcome=Outcome.model_validate(outcome),
    )


def success(command: WireCommand, **outcome: Any) -> WireAnswer:
    return ROUTES[type(command)].told(command, ended(**outcome))


def failed(command: WireCommand, kind: str = "NoSpace", retryable: Any = "operator") -> WireAnswer:
    failure = Failure(kind=kind, retryable=retryable, message="there is no room")
    return ROUTES[type(command)].failed(command, failure)


def uuid_of(data: DataTO) -> str | None:
    return getattr(data.store, "uuid", None)


def template(store: Any, path: str | None = None, **fields: Any) -> TemplateObjectTO:
    return TemplateObjectTO(path=path, imageDataStore=store, **fields)


def volume(store: Any, path: str | None = None, **fields: Any) -> VolumeObjectTO:
    return VolumeObjectTO(path=path, dataStore=store, **fields)


def snapshot(store: Any, path: str | None = None, **fields: Any) -> SnapshotObjectTO:
    return SnapshotObjectTO(path=path, dataStore=store, **fields)


# -------------------------------------------------------------------------------------------------------------- copy


def copy(source: DataTO, destination: DataTO, **fields: Any) -> CopyCommand:
    return CopyCommand(srcTO=source, destTO=destination, **fields)


IN_POOL = [
    (template(CACHE, "template/tmpl/2/201/a.qcow2"), template(POOL, uuid="t")),
    (template(S3, "template/tmpl/2/201/u/a.qcow2"), volume(POOL, uuid="v")),
    (template(POOL, "t"), volume(POOL, uuid="v")),
    (template(POOL, "t"), template(OTHER, uuid="t")),
    (volume(CACHE, "volumes/2/12/a.qcow2"), volume(POOL, uuid="v")),
    (volume(S3, "volumes/2/12/a.qcow2"), volume(POOL, uuid="v")),
    (volume(POOL, "v"), volume(OTHER, uuid="v")),
    (snapshot(S3, "snapshots/2/12/s"), volume(POOL, uuid="v")),
    (snapshot(POOL, "v/s"), volume(OTHER, uuid="w")),
    (snapshot(POOL, "v/s"), template(OTHER, uuid="t")),
]


@pytest.mark.parametrize(("source", "destination"), IN_POOL)
def test_what_goes_to_a_pool_keeps_the_name_it_came_with(source: DataTO, destination: DataTO) -> None:
    assert asked(copy(source, destination)) == commands.Copy(source=source, destination=destination)


@pytest.mark.parametrize(
    ("source", "destination", "path"),
    [
        (volume(POOL, "v"), volume(NFS, "volumes/2/12", uuid="v-uuid"), "volumes/2/12/v-uuid.qcow2"),
        (volume(POOL, "v"), volume(NFS, "/volumes/2/12/", format=ImageFormat.RAW), "volumes/2/12/v.raw"),
        (volume(POOL, "v"), template(S3, "template/tmpl/2/9/u", uuid="t"), "template/tmpl/2/9/u/t.qcow2"),
        (snapshot(POOL, "v/s-31"), snapshot(S3, "snapshots/2/12"), "snapshots/2/12/s-31"),
        (snapshot(POOL, "v/s-31"), template(S3, "template/tmpl/2/9", uuid="t"), "template/tmpl/2/9/t.qcow2"),
        (snapshot(S3, "snapshots/2/12/s-31"), snapshot(CACHE, "snapshots/2/12"), "snapshots/2/12/s-31"),
        (snapshot(NFS, "snapshots/2/12/s-31"), template(S3, "template/tmpl/2/9"), "template/tmpl/2/9/s-31.qcow2"),
        (snapshot(S3, "snapshots/2/12/s-31"), snapshot(NFS, "snapshots/2/12"), "snapshots/2/12/s-31"),
        (template(S3, "t/2/9/u/a.qcow2"), template(CACHE, "t/2/9"), "t/2/9/a.qcow2"),
        (template(CACHE, "t/2/9/a.qcow2"), template(S3, "t/2/9/u"), "t/2/9/u/a.qcow2"),
        (volume(NFS, "volumes/2/12/a.vhd"), volume(NFS, "volumes/2/13"), "volumes/2/13/a.vhd"),
    ],
)
def test_what_goes_to_an_image_store_gets_a_file_name(source: DataTO, destination: DataTO, path: str) -> None:
    command = asked(copy(source, destination))
    assert isinstance(command, commands.Copy)
    assert command == asked(copy(source, destination))  # the same name at the next try
    assert command.destination.path == path
    assert command.destination.store == destination.store


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        (template(S3, "t"), snapshot(POOL, "s")),
        (volume(POOL, "v"), template(POOL, "t")),
        (volume(POOL, "v"), snapshot(S3, "s")),
        (template(POOL, "t"), template(S3, "t")),
        (template(S3, "t"), volume(S3, "v")),
        (snapshot(POOL, "v/s"), volume(S3, "v")),
        (snapshot(POOL, "v/s"), snapshot(POOL, "v/t")),
    ],
)
def test_copies_that_there_are_not_are_refused(source: DataTO, destination: DataTO) -> None:
    with pytest.raises(OperationUnsupported):
        asked(copy(source, destination))


@pytest.mark.parametrize(
    ("source", "destination"),
    [(volume(POOL, "v"), volume(NFS, None, uuid="v")), (volume(POOL), template(S3, "t"))],
)
def test_a_name_that_cannot_be_made_is_said_to_be_missing(source: DataTO, destination: DataTO) -> None:
    with pytest.raises(InvalidReference):
        asked(copy(source, destination))


@pytest.mark.parametrize(
    ("data", "made"),
    [
        (
            template(S3, "t", size=10, physicalSize=5, format=ImageFormat.QCOW2, uuid="u", name="n"),
            TemplateMade(path="t", size=10, physicalSize=5, format="QCOW2", uuid="u", name="n"),
        ),
        (volume(S3, "v", size=10, format=ImageFormat.RAW), VolumeMade(path="v", size=10, format="RAW")),
        (
            snapshot(S3, "s", physicalSize=5, parentSnapshotPath="r"),
            SnapshotMade(path="s", physicalSize=5, parentSnapshotPath="r"),
        ),
    ],
)
def test_an_answer_has_what_is_new_and_no_store(data: DataTO, made: Any) -> None:
    answer = success(copy(template(CACHE, "t"), template(POOL)), newData=data)
    assert answer == CopyCmdAnswer(result=True, newData=made)


def test_a_template_that_is_gone_from_its_pool_is_asked_for_in_the_words_that_the_server_knows() -> None:
    clone = copy(template(POOL, "t"), volume(POOL, uuid="v"))
    assert failed(clone, "NotFound", "no").details == "request template reload"
    assert failed(clone, "NoSpace").details == "NoSpace: there is no room"
    assert failed(copy(template(S3, "t"), volume(POOL)), "NotFound", "no").details == "NotFound: there is no room"


@pytest.mark.parametrize(
    ("options", "goes"),
    [({}, True), ({"snapshot.backup.to.secondary": "true"}, True), ({"snapshot.backup.to.secondary": "false"}, False)],
)
def test_a_backed_up_snapshot_leaves_primary_storage_only_if_it_is_to(options: dict[str, str], goes: bool) -> None:
    source = snapshot(POOL, "v/s")
    secret = {key: Secret(value) for key, value in options.items()}
    command = copy(source, snapshot(S3, "snapshots/2/12"), options=secret)
    following = ROUTES[CopyCommand].then(command, ended())
    assert following == (commands.Delete(data=source) if goes else None)
    assert ROUTES[CopyCommand].then(copy(source, volume(POOL, "v")), ended()) is None


paths = (
    st.none()
    | st.sampled_from(["", "/", "a", "a/b/c", "/a//b/", "../../etc/passwd", "a/../../b", ".storage-agent/x"])
    | st.text()
)
places = st.sampled_from([POOL, OTHER, S3, CACHE, NFS])
data = st.one_of(
    st.builds(template, places, paths, uuid=paths, format=st.none() | st.sampled_from(ImageFormat)),
    st.builds(volume, places, paths, uuid=paths, name=paths),
    st.builds(snapshot, places, paths, name=paths, parents=st.none() | st.lists(st.text(), max_size=3)),
)


@given(source=data, destination=data)
@settings(max_examples=300, deadline=None)
def test_any_copy_is_asked_for_or_refused(source: DataTO, destination: DataTO) -> None:
    try:
        command = asked(copy(source, destination))
    except StorageError:
        return
    assert isinstance(command, commands.Copy)
    assert command.source == source
    assert command.destination.store == destination.store
    assert command.destination.type == destination.type


# ------------------------------------------------------------------------------------------- the other storage commands


def test_volumes_are_created_and_deleted() -> None:
    created, deleted = wire("CreateObjectCommand-volume"), wire("DeleteCommand")
    command = asked(created)
    assert isinstance(command, commands.CreateObject)
    assert (command.data.type, command.data.uuid) == ("volume", "3f0a7c55-6c1e-4a58-8d5f-7b1b8f2b6d01")
    data = volume(POOL, "v", size=5, format=ImageFormat.QCOW2)
    assert success(created, data=data) == CreateObjectAnswer(
        result=True, data=VolumeMade(path="v", size=5, format="QCOW2")
    )
    assert isinstance(asked(deleted), commands.Delete)
    assert success(deleted) == WireAnswer(result=True)


def test_a_backup_builds_on_its_parent_unless_it_is_to_be_full() -> None:
    source = snapshot(POOL, "v/s-31")
    target = snapshot(S3, "snapshots/2/12", parents=["snapshots/2/12/s-30"], parentSnapshotPath="snapshots/2/12/s-30")
    for option, parents in (("false", ["snapshots/2/12/s-30"]), ("true", None)):
        command = asked(copy(source, target, options={"fullSnapshot": Secret(option)}))
        assert isinstance(command, commands.Copy)
        assert isinstance(command.destination, SnapshotObjectTO)
        assert command.destination.parents == parents


def test_a_snapshot_is_taken_and_gone_back_to() -> None:
    taken = asked(wire("CreateObjectCommand-snapshot"))
    assert isinstance(taken, commands.CreateObject)
    assert isinstance(taken.data, SnapshotObjectTO)
    assert taken.data.volume is not None
    assert taken.data.volume.path == "3f0a7c55-6c1e-4a58-8d5f-7b1b8f2b6d01"
    reverted = asked(wire("RevertSnapshotCommand"))
    assert isinstance(reverted, commands.RevertSnapshot)
    assert reverted.snapshot.path == "3f0a7c55-6c1e-4a58-8d5f-7b1b8f2b6d01/snap-31"
    with pytest.raises(InvalidReference):
        asked(RevertSnapshotCommand())


def test_what_is_deleted_from_an_image_store_is_named_exactly() -> None:
    backup = asked(DeleteCommand(data=snapshot(S3, "/snapshots/2/12/s-31/")))
    assert backup == commands.Delete(data=snapshot(S3, "snapshots/2/12/s-31"), merge=True)
    image = asked(DeleteCommand(data=template(S3, "template/tmpl/2/201/u/a.qcow2")))
    assert image == commands.Delete(data=template(S3, "template/tmpl/2/201/u/a.qcow2"))
    folder = asked(wire("DeleteSnapshotsDirCommand"))
    assert isinstance(folder, commands.Delete)
    assert (folder.data.type, folder.data.path) == ("volume", "snapshots/2/12")
    for path in (None, "", "/", "template", "template/tmpl", "snapshots/2/"):
        with pytest.raises(InvalidReference, match="nothing was deleted"):
            asked(DeleteCommand(data=template(S3, path)))
    assert asked(DeleteCommand(data=volume(POOL, "v"))) == commands.Delete(data=volume(POOL, "v"))


def test_a_volume_is_resized_by_path_and_pool() -> None:
    given = wire("ResizeVolumeCommand")
    command = asked(given)
    assert isinstance(command, commands.ResizeVolume)
    assert (command.newSize, command.shrinkOk, command.volume.store.storeType) == (42949672960, False, "primary")
    assert command.volume.passphrase == Secret("\x01\x02\x03")
    assert success(given, newSize=42949672960) == ResizeVolumeAnswer(result=True, newSize=42949672960)


@pytest.mark.parametrize("name", ["MigrateVolumeCommand", "MigrateVolumeCommand-managed"])
def test_a_move(name: str) -> None:
    command = wire(name)
    moved = asked(command)
    assert isinstance(moved, commands.MigrateVolume)
    assert (moved.source.path, uuid_of(moved.source)) == (
        "3f0a7c55-6c1e-4a58-8d5f-7b1b8f2b6d01",
        "9d1b3c5e-2f6a-4b7c-8d9e-0a1b2c3d4e5f",
    )
    assert uuid_of(moved.destination) == "pool-2"
    answer = success(command, newData=volume(OTHER, "new"))
    assert isinstance(answer, MigrateVolumeAnswer)
    assert (answer.result, answer.volumePath) == (True, "new")


def test_a_direct_download_is_a_copy_from_a_url() -> None:
    wanted = wire("HttpDirectDownloadCommand")
    with pytest.raises(OperationUnsupported, match="headers"):
        asked(wanted)
    plain = wanted.model_copy(update={"headers": {}})
    command = asked(plain)
    assert isinstance(command, commands.Copy)
    assert command.source.store == ImageStoreTO(uri=Secret("https://images.example.org"))
    assert isinstance(command.source, TemplateObjectTO)
    assert (command.source.path, command.source.checksum) == ("debian.qcow2", "{SHA-256}" + "ab" * 32)
    assert uuid_of(command.destination) == "9d1b3c5e-2f6a-4b7c-8d9e-0a1b2c3d4e5f"
    assert success(plain, newData=template(POOL, "t", size=9)) == DirectDownloadAnswer(
        result=True, templateSize=9, installPath="t"
    )
    answer = failed(plain, "Unavailable", "yes")
    assert isinstance(answer, DirectDownloadAnswer)
    assert answer.retryOnOtherHosts
    nfs = asked(wire("NfsDirectDownloadCommand"))
    assert isinstance(nfs, commands.Copy)
    assert isinstance(nfs.source.store, NfsTO)
    assert nfs.source.store.url == Secret("nfs://10.0.0.9/export/images")


def test_a_direct_download_without_a_datum_is_named_after_the_template() -> None:
    plain = wire("HttpDirectDownloadCommand").model_copy(update={"headers": {}, "destData": None})
    command = asked(plain)
    assert isinstance(command, commands.Copy)
    assert command.destination.uuid == "template-201"


@pytest.mark.parametrize(
    "url", ["https://h/a?b", "https://h/", "ftp://h/a", "file:///etc/passwd", "nothing", "https://h/a#b"]
)
def test_urls_that_name_no_object_are_refused(url: str) -> None:
    with pytest.raises(StorageError):
        downloaded(Secret(url))


def test_a_download_of_old_versions_is_a_copy_too() -> None:
    command = asked(wire("PrimaryStorageDownloadCommand"))
    assert isinstance(command, commands.Copy)
    assert (command.source.path, command.destination.path) == ("template/tmpl/1/3/x.qcow2", "routing-3")


# ---------------------------------------------------------------------------------------------------- pools and stores


def test_pools_come_and_go() -> None:
    joined = wire("ModifyStoragePoolCommand")
    command = asked(joined)
    assert isinstance(command, commands.ModifyStoragePool)
    assert command.add
    assert (command.pool.uuid, command.pool.poolType, command.pool.path) == (
        "9d1b3c5e-2f6a-4b7c-8d9e-0a1b2c3d4e5f",
        "NetworkFilesystem",
        "/export/primary",
    )
    info = PoolInfo(uuid="p", poolType="NetworkFilesystem", localPath="/mnt/p", capacityBytes=10, availableBytes=4)
    answer = success(joined, poolInfo=info)
    assert isinstance(answer, ModifyStoragePoolAnswer)
    assert answer.poolInfo is not None
    assert (answer.poolInfo.capacityBytes, answer.poolInfo.availableBytes) == (10, 4)
    left = joined.model_copy(update={"add": False})
    assert success(left) == WireAnswer(result=True)
    assert isinstance(asked(wire("CreateStoragePoolCommand")), commands.CreateStoragePool)
    assert isinstance(asked(wire("DeleteStoragePoolCommand")), commands.DeleteStoragePool)


def test_statistics_are_of_a_store_or_of_a_pool() -> None:
    pool, store = wire("GetStorageStatsCommand-pool"), wire("GetStorageStatsCommand-store")
    of_pool, of_store = asked(pool), asked(store)
    assert isinstance(of_pool, commands.GetStorageStats)
    assert isinstance(of_store, commands.GetStorageStats)
    assert (of_pool.store.storeType, of_store.store.storeType) == ("primary", "nfs")
    assert success(pool, usedBytes=3, capacityBytes=9) == GetStorageStatsAnswer(
        result=True, usedBytes=3, capacityBytes=9
    )
    unbounded = success(store, usedBytes=3)
    assert isinstance(unbounded, GetStorageStatsAnswer)
    assert unbounded.capacityBytes == 2**63 - 1


def test_statistics_of_volumes_use_what_is_known_of_their_pool() -> None:
    command = wire("GetVolumeStatsCommand")
    known = PrimaryDataStoreTO(uuid="9d1b3c5e-2f6a-4b7c-8d9e-0a1b2c3d4e5f", poolType="Filesystem", path="/srv/p")
    for pools in ({}, {known.uuid: known}):
        route = commands_stores.volume_stats(pools.get)
        found = route.asks(command)
        assert isinstance(found, commands.GetVolumeStats)
        assert found.pool.path == ("/srv/p" if pools else None)
    answer = route.told(command, ended(volumeStats={"v": VolumeStats(physicalSize=1, virtualSize=2)}))
    assert isinstance(answer, GetVolumeStatsAnswer)
    assert answer.volumeStats["v"].model_dump() == {"volumeUuid": "v", "physicalsize": 1, "virtualSize": 2}


def test_image_stores_are_tried_listed_and_digested() -> None:
    setup = wire("SecStorageSetupCommand")
    tried = asked(setup)
    assert isinstance(tried, commands.ListDataStoreObjects)
    assert (tried.pageSize, tried.store.storeType) == (1, "s3")
    assert getattr(success(setup), "directory", "") is None
    nfs = setup.model_copy(update={"store": NFS})
    named = UUID(getattr(success(nfs), "directory", ""))
    assert named.version == 3
    assert success(nfs) == success(nfs)
    listing = asked(wire("ListDataStoreObjectsCommand"))
    assert isinstance(listing, commands.ListDataStoreObjects)
    assert (listing.path, listing.pageSize) == ("template", 50)
    checksum = wire("ComputeChecksumCommand")
    digest = asked(checksum)
    assert isinstance(digest, commands.ComputeChecksum)
    assert digest.algorithm == "SHA256"
    assert success(checksum, details="ab").details == "ab"


def test_only_keys_of_templates_are_templates() -> None:
    found = templates(
        [
            ("template/tmpl/2/201/201-2-aaaa/debian.qcow2", 7),
            ("template/tmpl/2/201/stray", 1),
            ("template/tmpl/2/201/u/below/it", 1),
        ]
    )
    assert set(found) == {"201-2-aaaa"}
    assert found["201-2-aaaa"].model_dump() == {
        "templateName": "201-2-aaaa",
        "installPath": "template/tmpl/2/201/201-2-aaaa/debian.qcow2",
        "size": 7,
        "physicalSize": 7,
        "id": 201,
        "isPublic": True,
        "isCorrupted": False,
    }
    kept = volumes([("volumes/2/12/v.qcow2", 7), ("volumes/2/notanumber/v", 1), ("volumes/2/12", 1)])
    assert {key: (prop.id, prop.size) for key, prop in kept.items()} == {"12": (12, 7)}


# ----------------------------------------------------------------------------------------------------------- downloads


def plain_download(**changed: Any) -> DownloadCommand:
    command = wire("DownloadCommand").model_copy(update={"auth": None, "proxy": None, **changed})
    assert isinstance(command, DownloadCommand)
    return command


def test_a_download_is_a_copy_to_the_image_store() -> None:
    command = copy_of(plain_download())
    assert isinstance(command, commands.Copy)
    assert (command.source.path, command.destination.path) == (
        "debian.qcow2",
        "template/tmpl/2/201/201-2-aaaa/debian.qcow2",
    )
    assert command.destination.store.storeType == "s3"
    odd = copy_of(plain_download(url=Secret("https://h/a%20b")))
    assert isinstance(odd, commands.Copy)
    assert odd.destination.path == "template/tmpl/2/201/201-2-aaaa/201.qcow2"
    of_volume = copy_of(plain_download(resourceType="VOLUME"))
    assert isinstance(of_volume, commands.Copy)
    assert (of_volume.source.type, of_volume.destination.type) == ("volume", "volume")


@pytest.mark.parametrize(
    "command",
    [
        wire("DownloadCommand"),  # with user and password
        plain_download(proxy=wire("DownloadCommand").proxy),  # type: ignore[attr-defined]
        plain_download(url=None),
        plain_download(store=None),
        plain_download(installPath="/"),
        plain_download(resourceType="SNAPSHOT"),
    ],
)
def test_downloads_that_cannot_be_are_refused(command: DownloadCommand) -> None:
    with pytest.raises(StorageError):
        copy_of(command)


def test_a_download_is_told_as_it_stands() -> None:
    command = plain_download()
    running = Answer(id="j", command="Copy", state=State.RUNNING, accepted_at=1)
    half = ProgressReport(phase="copy", bytes=50, total=100)
    assert told(command, running).downloadPct == 0
    assert told(command, running.model_copy(update={"progress": half})) == DownloadAnswer(
        result=True, jobId="j", downloadStatus="DOWNLOAD_IN_PROGRESS", downloadPct=50
    )
    done = told(command, ended(newData=template(S3, "k", size=10, physicalSize=4)))
    assert (done.downloadStatus, done.downloadPct, done.installPath) == ("DOWNLOADED", 100, "k")
    assert (done.templateSize, done.templatePhySicalSize, done.checkSum) == (10, 4, command.checksum)
    failure = Failure(kind="NotFound", retryable="no", message="there is no such object")
    broken = running.model_copy(update={"state": State.FAILED, "error": failure})
    assert (told(command, broken).downloadStatus, told(command, broken).errorString) == (
        "DOWNLOAD_ERROR",
        "NotFound: there is no such object",
    )
    assert told(command, running.model_copy(update={"state": State.CANCELLED})).downloadStatus == "ABANDONED"


@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        ("XenServer", "XenServer", HypervisorType.XEN),
        ("KVM", None, HypervisorType.KVM),
        (None, "XenServer", HypervisorType.XEN),
        ("Any", "KVM", HypervisorType.KVM),
        ("None", None, None),
        ("VMware", "VMware", None),
        ("KVM", "XenServer", None),
    ],
)
def test_images_are_for_the_hypervisor_that_the_server_names(
    source: str | None, destination: str | None, expected: HypervisorType | None
) -> None:
    store = PrimaryDataStoreTO(uuid="p", poolType="Filesystem", path="/p")
    images = [VolumeObjectTO(path="v", hypervisorType=name, dataStore=store) for name in (source, destination)]
    assert hypervisor_of(*images) is expected


# ------------------------------------------------------------------------------------------------ what is not done


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_done_or_refused_with_the_class_that_the_server_waits_for(name: str) -> None:
    command = message(name)
    if not isinstance(command, WireCommand):
        return
    if type(command) in ROUTES:
        answer = failed(command)
        assert "no room" in (answer.details or "")
    else:
        found = refused(command)
        if found is None:
            return
        answer = found
        assert answer.details
    assert type(answer) is type(command).answered_by
    assert not answer.result


def test_the_page_names_every_command_that_is_done_or_refused() -> None:
    named = {name for row in Page.of("docs/cloudstack.md").section("What is answered").rows() for name in code(row[0])}
    answered = {kind.java.rpartition(".")[2] for kind in (*ROUTES, *REFUSED)}
    assert answered - named == set()
    assert named - answered <= {
        "GetVolumeStatsCommand",
        "CheckHealthCommand",
        "CheckNetworkCommand",
        "GetHostStatsCommand",
        "DownloadCommand",
        "DownloadProgressCommand",
        "ListTemplateCommand",
        "ListVolumeCommand",
        "UploadStatusCommand",
        # to nobody in particular, and answered by `control`
        "CleanupNetworkRulesCmd",
        "ConsoleAccessAuthenticationCommand",
        "ConsoleProxyLoadReportCommand",
    }


def test_nothing_is_both_done_and_refused() -> None:
    assert set(REFUSED) & set(ROUTES) == set()
    assert unsupported("x.Y", "Routing").result is False


# ------------------------------------------------------------------------------------------------------------- guests


def test_a_volume_for_a_guest() -> None:
    disk = DiskTO(data=volume(POOL, "v"), type="DATADISK", diskSeq=2)
    command = AttachCommand(disk=disk, vmName="i-2-7-VM")
    assert asked(command) == commands.Attach(disk=disk, vmName="i-2-7-VM")
    answer = success(command, disk={**disk.model_dump(), "path": "v", "diskSeq": 3})
    assert isinstance(answer, AttachAnswer)
    assert answer.disk is not None
    assert (answer.disk.diskSeq, answer.disk.path, answer.disk.type) == (3, "v", "DATADISK")
    assert answer.disk.data == VolumeMade(path="v")


@pytest.mark.parametrize("kind", [DettachCommand, DetachCommand])
def test_a_volume_back_from_a_guest(kind: type[DettachCommand]) -> None:
    disk = DiskTO(data=volume(POOL, "v"), type="ROOT")
    command = kind(disk=disk, vmName="vm", waitDetachDevice=1500)
    assert asked(command) == commands.Dettach(disk=disk, vmName="vm", waitDetachDevice=1500)
    answer = success(command, disk=disk.model_dump())
    assert type(answer) is kind.answered_by


def test_an_iso_has_to_be_in_the_guests_drive() -> None:
    """A file of the host would be no use to a server that believes that the guest has it."""
    disk = DiskTO(data=template(POOL, "a.iso"), type="ISO")
    assert asked(AttachCommand(disk=disk, vmName="vm")) == commands.Attach(disk=disk, vmName="vm", insert=True)


def test_no_guest_no_disk() -> None:
    disk = DiskTO(data=volume(POOL, "v"), type="DATADISK")
    for command in (AttachCommand(disk=disk), DettachCommand(disk=disk, vmName="")):
        with pytest.raises(InvalidReference, match="vmName"):
            asked(command)
    with pytest.raises(ValueError, match="with a volume"):
        asked(AttachCommand(disk=DiskTO(data=template(POOL, "t"), type="DATADISK"), vmName="vm"))


def test_objects_are_introduced_and_forgotten() -> None:
    data = volume(POOL, "v")
    command = IntroduceObjectCmd(dataTO=data)
    assert asked(command) == commands.IntroduceObject(data=data)
    made = success(command, data={**data.model_dump(), "size": 4096, "format": "VHD"})
    assert isinstance(made, IntroduceObjectAnswer)
    assert made.dataTO == VolumeMade(path="v", size=4096, format="VHD")
    assert asked(ForgetObjectCmd(dataTO=data)) == commands.ForgetObject(data=data)
    assert success(ForgetObjectCmd(dataTO=data)).result


def test_details_of_pools_come_along() -> None:
    """What makes an SR may be in either of the two, and is secret."""
    filer = StorageFilerTO(uuid="p", type="IscsiLUN", host="h", path="/iqn/0")
    one, other = {"SCSIid": Secret("36")}, {"chapInitiatorSecret": Secret("ch4p")}
    created = asked(CreateStoragePoolCommand.model_validate({"pool": filer, "details": one, "_details": other}))
    assert isinstance(created, commands.CreateStoragePool)
    assert created.pool.details == {**one, **other}
    assert "ch4p" not in created.model_dump_json()
    modified = asked(ModifyStoragePoolCommand(add=True, pool=filer, details=one))
    assert isinstance(modified, commands.ModifyStoragePool)
    assert modified.pool.details == one
