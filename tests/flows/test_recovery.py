"""kill -9 between any two durable steps: the next start finishes or undoes, and says which."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest

from hypervisors.contract import HypervisorType
from hypervisors.copying import Copied
from hypervisors.recovery import Recovered
from hypervisors.verbs import Copy, Create, Delete, Request, Resize
from stores.contract import MiB
from stores.to import ImageFormat, TemplateObjectTO, VolumeObjectTO
from tests.doubles.disk_images import DiskImages, content_of, virtual_size
from tests.doubles.dying import in_world, killed_in
from tests.doubles.world import World, records_of

RequestIn: TypeAlias = Callable[[World], Request]
Check: TypeAlias = Callable[[World, Request, Recovered, set[str]], Awaitable[None]]  # files before in the last place


@pytest.fixture
def base() -> Iterator[Path]:
    """Short: sockets are made in it."""
    made = Path(tempfile.mkdtemp(prefix="sa-"))
    yield made
    shutil.rmtree(made)


async def perform(here: World, request: Request, token: str) -> object:
    match request:
        case Copy():
            return await here.operations.copy(here.call(token), request)
        case Create():
            return await here.operations.create(here.call(token), request)
        case Delete():
            await here.operations.delete(here.call(token), request)
            return None
        case Resize():
            return await here.operations.resize(here.call(token), request)
    raise AssertionError(request)


async def recovered(here: World, request: Request) -> Recovered:
    """Twice: the second time nothing is left to do, and the outcome is the same."""
    first = await here.operations.recover(HypervisorType.KVM, request, "c-1")
    after = here.files()
    assert await here.operations.recover(HypervisorType.KVM, request, "c-1") == first
    assert here.files() == after
    return first


def each_step(
    base: Path,
    prepare: Callable[[World], Awaitable[None]],
    request: RequestIn,
    check: Check,
) -> set[str]:
    """Outcomes over all steps."""
    outcomes: set[str] = set()
    in_world(base, prepare)
    before = in_world(base, _files)
    shutil.copytree(base / "root", base / "prepared", symlinks=True)
    for step in range(1, 100):
        shutil.rmtree(base / "root")
        shutil.copytree(base / "prepared", base / "root", symlinks=True)
        if not killed_in(base, lambda here: perform(here, request(here), "c-1"), step):
            assert step > 3
            return outcomes
        outcomes.add(in_world(base, partial(_examine, request, check, before)))
    raise AssertionError("no end of steps")


async def _examine(request: RequestIn, check: Check, before: set[str], here: World) -> str:
    result = await recovered(here, request(here))
    await check(here, request(here), result, before)
    return result.outcome


async def _files(here: World) -> set[str]:
    here.pool()
    return here.files()


def test_copy_with_conversion_and_scratch_file(base: Path, disk_images: DiskImages) -> None:
    image = disk_images["vhd"]

    async def prepare(here: World) -> None:
        here.directory()
        (here.root / "images" / "disk.gz").write_bytes(gzip.compress(image.path.read_bytes(), 1))
        here.pool()

    def request(here: World) -> Request:
        source = TemplateObjectTO(path="disk.gz", format=ImageFormat.VHD, imageDataStore=here.directory())
        return Copy(source, VolumeObjectTO(uuid="v1", dataStore=here.pool()))

    async def check(here: World, request: Request, result: Recovered, before: set[str]) -> None:
        if result.outcome == "undone":
            assert here.files() == before
        else:
            assert here.files() == records_of("v1")
            assert isinstance(result.answer, Copied)
            assert content_of(here.path(result.answer.data), ImageFormat.QCOW2) == image.content

    assert each_step(base, prepare, request, check) == {"undone", "finished"}


def test_linked_clone(base: Path) -> None:
    async def prepare(here: World) -> None:
        parent = VolumeObjectTO(uuid="t", dataStore=here.pool(), size=4 * MiB)
        await here.operations.create(here.call("c-0"), Create(parent))

    def request(here: World) -> Request:
        pool = here.pool()
        return Copy(TemplateObjectTO(path="t", imageDataStore=pool), VolumeObjectTO(uuid="v1", dataStore=pool))

    async def check(here: World, request: Request, result: Recovered, before: set[str]) -> None:
        clone = VolumeObjectTO(path="v1", dataStore=here.pool())
        if result.outcome == "undone":
            assert here.files() == before
            assert isinstance(request, Copy)
            await here.operations.copy(here.call("c-2"), request)  # and it can be sent again
        else:
            assert isinstance(result.answer, Copied)
            assert result.answer.data.size == 4 * MiB  # type: ignore[union-attr]
        assert here.files() == before | records_of("v1") | {".storage-agent/children/t/v1"}
        await here.operations.delete(here.call("c-3"), Delete(clone))
        assert here.files() == before

    assert each_step(base, prepare, request, check) == {"undone", "finished"}


def test_delete(base: Path) -> None:
    async def prepare(here: World) -> None:
        pool = here.pool()
        await here.operations.create(here.call("c-0"), Create(VolumeObjectTO(uuid="t", dataStore=pool, size=4 * MiB)))
        template = TemplateObjectTO(path="t", imageDataStore=pool)
        await here.operations.copy(here.call("c-00"), Copy(template, VolumeObjectTO(uuid="v1", dataStore=pool)))

    def request(here: World) -> Request:
        return Delete(VolumeObjectTO(path="v1", dataStore=here.pool()))

    async def check(here: World, request: Request, result: Recovered, before: set[str]) -> None:
        assert here.files() == (before if result.outcome == "undone" else records_of("t"))

    assert each_step(base, prepare, request, check) == {"undone", "finished"}


def test_resize(base: Path) -> None:
    async def prepare(here: World) -> None:
        volume = VolumeObjectTO(uuid="v1", dataStore=here.pool(), size=4 * MiB)
        await here.operations.create(here.call("c-0"), Create(volume))

    def request(here: World) -> Request:
        return Resize(VolumeObjectTO(path="v1", dataStore=here.pool()), 8 * MiB)

    async def check(here: World, request: Request, result: Recovered, before: set[str]) -> None:
        assert here.files() == before
        size = virtual_size(here.root / "pool" / "v1", ImageFormat.QCOW2)
        assert size == (8 if result.outcome == "finished" else 4) * MiB

    assert "finished" in each_step(base, prepare, request, check)
