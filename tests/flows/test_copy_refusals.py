"""Copies that must not happen: refused early, and nothing is left of them."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import pytest

from hypervisors.contract import ImageRefused, OperationUnsupported, SizeRefused
from hypervisors.images.gate import GateLimits
from hypervisors.verbs import Copy
from stores.contract import KiB, MiB
from stores.errors import (
    AccessDenied,
    AlreadyExists,
    ChecksumMismatch,
    IntegrityError,
    InvalidReference,
    NoSpace,
    NotFound,
    StorageError,
    TooLarge,
    Unavailable,
)
from stores.secret import Secret
from stores.to import DataTO, ImageFormat, SnapshotObjectTO, TemplateObjectTO, VolumeObjectTO
from tests.doubles.disk_images import HOSTILE, DiskImages, content_of, file_hash, qemu_img
from tests.doubles.fault_proxy import FaultProxy
from tests.doubles.mounts import mounted_tmpfs
from tests.doubles.shelf import Shelf, template
from tests.doubles.world import Phases, World, world

WHERE = ["s3", "http", "norange", "directory"]


async def refused(here: World, source: DataTO, destination: DataTO, kind: type[StorageError]) -> StorageError:
    """The copy's error; and the pool is as empty as before."""
    before = here.files()
    with pytest.raises(kind) as caught:
        await here.operations.copy(here.call(), Copy(source, destination))
    assert here.files() == before
    return caught.value


# ----------------------------------------------------------------------------------------------------- hostile images


@pytest.mark.parametrize(
    ("harm", "where"),
    [(harm, WHERE[i % 4]) for i, harm in enumerate(HOSTILE)] + [("host file", "s3"), ("data file", "norange")],
)
async def test_hostile_image(shelf: Shelf, tmp_path: Path, harm: str, where: str) -> None:
    """Refused by its head: the 24 MiB behind that are never fetched."""
    make, image_format = HOSTILE[harm]
    image = tmp_path / "image"
    make(image)
    with image.open("ab") as file:
        file.write(b"\xa5" * 24 * MiB)
    store, path = shelf.put(where, image)
    error = await refused(
        shelf.here,
        template(store, path, image_format),
        VolumeObjectTO(uuid="v1", dataStore=shelf.here.pool()),
        ImageRefused,
    )
    assert error.details["rule"]
    assert "passwd" not in str(error)
    assert shelf.fetched() <= 4 * MiB


async def test_hostile_image_inside_a_compressed_one(shelf: Shelf, tmp_path: Path) -> None:
    make, image_format = HOSTILE["backing file"]
    image = tmp_path / "image"
    make(image)
    compressed = tmp_path / "image.gz"
    compressed.write_bytes(gzip.compress(image.read_bytes()))
    store, path = shelf.put("s3", compressed)
    destination = VolumeObjectTO(uuid="v1", dataStore=shelf.here.pool())
    await refused(shelf.here, template(store, path, image_format), destination, ImageRefused)


async def test_another_format_than_declared(shelf: Shelf, disk_images: DiskImages) -> None:
    store, path = shelf.put("s3", disk_images["qcow2"].path)
    destination = VolumeObjectTO(uuid="v1", dataStore=shelf.here.pool(), format=ImageFormat.RAW)
    await refused(shelf.here, template(store, path, ImageFormat.RAW), destination, ImageRefused)


@pytest.mark.parametrize("where", ["s3", "norange"])
async def test_decompression_bomb(shelf: Shelf, tmp_path: Path, where: str) -> None:
    bomb = tmp_path / "bomb.raw.gz"
    bomb.write_bytes(gzip.compress(bytes(96 * MiB)))
    store, path = shelf.put(where, bomb)
    async with world(limits=GateLimits(virtual_size=32 * MiB)) as here:
        destination = VolumeObjectTO(uuid="v1", dataStore=here.pool(), format=ImageFormat.RAW)
        error = await refused(here, template(store, path, ImageFormat.RAW), destination, TooLarge)
        assert error.details["limit"] == 32 * MiB


@pytest.mark.parametrize("where", ["s3", "norange"])
@pytest.mark.parametrize("target", [ImageFormat.RAW, ImageFormat.QCOW2])
async def test_truncated_compressed_image(
    shelf: Shelf, disk_images: DiskImages, tmp_path: Path, target: ImageFormat, where: str
) -> None:
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(disk_images["raw"].path.read_bytes())[: 2 * MiB])
    store, path = shelf.put(where, broken)
    destination = VolumeObjectTO(uuid="v1", dataStore=shelf.here.pool(), format=target)
    await refused(shelf.here, template(store, path, ImageFormat.RAW), destination, IntegrityError)


# ---------------------------------------------------------------------------------------------------- wrong content


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", ["qcow2", "vhd"])
async def test_wrong_checksum(shelf: Shelf, disk_images: DiskImages, name: str, where: str) -> None:
    image = disk_images[name]
    store, path = shelf.put(where, image.path)
    source = template(store, path, image.format, checksum="{SHA-256}" + "0" * 64)
    destination = VolumeObjectTO(uuid="v1", dataStore=shelf.here.pool())
    error = await refused(shelf.here, source, destination, ChecksumMismatch)
    assert error.details["expected"] == "0" * 64


async def test_malformed_checksum(shelf: Shelf, disk_images: DiskImages) -> None:
    store, path = shelf.put("s3", disk_images["qcow2"].path)
    source = template(store, path, ImageFormat.QCOW2, checksum="{WHAT}12")
    await refused(shelf.here, source, VolumeObjectTO(uuid="v1", dataStore=shelf.here.pool()), InvalidReference)
    assert shelf.fetched() == 0


async def test_damaged_metadata(shelf: Shelf, disk_images: DiskImages, tmp_path: Path) -> None:
    """What the gate cannot see, the check before publication does: a cluster that is referred to and not counted."""
    image = tmp_path / "image.qcow2"
    image.write_bytes(disk_images["qcow2"].path.read_bytes())
    with image.open("r+b") as file:
        file.seek(48)  # refcount_table_offset, docs/interop/qcow2.txt
        table = int.from_bytes(file.read(8), "big")
        file.seek(table)
        block = int.from_bytes(file.read(8), "big")
        file.seek(block)
        file.write(bytes(64 * KiB))
    store, path = shelf.put("s3", image)
    source = template(store, path, ImageFormat.QCOW2)
    await refused(shelf.here, source, TemplateObjectTO(uuid="t1", imageDataStore=shelf.here.pool()), IntegrityError)


# ------------------------------------------------------------------------------------------------ wrong command


async def test_no_such_object(shelf: Shelf) -> None:
    source = template(shelf.s3(), "no/such.qcow2", ImageFormat.QCOW2)
    await refused(shelf.here, source, VolumeObjectTO(uuid="v1", dataStore=shelf.here.pool()), NotFound)


async def test_wrong_credentials(shelf: Shelf, disk_images: DiskImages) -> None:
    _, path = shelf.put("s3", disk_images["qcow2"].path)
    store = shelf.s3().model_copy(update={"secretKey": Secret("wrong-credential-value")})
    destination = VolumeObjectTO(uuid="v1", dataStore=shelf.here.pool())
    error = await refused(shelf.here, template(store, path, ImageFormat.QCOW2), destination, AccessDenied)
    assert "wrong-credential-value" not in repr((error, error.details))


async def test_volume_smaller_than_its_template(shelf: Shelf, disk_images: DiskImages) -> None:
    image = disk_images["qcow2"]
    store, path = shelf.put("s3", image.path)
    destination = VolumeObjectTO(uuid="v1", dataStore=shelf.here.pool(), size=1 * MiB)
    error = await refused(shelf.here, template(store, path, image.format), destination, SizeRefused)
    assert error.details == {"asked": 1 * MiB, "least": image.virtual_size}
    assert shelf.fetched() < 1 * MiB


async def test_volume_smaller_than_what_comes_in_order(shelf: Shelf, disk_images: DiskImages, tmp_path: Path) -> None:
    """The size of a compressed raw image shows only when it has arrived."""
    compressed = tmp_path / "disk.raw.gz"
    compressed.write_bytes(gzip.compress(disk_images["raw"].path.read_bytes()))
    store, path = shelf.put("s3", compressed)
    destination = VolumeObjectTO(uuid="v1", dataStore=shelf.here.pool(), size=1 * MiB)
    await refused(shelf.here, template(store, path, ImageFormat.RAW), destination, SizeRefused)


@pytest.mark.parametrize("name", ["../escape", "a/../../b", ".storage-agent/images/x.json", "-rf", "a\0b"])
async def test_hostile_name(shelf: Shelf, disk_images: DiskImages, name: str) -> None:
    store, path = shelf.put("directory", disk_images["qcow2"].path)
    destination = VolumeObjectTO(path=name, dataStore=shelf.here.pool())
    await refused(shelf.here, template(store, path, ImageFormat.QCOW2), destination, InvalidReference)
    source = template(store, name, ImageFormat.QCOW2)
    await refused(shelf.here, source, VolumeObjectTO(path="v1", dataStore=shelf.here.pool()), InvalidReference)


async def test_what_no_handler_does(shelf: Shelf, disk_images: DiskImages) -> None:
    here = shelf.here
    store, path = shelf.put("directory", disk_images["qcow2"].path)
    source = template(store, path, ImageFormat.QCOW2)
    pool = here.pool()
    vhd = VolumeObjectTO(uuid="v1", dataStore=pool, format=ImageFormat.VHD)
    encrypted = VolumeObjectTO(uuid="v1", dataStore=pool, format=ImageFormat.RAW, passphrase=Secret("x"))
    snapshot = SnapshotObjectTO(path="s1", dataStore=pool)
    for destination in (vhd, encrypted, snapshot, VolumeObjectTO(path="v1", dataStore=shelf.s3())):
        await refused(here, source, destination, OperationUnsupported)


# ------------------------------------------------------------------------------------------------- what is there already


async def test_template_delivered_again(shelf: Shelf, disk_images: DiskImages) -> None:
    """The same version again is success and moves nothing; so is the same checksum from another place."""
    here, image = shelf.here, disk_images["qcow2"]
    store, path = shelf.put("s3", image.path)
    destination = TemplateObjectTO(uuid="t1", imageDataStore=here.pool())
    first = (await here.operations.copy(here.call("c-1"), Copy(template(store, path, image.format), destination))).data
    state = here.path(first).stat()
    fetched = shelf.fetched()
    again = (await here.operations.copy(here.call("c-2"), Copy(template(store, path, image.format), destination))).data
    assert again == first
    assert here.path(first).stat() == state
    assert shelf.fetched() - fetched < 64 * KiB


async def test_template_with_the_same_checksum(shelf: Shelf, disk_images: DiskImages) -> None:
    here, image = shelf.here, disk_images["qcow2"]
    checksum = "{SHA-256}" + file_hash(image.path)
    destination = TemplateObjectTO(uuid="t1", imageDataStore=here.pool())
    made = []
    for where in ("s3", "http"):
        store, path = shelf.put(where, image.path)
        source = template(store, path, image.format, checksum=checksum)
        made.append((await here.operations.copy(here.call(f"c-{where}"), Copy(source, destination))).data)
    assert made[0] == made[1]


@pytest.mark.parametrize("kind", ["other template", "volume", "not ours"])
async def test_name_is_taken(shelf: Shelf, disk_images: DiskImages, kind: str) -> None:
    here, image = shelf.here, disk_images["qcow2"]
    store, path = shelf.put("s3", image.path)
    pool = here.pool()
    source = template(store, path, image.format)
    destination: DataTO = TemplateObjectTO(uuid="x", imageDataStore=pool)
    if kind == "not ours":
        (here.root / "pool" / "x").write_bytes(b"precious")
    else:
        await here.operations.copy(here.call("c-0"), Copy(source, destination))
        if kind == "volume":
            destination = VolumeObjectTO(uuid="x", dataStore=pool)
        else:
            source = template(*shelf.put("s3", image.path), image.format)
    before = (here.root / "pool" / "x").read_bytes()
    await refused(here, source, destination, AlreadyExists)
    assert (here.root / "pool" / "x").read_bytes() == before


# ------------------------------------------------------------------------------------------------------- no room


@pytest.mark.parametrize(("name", "where"), [("qcow2", "s3"), ("vhd", "s3"), ("raw", "http"), ("qcow2", "directory")])
async def test_no_room_is_known_beforehand(
    shelf: Shelf, disk_images: DiskImages, tmp_path: Path, name: str, where: str
) -> None:
    if where == "directory":
        shelf.here.directory()
    image = disk_images[name]
    store, path = shelf.put(where, image.path)
    here = shelf.here
    with mounted_tmpfs(here.root / "pool", options="size=1m"):
        destination = VolumeObjectTO(uuid="v1", dataStore=here.pool())
        error = await refused(here, template(store, path, image.format), destination, NoSpace)
        needed, available = error.details["needed"], error.details["available"]
        assert isinstance(needed, int)
        assert isinstance(available, int)
        assert needed > available
        assert shelf.fetched() < 4 * MiB


@pytest.mark.parametrize("where", ["s3", "norange"])
@pytest.mark.parametrize("target", [ImageFormat.RAW, ImageFormat.QCOW2])
async def test_no_room_shows_on_the_way(
    shelf: Shelf, disk_images: DiskImages, tmp_path: Path, where: str, target: ImageFormat
) -> None:
    """Nobody knows what a compressed image needs; the file system says when it is full."""
    compressed = tmp_path / "disk.raw.gz"
    compressed.write_bytes(gzip.compress(disk_images["raw"].path.read_bytes()))
    store, path = shelf.put(where, compressed)
    here = shelf.here
    size = "2m" if target is ImageFormat.RAW else "5m"  # enough for the scratch file, not for what it is converted to
    with mounted_tmpfs(here.root / "pool", options=f"size={size}"):
        destination = VolumeObjectTO(uuid="v1", dataStore=here.pool(), format=target)
        await refused(here, template(store, path, ImageFormat.RAW), destination, NoSpace)


# ------------------------------------------------------------------------------------------------- faults on the way


@pytest.mark.parametrize("name", ["qcow2", "vhd"])
async def test_server_goes_away(shelf: Shelf, disk_images: DiskImages, name: str) -> None:
    """The answer is the store's error, also where qemu was reading and only knows of an I/O error."""
    image = disk_images[name]
    _, path = shelf.put("s3", image.path)
    async with FaultProxy(shelf.seaweed.port) as proxy:
        proxy.cut_after = 700 * KiB
        source = template(shelf.s3(port=proxy.port), path, image.format)
        destination = VolumeObjectTO(uuid="v1", dataStore=shelf.here.pool())
        async with asyncio.TaskGroup() as group:
            leaving = group.create_task(_goes_away(proxy))
            await refused(shelf.here, source, destination, Unavailable)
            leaving.cancel()


async def _goes_away(proxy: FaultProxy) -> None:
    while proxy.bytes_down < 700 * KiB:
        await asyncio.sleep(0.001)
    proxy.refuse = True


@pytest.mark.parametrize("name", ["qcow2", "vhd"])
async def test_broken_connections_are_resumed(shelf: Shelf, disk_images: DiskImages, name: str) -> None:
    image = disk_images[name]
    _, path = shelf.put("s3", image.path)
    async with FaultProxy(shelf.seaweed.port) as proxy:
        proxy.cut_after, proxy.cut_times = 700 * KiB, 3
        source = template(shelf.s3(port=proxy.port), path, image.format)
        destination = VolumeObjectTO(uuid="v1", dataStore=shelf.here.pool())
        made = (await shelf.here.operations.copy(shelf.here.call(), Copy(source, destination))).data
    assert content_of(shelf.here.path(made), ImageFormat.QCOW2) == image.content


@pytest.mark.parametrize(
    ("name", "phase", "delay"),
    [
        ("qcow2", "inspect", 0.0),
        ("qcow2", "transfer", 0.0),
        ("qcow2", "transfer", 0.01),
        ("qcow2", "check", 0.005),
        ("qcow2", "publish", 0.0),
        ("qcow2", "publish", 0.001),
        ("qcow2", "publish", 0.003),
        ("vhd", "inspect", 0.005),
        ("vhd", "convert", 0.0),
        ("vhd", "convert", 0.03),
        ("raw.gz", "transfer", 0.03),
        ("raw.gz", "convert", 0.005),
    ],
)
async def test_cancelled(
    shelf: Shelf, disk_images: DiskImages, tmp_path: Path, name: str, phase: str, delay: float
) -> None:
    """Cancelled in any phase, a copy leaves no file; `world` sees that it leaves no process, socket or task either."""
    image = disk_images[name.removesuffix(".gz")]
    path = image.path
    if name.endswith(".gz"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(image.path.read_bytes(), 1))
    store, ref = shelf.put("s3", path)
    here = shelf.here
    progress = Phases()
    progress.wanted = phase
    destination = VolumeObjectTO(uuid="v1", dataStore=here.pool())
    copying = asyncio.create_task(
        here.operations.copy(here.call(progress=progress), Copy(template(store, ref, image.format), destination))
    )
    reached = asyncio.create_task(progress.reached.wait())
    await asyncio.wait([copying, reached], return_when=asyncio.FIRST_COMPLETED)
    reached.cancel()
    await asyncio.sleep(delay)
    copying.cancel()
    try:
        await copying
    except asyncio.CancelledError:
        assert here.files() == set()
    else:  # it was done already, or that phase does not occur
        assert here.files() == {"v1", ".storage-agent/images/v1.json"}
        qemu_img("check", "-f", "qcow2", str(here.root / "pool" / "v1"))
