"""The verbs on guests over a real libvirt: ISOs that stay for their drives, and volumes as a command describes them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hypervisors.contract import HypervisorType
from hypervisors.operations import Operations
from hypervisors.registry import handlers
from hypervisors.verbs import AttachIso, AttachVolume, Call, Create, Delete, DetachIso, DetachVolume, Resize
from stores.cache.cache import Cache
from stores.contract import MiB
from stores.errors import NotFound
from stores.resolver import Resolver
from stores.settings import CacheSettings, StoreSettings, UrlSettings
from stores.to import DataStoreTO, ImageFormat, ImageStoreTO, PrimaryDataStoreTO, TemplateObjectTO, VolumeObjectTO
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from tests.doubles.caches import Requests, nothing_left, pool_settings, running
from tests.doubles.disk_images import DiskImages
from tests.doubles.world import LOOPBACK
from tests.kvm_machines import Lab, said
from tests.servers import NginxServer

VM = "i-2-7-VM"


class Host:
    """A host with a guest that runs, a pool, a cache, and an ISO on a web server."""

    def __init__(self, root: Path, lab: Lab, operations: Operations, cache: Cache, nginx: NginxServer) -> None:
        self.root = root
        self.lab = lab
        self.operations = operations
        self.cache = cache
        self.web = ImageStoreTO.model_validate({"uri": nginx.url("")})
        self.pool = PrimaryDataStoreTO(uuid="p", poolType="Filesystem", path=str(root / "images"))

    def iso(self, store: DataStoreTO | None = None) -> TemplateObjectTO:
        return TemplateObjectTO(path="kvm.iso", format=ImageFormat.ISO, imageDataStore=store or self.web)

    def volume(self, **told: object) -> VolumeObjectTO:
        return VolumeObjectTO.model_validate(
            {"path": "v", "dataStore": self.pool, "size": 8 * MiB, "format": "QCOW2", **told}
        )

    def call(self, token: str = "c-1") -> Call:
        return Call(token, HypervisorType.KVM)


@pytest.fixture
async def here(
    tmp_path: Path, lab: Lab, nginx: NginxServer, disk_images: DiskImages, engine: TransferEngine
) -> AsyncIterator[Host]:
    (tmp_path / "images").mkdir()
    (tmp_path / "run").mkdir(mode=0o700)
    (nginx.root / "kvm.iso").unlink(missing_ok=True)
    os.link(disk_images["iso"].path, nginx.root / "kvm.iso")
    settings = StoreSettings(
        roots=(tmp_path / "images",),
        runtime_dir=tmp_path / "run",
        urls=UrlSettings(allow_http=True, allow_networks=(LOOPBACK,), ports=()),
        cache=CacheSettings(wait_s=0.5),
    )
    lab.define(VM).create()
    async with running(pool_settings(tmp_path / "cache", room=64 * MiB)) as pool:
        cache = Cache([pool], engine, observer=Requests())
        resolver = Resolver(settings, engine, cache=cache)
        by_type = handlers(engine, ToolRunner(), settings.runtime_dir, libvirt_uri=lab.daemon.uri)
        yield Host(tmp_path, lab, Operations(resolver, by_type, engine, lambda: 0.0), cache, nginx)
        await by_type[HypervisorType.KVM].aclose()
        await cache.aclose()
        await resolver.aclose()
    lab.remove(VM)


async def test_an_iso_from_the_cache_is_in_the_drive(here: Host) -> None:
    for token in ("c-1", "c-2"):
        attached = await here.operations.attach_iso(here.call(token), AttachIso(here.iso(), VM, insert=True))
        assert here.lab.visible(VM) == [attached.path]
        assert attached.path.startswith(str(here.root / "cache"))
        assert attached.device == 3
    for _ in range(2):
        await here.operations.detach_iso(here.call(), DetachIso(here.iso(), VM))
        assert here.lab.visible(VM) == []
    await nothing_left(here.cache.pools[0])


async def test_an_iso_of_this_host_is_in_the_drive(here: Host, disk_images: DiskImages) -> None:
    path = here.root / "images" / "kvm.iso"
    path.write_bytes(disk_images["iso"].path.read_bytes())
    iso = here.iso(ImageStoreTO.model_validate({"uri": f"file://{here.root}/images"}))
    await here.operations.attach_iso(here.call(), AttachIso(iso, VM))
    assert here.lab.visible(VM) == [str(path)]
    await here.operations.detach_iso(here.call(), DetachIso(iso, VM))
    assert here.lab.visible(VM) == []


@pytest.mark.parametrize("vm", ["nobody", "bare"])
async def test_an_iso_that_does_not_go_in_is_not_kept(here: Host, vm: str) -> None:
    here.lab.define("bare", drive=False)
    with pytest.raises(Exception, match=vm):
        await here.operations.attach_iso(here.call(), AttachIso(here.iso(), vm))
    await nothing_left(here.cache.pools[0])
    here.lab.remove("bare")


async def test_after_a_crash_the_drive_tells(here: Host) -> None:
    request = AttachIso(here.iso(), VM)
    attached = await here.operations.attach_iso(here.call("c-5"), request)
    recovered = await here.operations.recover(HypervisorType.KVM, request, "c-5")
    assert (recovered.outcome, recovered.answer) == ("finished", attached)
    for disk in here.lab.disks(VM):  # and one that died before that
        if (medium := disk.find("source")) is not None:
            disk.remove(medium)
            here.lab.update(VM, disk)
    assert (await here.operations.recover(HypervisorType.KVM, request, "c-5")).outcome == "undone"
    await nothing_left(here.cache.pools[0])


async def test_a_volume_as_the_command_describes_it(here: Host) -> None:
    volume = here.volume(uuid="f2b3a7c4-1d5e-4f60-8a9b-0c1d2e3f4a5b", cacheMode="WRITEBACK", iopsReadRate=500)
    await here.operations.create(here.call(), Create(volume))
    for _ in range(2):
        attached = await here.operations.attach_volume(here.call(), AttachVolume(volume, VM, device=2))
        assert attached.device == 2
    (disk,) = (each for each in here.lab.disks(VM) if each.get("device") == "disk")
    assert disk.findtext("serial") == "f2b3a7c41d5e4f608a9b"
    assert said(disk, "driver", "cache") == "writeback"
    assert disk.findtext("iotune/read_iops_sec") == "500"
    grown = await here.operations.resize(here.call(), Resize(volume, 16 * MiB))
    assert grown.size == 16 * MiB
    assert here.lab.domain(VM).blockInfo("vdc")[0] == 16 * MiB
    here.lab.domain(VM).destroy()
    await here.operations.detach_volume(here.call(), DetachVolume(volume, VM, within_s=5.0))
    assert here.lab.held(VM) == 0
    await here.operations.delete(here.call(), Delete(volume))


async def test_what_is_not_attached(here: Host) -> None:
    with pytest.raises(NotFound):
        await here.operations.attach_volume(here.call(), AttachVolume(here.volume(), VM))
    await here.operations.detach_volume(here.call(), DetachVolume(here.volume(), VM, within_s=5.0))
