"""Which store a transfer object means, and in which form its objects come."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.backends.filesystem import FilesystemStore
from stores.backends.memory import MemoryStore
from stores.contract import ByteStream, DataStore, Kind, LocalPath, NbdExport, ObjectInfo, RangeReader
from stores.errors import (
    DeviceFault,
    InvalidReference,
    PolicyRefused,
    RequirementNotMet,
    StorageError,
    StoreUnsupported,
    Unavailable,
)
from stores.resolver import SUPPORTED, CacheUse, Resolver, Via, negotiate
from stores.secret import Secret
from stores.settings import SOCKET_NAME_LENGTH, SOCKET_PATH_LIMIT, StoreSettings, UrlSettings
from stores.to import S3TO, DataStoreTO, ImageStoreTO, NfsTO, PrimaryDataStoreTO
from stores.transfer.engine import TransferEngine
from tests.doubles.counting import Counting
from tests.doubles.faulty import Fail, FaultyStore
from tests.doubles.mounts import mounted_tmpfs
from tests.objects import content, read_stream, refs, sending

PATH, NBD, URL, RANGES, STREAM = (
    Kind.LOCAL_PATH,
    Kind.NBD_EXPORT,
    Kind.HTTP_URL,
    Kind.RANGE_READER,
    Kind.BYTE_STREAM,
)
DIRECTORY = frozenset({PATH, RANGES, STREAM})
OBJECTS = frozenset({RANGES, STREAM})
NO_RANGES = frozenset({STREAM})


# ------------------------------------------------------------------------------------------------- negotiation


@pytest.mark.parametrize(
    ("offered", "accepted", "ranges", "chosen", "via"),
    [
        # what is offered natively, in the order of who asks
        (OBJECTS, [RANGES, NBD], True, RANGES, Via.NATIVE),
        (OBJECTS, [STREAM, RANGES], True, STREAM, Via.NATIVE),
        (DIRECTORY, [PATH, Kind.RBD_IMAGE, URL, NBD], True, PATH, Via.NATIVE),
        (OBJECTS | {URL}, [PATH, URL, NBD], True, URL, Via.NATIVE),
        (OBJECTS | {NBD}, [NBD], False, NBD, Via.NATIVE),
        # native comes before the bridge, wherever it stands
        (OBJECTS, [NBD, STREAM], True, STREAM, Via.NATIVE),
        # the bridge
        (OBJECTS, [PATH, Kind.RBD_IMAGE, URL, NBD], True, NBD, Via.BRIDGE),
        (OBJECTS, [NBD, PATH], True, NBD, Via.BRIDGE),
        (OBJECTS, [PATH, NBD], True, NBD, Via.BRIDGE),
        # nothing
        (OBJECTS, [PATH, NBD], False, None, None),
        (NO_RANGES, [PATH, NBD], True, None, None),
        (OBJECTS, [PATH], True, None, None),
        (OBJECTS, [URL], True, None, None),
        (OBJECTS, [], True, None, None),
        (frozenset(), [NBD, STREAM], True, None, None),
    ],
)
def test_negotiation(
    offered: frozenset[Kind], accepted: Sequence[Kind], ranges: bool, chosen: Kind | None, via: Via | None
) -> None:
    outcome = negotiate("store-1", offered, accepted, ranges=ranges)
    assert (outcome.chosen, outcome.via) == (chosen, via)
    assert [reason.kind for reason in outcome.reasons] == list(accepted)
    assert [reason.kind for reason in outcome.reasons if reason.text.startswith("chosen")] == (
        [chosen] if chosen else []
    )


@given(st.frozensets(st.sampled_from(list(Kind))), st.lists(st.sampled_from(list(Kind)), unique=True), st.booleans())
def test_negotiation_chooses_what_is_accepted_and_can_be_had(
    offered: frozenset[Kind], accepted: list[Kind], ranges: bool
) -> None:
    outcome = negotiate("store-1", offered, accepted, ranges=ranges)
    native = [kind for kind in accepted if kind in offered]
    if native:
        assert (outcome.chosen, outcome.via) == (native[0], Via.NATIVE)
    elif ranges and NBD in accepted and RANGES in offered:
        assert (outcome.chosen, outcome.via) == (NBD, Via.BRIDGE)
    else:
        assert (outcome.chosen, outcome.via) == (None, None)
        refusal = outcome.refusal()
        assert refusal.details["accepted"] == [kind.value for kind in accepted]
        assert {str(kind) for kind in offered} == set(refusal.details["offered"])  # type: ignore[call-overload]
    assert all(reason.text for reason in outcome.reasons)


def test_reasons_say_why_for_each_kind() -> None:
    outcome = negotiate("s3:bucket", OBJECTS, [PATH, URL, NBD], ranges=True)
    assert {reason.kind: reason.text for reason in outcome.reasons} == {
        PATH: "not offered; only a cache could make it",
        URL: "not offered",
        NBD: "chosen: the bridge makes it of the store's ranges",
    }
    outcome = negotiate("pool", DIRECTORY, [RANGES, NBD, PATH], ranges=True)
    assert {reason.kind: reason.text for reason in outcome.reasons} == {
        RANGES: "chosen: the store offers it",
        NBD: "the bridge could make it of the store's ranges, but RangeReader is offered natively",
        PATH: "offered as well, but RangeReader is preferred",
    }


@pytest.mark.parametrize(
    ("offered", "accepted", "use", "chosen", "via"),
    [
        (OBJECTS, [PATH], CacheUse.NEEDED, PATH, Via.CACHE),
        (OBJECTS, [URL, PATH], CacheUse.NEEDED, PATH, Via.CACHE),
        (OBJECTS, [PATH, NBD], CacheUse.NEEDED, NBD, Via.BRIDGE),
        (OBJECTS, [PATH, RANGES], CacheUse.NEEDED, RANGES, Via.NATIVE),
        (NO_RANGES, [NBD, PATH], CacheUse.NEEDED, PATH, Via.CACHE),
        (OBJECTS, [URL], CacheUse.NEEDED, None, None),
        (OBJECTS, [RANGES, PATH], CacheUse.PREFERRED, RANGES, Via.CACHE),
        (OBJECTS | {URL}, [URL, NBD], CacheUse.PREFERRED, NBD, Via.CACHE),
        (OBJECTS | {URL}, [URL], CacheUse.PREFERRED, URL, Via.NATIVE),
    ],
)
def test_negotiation_with_a_cache(
    offered: frozenset[Kind], accepted: Sequence[Kind], use: CacheUse, chosen: Kind | None, via: Via | None
) -> None:
    outcome = negotiate("store-1", offered, accepted, ranges=True, cache=use)
    assert (outcome.chosen, outcome.via) == (chosen, via)
    assert [reason.kind for reason in outcome.reasons] == list(accepted)
    assert [reason.kind for reason in outcome.reasons if reason.text.startswith("chosen")] == (
        [chosen] if chosen else []
    )
    assert ("cache" in " ".join(reason.text for reason in outcome.reasons)) or via is not Via.CACHE


def test_refusal_names_what_was_needed_offered_and_missing() -> None:
    refusal = negotiate("s3:bucket", OBJECTS, [PATH], ranges=True).refusal()
    assert refusal.retry.value == "no"
    assert refusal.message == (
        "LocalPath is needed, and store s3:bucket offers ByteStream, RangeReader: "
        "a cache would have to make a local file of the object, and none is configured"
    )
    refusal = negotiate("s3:bucket", OBJECTS, [URL], ranges=True).refusal()
    assert "cache" not in refusal.message


# ---------------------------------------------------------------------------------------------- which store it is


@pytest.fixture
def settings(tmp_path: Path) -> StoreSettings:
    for name in ("pools", "mnt", "run", "secondary"):
        (tmp_path / name).mkdir()
    return StoreSettings(
        roots=(tmp_path / "pools",),
        mount_root=tmp_path / "mnt",
        nfs_mounts={"nfs://nfs.example.org/export/secondary": tmp_path / "secondary"},
        runtime_dir=tmp_path / "run",
        urls=UrlSettings(allow_http=True),
    )


@pytest.fixture
async def resolver(settings: StoreSettings, engine: TransferEngine) -> AsyncIterator[Resolver]:
    resolver = Resolver(settings, engine)
    yield resolver
    await resolver.aclose()


def pool(pool_type: str, path: Path | None = None, uuid: str = "u-1") -> PrimaryDataStoreTO:
    return PrimaryDataStoreTO(uuid=uuid, poolType=pool_type, path=None if path is None else str(path))


def nfs(url: str) -> NfsTO:
    return NfsTO(url=Secret(url))


def image(uri: str) -> ImageStoreTO:
    return ImageStoreTO(uri=Secret(uri))


def s3(**fields: object) -> S3TO:
    known: dict[str, object] = {
        "endPoint": "https://s3.example.org",
        "bucketName": "bucket",
        "accessKey": "AK",
        "secretKey": "SK",
    }
    return S3TO.model_validate(known | fields)


async def write(store: DataStore, ref: str, data: bytes) -> ObjectInfo:
    async with sending(store, ref) as pending:
        await pending.write(memoryview(data))
        return await pending.commit()


@pytest.mark.parametrize("pool_type", ["Filesystem", "SharedMountPoint"])
async def test_directory_pool_is_its_path(resolver: Resolver, settings: StoreSettings, pool_type: str) -> None:
    root = settings.roots[0] / "one"
    root.mkdir()
    store = resolver.store(pool(pool_type, root))
    await write(store, "volume", b"content")
    assert (root / "volume").read_bytes() == b"content"
    assert store.id == "pool:u-1"
    assert (await resolver.stat(pool(pool_type, root), "volume")).size == 7


async def test_mounted_pool_is_its_uuid_below_the_mount_root(resolver: Resolver, settings: StoreSettings) -> None:
    store = resolver.store(pool("NetworkFilesystem", Path("/export/path/on/the/server")))
    with pytest.raises(StorageError):
        await store.usage()
    (settings.mount_root / "u-1").mkdir()
    with pytest.raises(DeviceFault, match="mounted"):
        await store.usage()
    with mounted_tmpfs(settings.mount_root / "u-1") as mounted:
        await write(store, "volume", b"content")
        assert (mounted / "volume").read_bytes() == b"content"


@pytest.mark.parametrize(
    "url",
    [
        "nfs://nfs.example.org/export/secondary",
        "nfs://NFS.example.org:2049/export/secondary/",
        "nfs://nfs.example.org//export//secondary",
    ],
)
async def test_export_is_where_the_host_mounted_it(resolver: Resolver, settings: StoreSettings, url: str) -> None:
    store = resolver.store(nfs(url))
    assert store.id == "nfs:nfs.example.org/export/secondary"
    with mounted_tmpfs(settings.nfs_mounts["nfs://nfs.example.org/export/secondary"]) as mounted:
        (mounted / "template").mkdir()
        await write(store, "template/one", b"content")
        assert (mounted / "template" / "one").read_bytes() == b"content"


async def test_file_uri_is_a_directory(resolver: Resolver, settings: StoreSettings) -> None:
    folder = settings.roots[0] / "with space"
    folder.mkdir()
    (folder / "image").write_bytes(b"image")
    for new, spelling in (("one", "with%20space"), ("two", "with%20space/")):
        store = resolver.store(image(f"file://{settings.roots[0]}/{spelling}"))
        assert store.id == f"file:{folder}"
        async with store.present(await store.stat("image"), STREAM) as stream:
            assert isinstance(stream, ByteStream)
            assert await read_stream(stream) == b"image"
        await write(store, new, b"x")
    assert sorted(os.listdir(folder)) == ["image", "one", "two"]


async def test_remote_stores_are_made_without_contacting_them(resolver: Resolver) -> None:
    http = resolver.store(image("https://images.example.org/base"))
    assert http.id == "http:https://images.example.org/base"
    assert (http.offers(), http.writes) == (OBJECTS, frozenset())
    bucket = resolver.store(s3())
    assert "SK" not in bucket.id
    assert (bucket.offers(), bucket.writes) == (OBJECTS, frozenset({STREAM, Kind.UPLOAD}))


@pytest.mark.parametrize(
    ("to", "named"),
    [
        (pool("Gluster", Path("pool")), "Gluster"),
        (pool("VMFS"), "VMFS"),
        (image("ftp://images.example.org/"), "ftp"),
        (image("relative/path"), "relative"),
        (nfs("afp://host/share?user=u&password=hunter2"), "afp"),
    ],
)
def test_unsupported_store_gets_the_list_of_supported_ones(resolver: Resolver, to: DataStoreTO, named: str) -> None:
    with pytest.raises(StoreUnsupported) as caught:
        resolver.store(to)
    assert named in caught.value.message
    assert all(supported in caught.value.message for supported in SUPPORTED)
    assert "hunter2" not in caught.value.message + str(caught.value.details)


@pytest.mark.parametrize(
    "to",
    [
        pool("Filesystem"),
        pool("Filesystem", Path("/pools"), uuid="../escape"),
        pool("NetworkFilesystem", uuid=".."),
        pool("NetworkFilesystem", uuid="a/b"),
        pool("NetworkFilesystem", uuid="a\nb"),
        image("file://other-host/pools"),
        image("file:///pools?query=hunter2"),
        image("file:///pools/%0Anewline"),
        image("file://[::1/pools-hunter2"),
        nfs("nfs://user:hunter2@nfs.example.org/export/secondary"),
        nfs("nfs:///export"),
        nfs("nfs://nfs.example.org:hunter2/export"),
        nfs("nfs://nfs.example.org/export/../other"),
        nfs("nfs://nfs.example.org/export\n"),
    ],
)
def test_malformed_store_is_refused_without_repeating_a_secret(resolver: Resolver, to: DataStoreTO) -> None:
    with pytest.raises(StorageError) as caught:
        resolver.store(to)
    assert caught.value.kind in ("InvalidReference", "PolicyRefused")
    seen = [caught.value.message, str(caught.value.details), repr(caught.value.__cause__)]
    assert not any("hunter2" in text for text in seen)


def test_export_that_is_not_mounted_names_the_setting(resolver: Resolver) -> None:
    with pytest.raises(PolicyRefused, match="nfs_mounts") as caught:
        resolver.store(nfs("nfs://other.example.org/export"))
    assert caught.value.details["export"] == "nfs://other.example.org/export"


async def test_directory_outside_the_allow_list_is_refused_at_first_use(
    resolver: Resolver, settings: StoreSettings, tmp_path: Path
) -> None:
    (settings.roots[0] / "escape").symlink_to("/etc")
    for path in (Path("/etc"), tmp_path, settings.roots[0] / "escape"):
        for store in (resolver.store(pool("Filesystem", path)), resolver.store(image(f"file://{path}"))):
            with pytest.raises(PolicyRefused, match=r"pools\.roots"):
                await store.stat("passwd")
    with pytest.raises(InvalidReference):
        await resolver.store(pool("Filesystem", settings.roots[0] / ".." / "x")).stat("passwd")


def test_same_place_and_credentials_give_the_same_store(resolver: Resolver, settings: StoreSettings) -> None:
    root = settings.roots[0]
    for make in (
        lambda: pool("Filesystem", root),
        lambda: nfs("nfs://nfs.example.org/export/secondary"),
        lambda: image("https://images.example.org/base"),
        lambda: s3(),
    ):
        assert resolver.store(make()) is resolver.store(make())
    described = PrimaryDataStoreTO(
        uuid="u-1", poolType="Filesystem", path=str(root), name="other", details={"chap": Secret("x")}
    )
    assert resolver.store(described) is resolver.store(pool("Filesystem", root))


def test_other_place_or_credentials_give_another_store(resolver: Resolver, settings: StoreSettings) -> None:
    root = settings.roots[0]
    variants: list[DataStoreTO] = [
        s3(),
        s3(secretKey="changed"),
        s3(accessKey="AK2"),
        s3(endPoint="https://other.example.org"),
        s3(bucketName="other"),
        s3(region="eu-west-1"),
        pool("Filesystem", root),
        pool("Filesystem", root / "x"),
        pool("Filesystem", root, uuid="u-2"),
        image("https://images.example.org/base"),
        image("https://images.example.org/other"),
    ]
    stores = [resolver.store(to) for to in variants]
    assert all(one is not other for one, other in itertools.combinations(stores, 2))


def test_stable_identity_does_not_depend_on_the_secret(resolver: Resolver) -> None:
    assert resolver.store(s3()).id == resolver.store(s3(secretKey="changed")).id
    assert resolver.store(s3()).id != resolver.store(s3(endPoint="https://other.example.org")).id
    assert resolver.store(s3()).id != resolver.store(s3(bucketName="other")).id


async def test_closing_closes_every_store_and_can_be_repeated(settings: StoreSettings, engine: TransferEngine) -> None:
    resolver = Resolver(settings, engine)
    first = resolver.store(s3())
    await resolver.aclose()
    await resolver.aclose()
    assert resolver.store(s3()) is not first
    await resolver.aclose()


async def test_store_that_fails_to_close_does_not_keep_the_others_open(
    settings: StoreSettings, engine: TransferEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    async def aclose(store: FilesystemStore) -> None:
        closed.append(store.id)
        raise Unavailable("will not close")

    monkeypatch.setattr(FilesystemStore, "aclose", aclose)
    resolver = Resolver(settings, engine)
    for uuid in ("u-1", "u-2", "u-3"):
        resolver.store(pool("Filesystem", settings.roots[0], uuid=uuid))
    with pytest.raises(Unavailable):
        await resolver.aclose()
    assert sorted(closed) == ["pool:u-1", "pool:u-2", "pool:u-3"]


async def test_observer_hears_of_every_store(settings: StoreSettings, engine: TransferEngine) -> None:
    counting = Counting()
    resolver = Resolver(settings, engine, observer=counting)
    store = resolver.store(pool("Filesystem", settings.roots[0]))
    await write(store, "volume", b"content")
    await resolver.aclose()
    assert counting.calls == {("write", "ok"): 1, ("commit", "ok"): 1}


def test_backends_are_not_imported_before_they_are_needed() -> None:
    script = (
        "import sys, stores.resolver; "
        "print([m for m in ('aiobotocore', 'botocore', 'aiohttp', 'stores.backends', 'stores.bridge') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------------ opening


@pytest.fixture
async def memory() -> MemoryStore:
    memory = MemoryStore()
    await write(memory, "object", content(1_000_000))
    return memory


def sockets(settings: StoreSettings) -> list[Path]:
    return [path for path in settings.runtime_dir.rglob("*") if not path.is_dir()]


async def test_native_form_is_handed_through(resolver: Resolver, memory: MemoryStore, settings: StoreSettings) -> None:
    info = await memory.stat("object")
    async with resolver.open(memory, info, [PATH, RANGES, NBD]) as presentation:
        assert isinstance(presentation, RangeReader)
        assert await presentation.read(0, 10) == content(1_000_000)[:10]
        assert sockets(settings) == []


async def test_local_path_of_a_directory_pool(resolver: Resolver, settings: StoreSettings) -> None:
    store = resolver.store(pool("Filesystem", settings.roots[0]))
    info = await write(store, "volume", b"content")
    async with resolver.open(store, info, [PATH, RANGES]) as presentation:
        assert presentation == LocalPath(settings.roots[0] / "volume", info)


async def test_bridge_serves_the_content_and_goes_with_the_context(
    resolver: Resolver, memory: MemoryStore, settings: StoreSettings, tmp_path: Path
) -> None:
    info = await memory.stat("object")
    async with (
        resolver.open(memory, info, [PATH, NBD]) as one,
        resolver.open(memory, info, [NBD]) as two,
    ):
        for number, export in enumerate((one, two)):
            assert isinstance(export, NbdExport)
            assert len(os.fsencode(export.socket)) <= SOCKET_PATH_LIMIT
            copied = tmp_path / f"copy-{number}"
            process = await asyncio.create_subprocess_exec(
                "nbdcopy", f"nbd+unix:///{export.export}?socket={export.socket}", str(copied)
            )
            assert await process.wait() == 0
            assert copied.read_bytes()[:1_000_000] == content(1_000_000)
        assert len(sockets(settings)) == 2
    assert sockets(settings) == []


async def test_bridge_goes_when_the_user_fails(
    resolver: Resolver, memory: MemoryStore, settings: StoreSettings
) -> None:
    info = await memory.stat("object")

    async def fail() -> None:
        async with resolver.open(memory, info, [NBD]):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert sockets(settings) == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_nothing_is_opened_when_nothing_fits(resolver: Resolver, memory: MemoryStore) -> None:
    faulty = FaultyStore(memory, {})
    info = await memory.stat("object")
    with pytest.raises(RequirementNotMet, match="cache"):
        async with resolver.open(faulty, info, [PATH]):
            pass
    without_ranges = ObjectInfo("object", info.size, info.version, ranges=False)
    with pytest.raises(RequirementNotMet):
        async with resolver.open(faulty, without_ranges, [NBD]):
            pass
    assert not faulty.calls


async def test_failure_to_open_leaves_no_socket(
    resolver: Resolver, memory: MemoryStore, settings: StoreSettings
) -> None:
    faulty = FaultyStore(memory, {("present", 1): Fail(Unavailable("down"))})
    with pytest.raises(Unavailable):
        async with resolver.open(faulty, await memory.stat("object"), [NBD]):
            pass
    assert sockets(settings) == []


async def test_writing_is_negotiated_too(resolver: Resolver, settings: StoreSettings) -> None:
    memory = MemoryStore()
    async with resolver.create(memory, "object", [PATH, STREAM], token="1") as pending:
        assert pending.kind is STREAM
    store = resolver.store(pool("Filesystem", settings.roots[0]))
    async with resolver.create(store, "volume", [PATH, STREAM], token="1") as pending:
        assert pending.kind is PATH
    assert await refs(store.list()) == []
    with pytest.raises(RequirementNotMet):
        resolver.create(memory, "object", [PATH], token="1")
    with pytest.raises(RequirementNotMet):
        resolver.create(memory, "object", [NBD], token="1")


def test_runtime_directory_must_leave_room_for_socket_names() -> None:
    longest = "/" + "r" * (SOCKET_PATH_LIMIT - SOCKET_NAME_LENGTH - 1)
    assert StoreSettings(runtime_dir=Path(longest)).runtime_dir == Path(longest)
    with pytest.raises(ValueError, match="runtime_dir"):
        StoreSettings(runtime_dir=Path(longest + "r"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"roots": (Path("relative"),)},
        {"mount_root": Path(".")},
        {"nfs_mounts": {"nfs://h/e": Path("x")}},
        {"attempts": 0},
    ],
)
def test_wrong_settings_are_refused_at_once(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        StoreSettings(**wrong)  # type: ignore[arg-type]
