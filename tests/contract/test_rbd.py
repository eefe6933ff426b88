"""Pools of RBD images on a real Ceph: their documents, and KVM's volumes in them, held to the contracts."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hypervisors.contract import HypervisorHandler, HypervisorType, ImageSpec, Source
from hypervisors.documents import Documents, StoreDocuments
from hypervisors.registry import handlers
from hypervisors.snapshotting import Snapshots
from stores.backends.rbd import RbdStore
from stores.backends.rbd_cluster import Cluster
from stores.backends.rbd_image import RbdImage, name_of
from stores.backends.rbd_place import RbdLogin, place_of_pool
from stores.contract import Kind, LocalPath, ObjectInfo, PendingWrite
from stores.secret import Secret
from stores.settings import StoreSettings
from stores.to import ImageFormat
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from tests.ceph import Ceph
from tests.contract.documents_contract import DocumentsContract
from tests.contract.handler_contract import HandlerContract
from tests.contract.snapshot_contract import SnapshotContract
from tests.doubles.disk_images import qemu_img
from tests.images import open_for_writing


@pytest.fixture(scope="module")
def pool(ceph: Ceph) -> Iterator[str]:
    name = ceph.new_pool()
    yield name
    ceph.remove_pool(name)


@dataclass
class Place:
    """A store on the pool, and our own way to its images, past the store: as the cluster's administrator."""

    ceph: Ceph
    pool: str
    store: RbdStore
    cluster: Cluster
    login: RbdLogin
    directory: Path

    def __post_init__(self) -> None:
        self.prefix = uuid.uuid4().hex[:6]

    def spec(self, name: str) -> str:
        return f"{self.pool}/{self.prefix}-{name}"

    def put(self, name: str, content: bytes) -> None:
        raw = self.directory / "raw"
        raw.write_bytes(content)
        self.ceph.tool("rbd", "import", "--no-progress", str(raw), self.spec(name))

    def write(self, name: str) -> AbstractAsyncContextManager[PendingWrite]:
        return self.store.write(f"{self.prefix}-{name}", Kind.RBD_IMAGE, token="c-1")

    def seen(self, name: str) -> bytes:
        return self.ceph.content(self.spec(name))

    def source(self, name: str, spec: ImageSpec) -> Source:
        """By the cluster that the store itself uses, which was entered before."""
        ref = f"{self.prefix}-{name}"
        image = RbdImage(self.cluster, self.login, name_of(ref), ObjectInfo(ref, None))
        return Source(image.presented(), spec)


@pytest.fixture
async def place(ceph: Ceph, pool: str, tmp_path: Path, engine: TransferEngine) -> AsyncIterator[Place]:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    to = ceph.to(pool)
    store = RbdStore(to, StoreSettings(runtime_dir=runtime), engine)
    login = RbdLogin("vm", Secret(ceph.key))
    cluster = Cluster(place_of_pool(to), lambda: login, engine, ToolRunner(), runtime, connect_s=10, silent_s=30)
    await cluster.call("sizes", ref=pool)  # whoever calls Ceph for it is there from now on
    yield Place(ceph, pool, store, cluster, login, tmp_path)
    await cluster.aclose()
    await store.aclose()
    assert [path for path in runtime.rglob("*") if not path.is_dir()] == []


class TestRbdDocuments(DocumentsContract):
    @pytest.fixture(autouse=True)
    async def documents(self, place: Place) -> AsyncIterator[Documents]:
        self.place = place
        yield StoreDocuments(place.store)
        for name in place.ceph.objects(place.pool):
            place.ceph.tool("rados", "-p", place.pool, "rm", name)

    async def image(self, ref: str) -> None:
        """Documents do not need one."""

    async def left(self) -> int:
        return sum(
            len(self.place.ceph.tool("rados", "-p", self.place.pool, "listomapkeys", name).split())
            for name in self.place.ceph.objects(self.place.pool)
        )


class TestKvmOnRbd(HandlerContract):
    targets = (ImageFormat.RAW,)
    unwritable = ImageFormat.QCOW2
    unreadable = (ImageFormat.OVA, ImageFormat.VDI, ImageFormat.TAR, ImageFormat.DIR, ImageFormat.BAREMETAL)
    expanded = ()

    @pytest.fixture(autouse=True)
    async def handler(self, place: Place, engine: TransferEngine) -> HypervisorHandler:
        self.place = place
        return handlers(engine, ToolRunner(), place.directory / "run")[HypervisorType.KVM]

    def spec(
        self, handler: HypervisorHandler, size: int | None = None, image_format: ImageFormat | None = None
    ) -> ImageSpec:
        return ImageSpec(image_format or ImageFormat.RAW, size, device=True)

    def target(self, name: str) -> AbstractAsyncContextManager[PendingWrite]:
        return self.place.write(name)

    @asynccontextmanager
    async def source(self, name: str, content: bytes) -> AsyncIterator[Source]:
        self.place.put(name, content)
        yield self.place.source(name, ImageSpec(ImageFormat.RAW, len(content)))

    @asynccontextmanager
    async def foreign(self, content: bytes) -> AsyncIterator[Source]:
        raw, vhdx = self.place.directory / "raw", self.place.directory / "foreign.vhdx"
        raw.write_bytes(content)
        qemu_img("convert", "-f", "raw", "-O", "vhdx", str(raw), str(vhdx))
        yield Source(LocalPath(vhdx, ObjectInfo(vhdx.name, None)), ImageSpec(ImageFormat.VHDX, len(content)))

    def seen(self, name: str, image_format: ImageFormat) -> bytes:
        return self.place.seen(name)

    def left(self) -> set[str]:
        return self.place.ceph.images(self.place.pool)


class TestRbdSnapshots(SnapshotContract):
    filled = (ImageFormat.RAW,)
    files = False

    @pytest.fixture(autouse=True)
    async def snapshots(self, place: Place, engine: TransferEngine) -> Snapshots:
        self.place = place
        return handlers(engine, ToolRunner(), place.directory / "run")[HypervisorType.KVM].snapshots

    def volume(self, content: bytes) -> Source:
        self.place.put("v", content)
        return self.committed("v", ImageSpec(ImageFormat.RAW))

    def write(self, volume: Source, offset: int, data: bytes) -> None:
        written = self.place.directory / "written"
        written.write_bytes(data)
        command = f"write -s {written} {offset} {len(data)}"
        subprocess.run(["qemu-io", "-f", "raw", "-c", command, self._opened(volume)], check=True, capture_output=True)

    def seen(self, volume: Source) -> bytes:
        return self.place.ceph.content(f"{self.place.pool}/{volume.presentation.info.ref}")

    def target(self, name: str) -> AbstractAsyncContextManager[PendingWrite]:
        return self.place.write(name)

    def committed(self, name: str, spec: ImageSpec) -> Source:
        return self.place.source(name, spec)

    def in_use(self, volume: Source) -> AbstractAsyncContextManager[None]:
        return open_for_writing(self._opened(volume), ImageFormat.RAW)

    def _opened(self, volume: Source) -> str:
        return f"rbd:{self.place.pool}/{volume.presentation.info.ref}:conf={self.place.ceph.conf}"
