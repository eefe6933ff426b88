"""Stores that are only names: what is done in place of what a server orders, and the file that the agents of a zone share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.commands import Answer, Outcome, State
from agent.security import SecuritySetup
from agent.transports.cloudstack.commands_staging import (
    Instead,
    Keep,
    Remember,
    Say,
    found,
    kept,
    kept_told,
    meaning_of,
    remembered,
    require_same,
)
from agent.transports.cloudstack.models import WireAnswer, WireCommand
from agent.transports.cloudstack.models_images import (
    ComputeChecksumCommand,
    DeleteSnapshotsDirCommand,
    SecStorageSetupCommand,
)
from agent.transports.cloudstack.models_objects import SnapshotMade, TemplateMade, VolumeMade
from agent.transports.cloudstack.models_pools import GetStorageStatsAnswer, GetStorageStatsCommand
from agent.transports.cloudstack.models_storage import (
    CopyCmdAnswer,
    CopyCommand,
    CreateObjectCommand,
    DeleteCommand,
    RevertSnapshotCommand,
)
from agent.transports.cloudstack.staging_file import Zone, read_zone
from agent.transports.cloudstack.staging_paths import Kind, Staged, path_of, staged_of, store_mark
from hypervisors.contract import OperationUnsupported
from stores.errors import InvalidReference, NotFound, ObjectChanged, PolicyRefused, StorageError, TooLarge
from stores.secret import Secret
from stores.to import (
    S3TO,
    DataTO,
    ImageFormat,
    NfsTO,
    PrimaryDataStoreTO,
    SnapshotObjectTO,
    TemplateObjectTO,
    VolumeObjectTO,
)

POOL = PrimaryDataStoreTO(uuid="p-1", poolType="NetworkFilesystem")
ASKED = S3TO(bucketName="b", endPoint="https://s3.example.org", accessKey="SERVER", secretKey=Secret("s3rver"))
OURS = S3TO(bucketName="b", endPoint="https://s3.example.org", accessKey="AGENT", secretKey=Secret("ag3nt"))
SECOND = S3TO(bucketName="c", endPoint="https://s3.example.org", accessKey="AGENT", secretKey=Secret("ag3nt"))
STRANGE = S3TO(bucketName="b", endPoint="https://other.example.org", accessKey="A", secretKey=Secret("b"))
NAME = NfsTO.model_validate({"_url": "nfs://staging.invalid/s3", "_role": "ImageCache"})
REAL = NfsTO.model_validate({"_url": "nfs://nfs.example.org/cache", "_role": "ImageCache"})


def store_id(to: S3TO) -> str:
    return f"s3:{to.endPoint}/{to.bucketName}"


MARK = store_mark(store_id(OURS))
ZONE = Zone(Secret("k" * 32), {MARK: OURS, store_mark(store_id(SECOND)): SECOND}, {"staging.invalid/s3"}, store_id)
KEY = "template/tmpl/2/201/201-2-aaaa/debian.qcow2"
BACKUP = "snapshots/2/12/s-31"


def template(store: Any, path: str | None = None, **fields: Any) -> TemplateObjectTO:
    return TemplateObjectTO(path=path, imageDataStore=store, **fields)


def volume(store: Any, path: str | None = None, **fields: Any) -> VolumeObjectTO:
    return VolumeObjectTO(path=path, dataStore=store, **fields)


def snapshot(store: Any, path: str | None = None, **fields: Any) -> SnapshotObjectTO:
    return SnapshotObjectTO(path=path, dataStore=store, **fields)


def copy(source: DataTO, destination: DataTO, **fields: Any) -> CopyCommand:
    return CopyCommand(srcTO=source, destTO=destination, **fields)


def referring(key: str = KEY, zone: Zone = ZONE, **fields: Any) -> str:
    return path_of(Staged(Kind.REFERENCE, MARK, key, **fields), zone.key)


def own(key: str = "staging/x/volumes/2/12/v.qcow2") -> str:
    return path_of(Staged(Kind.OWN, MARK, key), ZONE.key)


# ---------------------------------------------------------------------------------------------------- not ours at all


@pytest.mark.parametrize(
    "command",
    [
        copy(template(ASKED, KEY), template(POOL, "t")),
        copy(template(REAL, "template/tmpl/2/201/a.qcow2"), template(POOL, "t")),
        copy(template(ASKED, KEY), template(REAL, "template/tmpl/2/201")),
        copy(snapshot(POOL, "v/s"), snapshot(ASKED, "snapshots/2/12"), cacheTO=snapshot(NAME, "snapshots/2/12")),
        copy(template(NfsTO.model_validate({"_url": "nfs://staging.invalid/s3"}), "t"), template(POOL, "t")),
        copy(
            template(NfsTO.model_validate({"_url": "cifs://staging.invalid/s3", "_role": "ImageCache"})), template(POOL)
        ),
        copy(template(NfsTO.model_validate({"_url": "nfs://[/", "_role": "ImageCache"})), template(POOL)),
        DeleteCommand(data=template(REAL, referring())),
        CreateObjectCommand(data=volume(POOL, "v")),
        GetStorageStatsCommand(store=REAL),
        GetStorageStatsCommand(id="p-1", pooltype="Filesystem"),
        SecStorageSetupCommand(store=REAL),
        RevertSnapshotCommand(data=snapshot(ASKED, BACKUP)),
    ],
)
def test_what_is_about_other_stores_goes_its_ordinary_way(command: WireCommand) -> None:
    """A cache that is a directory as well, and a backup that goes straight to S3 whatever cache it was offered."""
    assert meaning_of(command, ZONE) is None


# ------------------------------------------------------------------------------------------------------- S3 -> a name


@pytest.mark.parametrize(
    ("source", "made"),
    [
        (
            template(ASKED, KEY, size=10 << 30, format=ImageFormat.QCOW2),
            TemplateMade(size=10 << 30, physicalSize=700, format="QCOW2"),
        ),
        (template(ASKED, KEY), TemplateMade(size=700, physicalSize=700)),
        (volume(ASKED, "volumes/2/12/v.qcow2", size=5), VolumeMade(size=5)),
        (volume(ASKED, "volumes/2/12/v.qcow2"), VolumeMade(size=700)),
        (snapshot(ASKED, BACKUP), SnapshotMade(physicalSize=700)),
    ],
)
def test_an_object_in_s3_is_looked_at_and_gets_a_path(source: DataTO, made: Any) -> None:
    """With the keys that the file has, since these are the ones that it will be read with."""
    command = copy(source, source.model_copy(update={_field(source): NAME, "path": "somewhere"}))
    assert meaning_of(command, ZONE) == Remember(command, OURS, source.path or "")
    staged = Staged(Kind.REFERENCE, MARK, source.path or "", 700, 5)
    answer = remembered(command, staged, ZONE)
    assert isinstance(answer, CopyCmdAnswer)
    assert answer.result
    assert answer.newData is not None
    assert answer.newData.model_copy(update={"path": None}) == made
    assert staged_of(str(answer.newData.path), ZONE.key) == staged


def _field(data: DataTO) -> str:
    return "imageDataStore" if data.type == "template" else "dataStore"


def test_a_store_that_could_not_be_read_later_is_refused_at_once() -> None:
    with pytest.raises(PolicyRefused, match=r"not in cloudstack\.staging_file"):
        meaning_of(copy(template(STRANGE, KEY), template(NAME, "template/tmpl/2/201")), ZONE)


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        (template(REAL, "template/tmpl/2/201/a.qcow2"), template(NAME, "template/tmpl/2/201")),
        (template(NAME, referring()), template(NAME, "template/tmpl/2/202")),
        (template(POOL, "t"), template(NAME, "template/tmpl/2/201")),
        (snapshot(POOL, "v/s"), snapshot(NAME, "snapshots/2/12")),
        (volume(POOL, "v"), snapshot(NAME, "snapshots/2/12")),
        (template(ASKED, KEY), volume(NAME, "volumes/2/12")),
        (template(ASKED), template(NAME, "template/tmpl/2/201")),
    ],
)
def test_what_else_is_to_be_put_there_is_refused(source: DataTO, destination: DataTO) -> None:
    with pytest.raises(OperationUnsupported, match="nothing was copied"):
        meaning_of(copy(source, destination), ZONE)


def listing(*objects: tuple[str, int, int, bool]) -> Answer:
    paths, sizes, modified, folders = (list(column) for column in zip(*objects, strict=True)) if objects else ([],) * 4
    outcome = Outcome.model_validate({"paths": paths, "sizes": sizes, "lastModified": modified, "isDirs": folders})
    return Answer.final("c", "List", State.SUCCEEDED, accepted_at=1, started_at=1, finished_at=2, outcome=outcome)


def test_an_object_is_one_of_exactly_that_name() -> None:
    assert found(listing((KEY, 7, 8, False)), OURS, KEY, ZONE) == Staged(Kind.REFERENCE, MARK, KEY, 7, 8)
    for others in ([], [(KEY, 0, 0, True)], [(f"{KEY}/x", 7, 8, False)]):
        with pytest.raises(NotFound):
            found(listing(*others), OURS, KEY, ZONE)


def test_another_object_of_the_same_name_is_not_taken_for_the_first() -> None:
    staged = Staged(Kind.REFERENCE, MARK, KEY, 7, 8)
    require_same(staged, Staged(Kind.REFERENCE, MARK, KEY, 7, 8))
    for size, modified in ((6, 8), (7, 9)):
        with pytest.raises(ObjectChanged):
            require_same(staged, Staged(Kind.REFERENCE, MARK, KEY, size, modified))


# ------------------------------------------------------------------------------------------------------- out of a name


def test_a_template_and_a_volume_come_out_of_s3_as_they_were_staged() -> None:
    for source in (
        template(NAME, referring(size=7, modified=8), id=201),
        volume(NAME, "/" + referring(size=7, modified=8)),
    ):
        command = copy(source, template(POOL, "t"))
        there = source.model_copy(update={"path": KEY, _field(source): OURS})
        assert meaning_of(command, ZONE) == Instead(
            command.model_copy(update={"srcTO": there}), (OURS, Staged(Kind.REFERENCE, MARK, KEY, 7, 8))
        )


def test_a_backup_comes_with_what_it_builds_on() -> None:
    """What it is its manifest says, so nothing is compared."""
    first = "snapshots/2/12/s-30"
    source = snapshot(NAME, referring(BACKUP), parents=[referring(first)], parentSnapshotPath=referring(first))
    command = copy(source, volume(POOL, "v"))
    there = snapshot(OURS, BACKUP, parents=[first])
    assert meaning_of(command, ZONE) == Instead(command.model_copy(update={"srcTO": there}))
    mixed = copy(snapshot(NAME, referring(BACKUP), parents=[referring(first), first]), volume(POOL, "v"))
    meaning = meaning_of(mixed, ZONE)
    assert isinstance(meaning, Instead)
    assert meaning.command == mixed.model_copy(update={"srcTO": snapshot(OURS, BACKUP)})


@pytest.mark.parametrize("path", [None, "", "template/tmpl/2/201", KEY, f"{KEY}x"])
def test_what_nobody_staged_is_not_found_by_guessing(path: str | None) -> None:
    with pytest.raises(InvalidReference, match="no agent of this zone made it"):
        meaning_of(copy(template(NAME, path), template(POOL, "t")), ZONE)


def test_a_path_of_another_zone_is_refused_wherever_it_comes() -> None:
    other = Zone(Secret("o" * 32), ZONE.stores, ZONE.exports, store_id)
    path = referring(zone=other)
    for command in (
        copy(template(NAME, path), template(POOL, "t")),
        copy(snapshot(NAME, referring(BACKUP), parents=[path]), volume(POOL, "v")),
        DeleteCommand(data=template(NAME, path)),
        RevertSnapshotCommand(data=snapshot(NAME, path)),
        ComputeChecksumCommand(store=NAME, templatePath=path),
    ):
        with pytest.raises(InvalidReference, match="same key"):
            meaning_of(command, ZONE)


def test_a_store_that_went_from_the_file_is_named_as_the_reason() -> None:
    without = Zone(ZONE.key, {store_mark(store_id(SECOND)): SECOND}, ZONE.exports, store_id)
    with pytest.raises(PolicyRefused, match=r"cloudstack\.staging_file"):
        meaning_of(copy(template(NAME, referring()), template(POOL, "t")), without)


def test_a_digest_and_a_revert_are_of_the_object() -> None:
    digest = meaning_of(ComputeChecksumCommand(store=NAME, templatePath=referring()), ZONE)
    assert digest == Instead(ComputeChecksumCommand(store=OURS, templatePath=KEY))
    revert = meaning_of(RevertSnapshotCommand(data=snapshot(NAME, referring(BACKUP))), ZONE)
    assert revert == Instead(RevertSnapshotCommand(data=snapshot(OURS, BACKUP)))


# ------------------------------------------------------------------------------------------------------ pool -> a name


@pytest.mark.parametrize(
    "destination", [volume(NAME, "volumes/2/12", uuid="v-uuid"), template(NAME, "/template/tmpl/2/9/", uuid="t-9")]
)
def test_a_volume_goes_into_an_object_of_its_own(destination: DataTO) -> None:
    command = copy(volume(POOL, "v"), destination)
    assert meaning_of(command, ZONE) == Keep(command)
    asked = kept(command, "f1", ZONE)
    assert asked.srcTO == command.srcTO
    assert asked.destTO.store == OURS  # the first of the file
    assert asked.destTO.path == f"staging/f1/{(destination.path or '').strip('/')}"
    key = f"{asked.destTO.path}/{destination.uuid}.qcow2"
    answer = kept_told(CopyCmdAnswer(result=True, newData=VolumeMade(path=key, size=5)), ZONE)
    assert isinstance(answer, CopyCmdAnswer)
    assert answer.newData is not None
    assert staged_of(str(answer.newData.path), ZONE.key) == Staged(Kind.OWN, MARK, key)


def test_a_failed_copy_stays_one() -> None:
    failure = CopyCmdAnswer(details="no room")
    assert kept_told(failure, ZONE) is failure


def test_a_path_that_would_be_too_long_is_said_before_anything_is_copied() -> None:
    with pytest.raises(TooLarge):
        kept(copy(volume(POOL, "v"), volume(NAME, "volumes/2/12/" + "x" * 200, uuid="v")), "f1", ZONE)


def test_what_was_made_for_a_path_comes_out_of_it_and_is_not_compared() -> None:
    source = volume(NAME, own())
    command = copy(source, volume(ASKED, "volumes/2/12"))
    there = volume(OURS, "staging/x/volumes/2/12/v.qcow2")
    assert meaning_of(command, ZONE) == Instead(command.model_copy(update={"srcTO": there}))


# ------------------------------------------------------------------------------------------------------------ deleting


@pytest.mark.parametrize("path", [None, "template/tmpl/2/201", KEY, referring()])
def test_where_nothing_was_kept_nothing_is_deleted(path: str | None) -> None:
    """Above all not the object that the path stands for."""
    meaning = meaning_of(DeleteCommand(data=template(NAME, path)), ZONE)
    assert isinstance(meaning, Say)
    assert meaning.answer.result


def test_what_was_made_for_a_path_goes_with_it() -> None:
    meaning = meaning_of(DeleteCommand(data=volume(NAME, own())), ZONE)
    assert meaning == Instead(DeleteCommand(data=volume(OURS, "staging/x/volumes/2/12/v.qcow2")))


# ----------------------------------------------------------------------------------------------------- the store itself


def test_the_store_is_there_and_never_full() -> None:
    stats = meaning_of(GetStorageStatsCommand(store=NAME), ZONE)
    assert isinstance(stats, Say)
    assert isinstance(stats.answer, GetStorageStatsAnswer)
    assert (stats.answer.usedBytes, stats.answer.capacityBytes) == (0, (1 << 63) - 1)
    for command in (
        SecStorageSetupCommand(store=NAME),
        DeleteSnapshotsDirCommand(store=NAME, directory="snapshots/2/12"),
    ):
        meaning = meaning_of(command, ZONE)
        assert isinstance(meaning, Say)
        assert isinstance(meaning.answer, WireAnswer)
        assert meaning.answer.result


# ----------------------------------------------------------------------------------------------------------- all of it


paths = (
    st.none()
    | st.sampled_from(
        ["", "/", KEY, referring(), own(), f"{referring()}/x", "../../etc/passwd", "a/s3~/b", "a/s3~" + "A" * 55 + "/b"]
    )
    | st.text()
)
places = st.sampled_from([POOL, ASKED, STRANGE, NAME, REAL])
anything = st.one_of(
    st.builds(template, places, paths, uuid=paths, size=st.none() | st.integers()),
    st.builds(volume, places, paths, uuid=paths),
    st.builds(
        snapshot, places, paths, parents=st.none() | st.lists(paths.filter(lambda path: path is not None), max_size=3)
    ),
)


@given(source=anything, destination=anything)
@settings(max_examples=300, deadline=None)
def test_any_copy_has_a_meaning_or_is_refused(source: DataTO, destination: DataTO) -> None:
    """What is done instead names no store that is only a name, and reads nothing but what paths of ours stand for."""
    try:
        meaning = meaning_of(copy(source, destination), ZONE)
        if isinstance(meaning, Keep):
            kept(meaning.command, "f1", ZONE)
    except StorageError:
        return
    match meaning:
        case None:
            assert not ZONE.only_a_name(source.store)
            assert not ZONE.only_a_name(destination.store)
        case Instead(CopyCommand(srcTO=there)):
            assert there.store == OURS
            assert there.path in (KEY, "staging/x/volumes/2/12/v.qcow2")
        case Remember(_, store, key):
            assert (store, key) == (OURS, (source.path or "").strip("/"))


@given(data=anything)
@settings(max_examples=200, deadline=None)
def test_any_deletion_is_of_what_was_made_for_its_path(data: DataTO) -> None:
    try:
        meaning = meaning_of(DeleteCommand(data=data), ZONE)
    except StorageError:
        return
    if isinstance(meaning, Instead):
        assert isinstance(meaning.command, DeleteCommand)
        assert (meaning.command.data.store, meaning.command.data.path) == (OURS, "staging/x/volumes/2/12/v.qcow2")


# ------------------------------------------------------------------------------------------------------------ the file


FILE = """
key = "0123456789abcdef0123456789abcdef"

[[stores]]
endPoint = "https://s3.example.org"
bucketName = "b"
accessKey = "AGENT"
secretKey = "ag3nt"

[[stores]]
endPoint = "https://s3.example.org"
bucketName = "c"
"""


def test_the_file(tmp_path: Path) -> None:
    file = tmp_path / "staging.toml"
    file.write_text(FILE)
    zone = read_zone(file, ["nfs://staging.invalid//s3/"], store_id)
    assert list(zone.stores.values()) == [OURS, SECOND.model_copy(update={"accessKey": None, "secretKey": None})]
    assert zone.only_a_name(NAME)
    assert not zone.only_a_name(REAL)
    assert "0123" not in repr(zone)
    assert "ag3nt" not in repr(zone)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("key = ", "not TOML"),
        ("\0", "not TOML"),
        ('key = "short"\n' + FILE.split("\n", 2)[2], "at least 32"),
        (FILE.split("[[stores]]")[0], "stores: Field required"),
        (FILE.split("[[stores]]")[0] + "stores = []\n", "at least 1"),
        (FILE.replace("bucketName", "bucket"), "bucketName: Field required"),
        (FILE.replace("key =", "keys ="), "key: Field required"),
        (FILE + "secretkey = 's3cr3t'\n", "Extra inputs"),
    ],
)
def test_a_file_that_cannot_be_used_is_not_shown(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "staging.toml"
    file.write_text(text)
    with pytest.raises(SecuritySetup, match=says) as raised:
        read_zone(file, [], store_id)
    assert "0123456789" not in str(raised.value)
    assert "ag3nt" not in str(raised.value)


def test_a_store_that_cannot_be_one(tmp_path: Path) -> None:
    def refused(to: S3TO) -> str:
        raise InvalidReference("that is no bucket")

    file = tmp_path / "staging.toml"
    file.write_text(FILE)
    with pytest.raises(SecuritySetup, match="that is no bucket"):
        read_zone(file, [], refused)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SecuritySetup, match="No such file"):
        read_zone(tmp_path / "no", [], store_id)
