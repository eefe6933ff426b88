"""ISOs become files of the host that stay for their guests: by a real cache from a real server, over restarts and crashes."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hypervisors.contract import HypervisorType, ImageRefused
from hypervisors.images.gate import GateLimits
from hypervisors.operations import Operations
from hypervisors.registry import handlers
from hypervisors.verbs import AttachIso, Call, Copy, DetachIso, Prefetch, touched
from stores.cache.cache import Cache
from stores.cache.ledger import Shown, list_entries, show_entry
from stores.cache.policy import Hold
from stores.contract import MiB
from stores.errors import CacheFailure, NotFound, RequirementNotMet, StoreUnsupported
from stores.resolver import Resolver
from stores.settings import CacheSettings, StoreSettings, UrlSettings
from stores.to import DataStoreTO, ImageFormat, ImageStoreTO, TemplateObjectTO
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from tests.doubles.caches import Requests, nothing_left, pool_settings, running
from tests.doubles.disk_images import DiskImage, DiskImages, file_hash
from tests.doubles.world import LOOPBACK
from tests.servers import NginxServer


class Host:
    """A host with one pool of cache, and an ISO on a web server."""

    def __init__(self, root: Path, operations: Operations, cache: Cache, nginx: NginxServer, iso: DiskImage) -> None:
        self.root = root
        self.operations = operations
        self.cache = cache
        self.nginx = nginx
        self.image = iso
        self.store = ImageStoreTO.model_validate({"uri": nginx.url("")})

    def put(self, image: DiskImage | None = None) -> str:
        ref = f"iso-{uuid.uuid4().hex}.iso"
        os.link((image or self.image).path, self.nginx.root / ref)
        return ref

    def iso(self, ref: str, store: DataStoreTO | None = None) -> TemplateObjectTO:
        return TemplateObjectTO(path=ref, format=ImageFormat.ISO, imageDataStore=store or self.store)

    def call(self, token: str = "c-1") -> Call:
        return Call(token, HypervisorType.KVM)

    async def attach(self, ref: str, vm: str = "i-2-7-VM", token: str = "c-1") -> Path:
        return Path((await self.operations.attach_iso(self.call(token), AttachIso(self.iso(ref), vm))).path)

    async def detach(self, ref: str, vm: str = "i-2-7-VM") -> None:
        await self.operations.detach_iso(self.call("c-9"), DetachIso(self.iso(ref), vm))

    async def recover(self, request: AttachIso | DetachIso, token: str) -> str:
        return (await self.operations.recover(HypervisorType.KVM, request, token)).outcome

    async def shown(self) -> list[Shown]:
        (pool,) = self.cache.pools
        rows = await pool.transact(lambda tx: list_entries(tx, pool.name))
        found = [await pool.transact(lambda tx, key=row.entry.key: show_entry(tx, pool.name, key)) for row in rows]  # type: ignore[misc]
        return [each for each in found if each is not None]

    def sent(self, ref: str) -> int:
        """Bytes of the object that the server's log says it has sent, beside the one byte by which each `stat` looks."""
        lines = [line for line in self.nginx.access_log.read_text().splitlines() if f"GET /{ref}" in line]
        sizes = [int(line.split('"')[2].split()[1]) for line in lines]  # of the combined log format
        return sum(size for size in sizes if size > 1)


@asynccontextmanager
async def host(root: Path, nginx: NginxServer, iso: DiskImage, *, room: int = 64 * MiB) -> AsyncIterator[Host]:
    (root / "images").mkdir(exist_ok=True)
    (root / "run").mkdir(mode=0o700, exist_ok=True)
    settings = StoreSettings(
        roots=(root / "images",),
        runtime_dir=root / "run",
        urls=UrlSettings(allow_http=True, allow_networks=(LOOPBACK,), ports=()),
        cache=CacheSettings(wait_s=0.5),
    )
    engine = TransferEngine()
    async with running(pool_settings(root / "pool", room=room)) as pool:
        cache = Cache([pool], engine, observer=Requests())
        resolver = Resolver(settings, engine, cache=cache)
        by_type = handlers(engine, ToolRunner(), settings.runtime_dir)
        try:
            yield Host(root, Operations(resolver, by_type, engine, lambda: 0.0, GateLimits()), cache, nginx, iso)
        finally:
            await cache.aclose()
            await resolver.aclose()
            await engine.aclose()


@pytest.fixture
async def here(tmp_path: Path, nginx: NginxServer, disk_images: DiskImages) -> AsyncIterator[Host]:
    async with host(tmp_path, nginx, disk_images["iso"]) as made:
        yield made


async def test_attach_twice_and_detach_twice(here: Host) -> None:
    ref = here.put()
    path = await here.attach(ref)
    assert file_hash(path) == file_hash(here.image.path)
    assert path.is_relative_to(here.root / "pool")
    (shown,) = await here.shown()
    assert shown.hold is Hold.PINNED
    assert [(pin.owner, pin.reason) for pin in shown.pins] == [(None, f"attached:i-2-7-VM/{ref} (command c-1)")]

    assert here.sent(ref) == here.image.path.stat().st_size
    assert await here.attach(ref, token="c-2") == path
    assert here.sent(ref) == here.image.path.stat().st_size
    (shown,) = await here.shown()
    assert len(shown.pins) == 1

    for _ in range(2):
        await here.detach(ref)
        assert [each.hold for each in await here.shown()] == [None]
    await nothing_left(here.cache.pools[0])


async def test_two_guests_hold_one_copy(here: Host) -> None:
    ref = here.put()
    assert await here.attach(ref, "one") == await here.attach(ref, "two")
    await here.detach(ref, "one")
    (shown,) = await here.shown()
    assert shown.hold is Hold.PINNED
    assert [pin.reason for pin in shown.pins] == [f"attached:two/{ref} (command c-1)"]
    await here.detach(ref, "two")


async def test_what_is_attached_stays_over_a_restart(
    tmp_path: Path, nginx: NginxServer, disk_images: DiskImages
) -> None:
    async with host(tmp_path, nginx, disk_images["iso"]) as first:
        ref = first.put()
        path = await first.attach(ref)
    async with host(tmp_path, nginx, disk_images["iso"]) as second:
        (shown,) = await second.shown()
        assert shown.hold is Hold.PINNED
        (nginx.root / ref).unlink()
        with pytest.raises(NotFound):  # the object is gone, and so nobody may attach it anew
            await second.attach(ref, "another")
        assert file_hash(path) == file_hash(disk_images["iso"].path)
        await second.detach(ref)  # which needs no store
        await nothing_left(second.cache.pools[0])


async def test_a_changed_object_does_not_change_what_is_attached(here: Host, disk_images: DiskImages) -> None:
    ref = here.put()
    path = await here.attach(ref)
    changed = here.root / "changed.iso"
    changed.write_bytes(here.image.path.read_bytes() + bytes(2048))
    os.replace(changed, here.nginx.root / ref)
    assert await here.attach(ref, token="c-2") == path
    other = await here.attach(ref, "another")
    assert other != path
    assert other.stat().st_size == path.stat().st_size + 2048
    await here.detach(ref)
    await here.detach(ref, "another")


async def test_a_damaged_copy_is_replaced(here: Host) -> None:
    ref = here.put()
    path = await here.attach(ref)
    path.write_bytes(b"something else")
    again = await here.attach(ref, token="c-2")
    assert again != path
    assert file_hash(again) == file_hash(here.image.path)
    await here.detach(ref)


async def test_no_iso_is_not_attached(here: Host, disk_images: DiskImages) -> None:
    ref = here.put(disk_images["qcow2"])
    with pytest.raises(ImageRefused):
        await here.attach(ref)
    assert all(not each.pins for each in await here.shown())
    await nothing_left(here.cache.pools[0])


async def test_a_full_cache_refuses_with_numbers(tmp_path: Path, nginx: NginxServer, disk_images: DiskImages) -> None:
    async with host(tmp_path, nginx, disk_images["iso"], room=1 * MiB) as here:
        first, second = here.put(), here.put()
        await here.attach(first)
        with pytest.raises(CacheFailure) as refused:
            await here.attach(second)
        assert refused.value.kind == "CacheExhausted"
        numbers = refused.value.details["pools"]["pool"]  # type: ignore[index]
        assert numbers["pinned"] > 0
        assert f"attached:i-2-7-VM/{first}" in numbers["holders"][0]["reason"]
        await here.detach(first)
        assert (await here.attach(second)).exists()
        await here.detach(second)
        await nothing_left(here.cache.pools[0])


# ------------------------------------------------------------------------------------------------------- recovery


async def test_a_crash_after_the_pin_is_undone(here: Host) -> None:
    ref = here.put()
    await here.attach(ref, token="c-5")
    request = AttachIso(here.iso(ref), "i-2-7-VM")
    for _ in range(2):
        assert await here.recover(request, "c-5") == "undone"
        assert [each.hold for each in await here.shown()] == [None]


async def test_a_crash_of_a_repetition_undoes_nothing(here: Host) -> None:
    ref = here.put()
    await here.attach(ref, token="c-5")
    assert await here.recover(AttachIso(here.iso(ref), "i-2-7-VM"), "c-6") == "undone"
    assert [each.hold for each in await here.shown()] == [Hold.PINNED]
    assert await here.recover(DetachIso(here.iso(ref), "i-2-7-VM"), "c-7") == "finished"
    assert [each.hold for each in await here.shown()] == [None]


# --------------------------------------------------------------------------------------------- without and around


async def test_a_file_of_the_host_needs_no_cache(here: Host) -> None:
    path = here.root / "images" / "a.iso"
    path.write_bytes(here.image.path.read_bytes())
    iso = here.iso("a.iso", ImageStoreTO.model_validate({"uri": f"file://{here.root}/images"}))
    attached = await here.operations.attach_iso(here.call(), AttachIso(iso, "vm"))
    assert attached.path == str(path)
    assert await here.shown() == []
    await here.operations.detach_iso(here.call(), DetachIso(iso, "vm"))
    with pytest.raises(StoreUnsupported):
        await here.operations.prefetch(here.call(), Prefetch(iso))


async def test_without_a_cache(here: Host) -> None:
    engine = TransferEngine()
    settings = StoreSettings(
        urls=UrlSettings(allow_http=True, allow_networks=(LOOPBACK,), ports=()), runtime_dir=here.root / "run"
    )
    resolver = Resolver(settings, engine)
    operations = Operations(resolver, handlers(engine, ToolRunner(), settings.runtime_dir), engine, lambda: 0.0)
    iso = here.iso(here.put())
    with pytest.raises(RequirementNotMet):
        await operations.attach_iso(here.call(), AttachIso(iso, "vm"))
    with pytest.raises(RequirementNotMet):
        await operations.prefetch(here.call(), Prefetch(iso))
    await operations.detach_iso(here.call(), DetachIso(iso, "vm"))
    await resolver.aclose()
    await engine.aclose()


async def test_prefetch_then_attach_without_a_transfer(here: Host) -> None:
    ref = here.put()
    fetched = await here.operations.prefetch(here.call(), Prefetch(here.iso(ref)))
    assert fetched.path == ref
    before = here.sent(ref)
    await here.attach(ref)
    assert here.sent(ref) == before
    await here.detach(ref)


def test_one_use_of_one_iso_is_one_lock() -> None:
    iso = TemplateObjectTO(path="/a.iso", imageDataStore=ImageStoreTO.model_validate({"uri": "file:///x"}))
    assert touched(AttachIso(iso, "vm")) == touched(DetachIso(iso, "vm")) == ("attached:vm/a.iso", "guest:vm")
    assert touched(Prefetch(iso)) == ()


def test_a_preferred_cache_is_explained(here: Host) -> None:
    source = TemplateObjectTO(path="t.qcow2", format=ImageFormat.QCOW2, imageDataStore=here.store)
    (here.root / "images" / "p").mkdir()
    pool = {"storeType": "primary", "uuid": "p", "poolType": "Filesystem", "path": str(here.root / "images" / "p")}
    destination = TemplateObjectTO.model_validate({"path": "v", "imageDataStore": pool})
    plain = here.operations.explain(HypervisorType.KVM, Copy(source, destination))
    preferring = here.operations.explain(HypervisorType.KVM, Copy(source, destination, prefer_cache=True))
    assert plain.source is not None
    assert preferring.source is not None
    assert (plain.source.via, preferring.source.via) == ("native", "cache")
