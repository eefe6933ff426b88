"""The verbs over XenServer's disks, each with what is there before and after it: for tests that disturb them.

The pool of hosts is a process of its own, which outlives an agent that dies, and is looked at behind everybody's back.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from hypervisors.backups.manifest import SUFFIX
from hypervisors.contract import HypervisorType
from hypervisors.images.gate import GateLimits
from hypervisors.operations import Operations
from hypervisors.verbs import Call, Copy, Create, Delete, Request, Resize, Revert
from hypervisors.xen.handler import XenHandler
from hypervisors.xen.importing import Importer
from hypervisors.xen.pool import XenPool
from hypervisors.xen.reconciling import reconcile
from hypervisors.xen.snapshots import XenSnapshots
from stores.contract import MiB
from stores.to import ImageFormat, PrimaryDataStoreTO, SnapshotObjectTO, TemplateObjectTO, VolumeObjectTO
from stores.tools.process import ToolRunner
from tests.doubles.disk_images import qemu_img
from tests.doubles.world import World, world
from tests.doubles.xapi import Remote, process
from tests.xen_pools import Clock, settings

SIZE = 4 * MiB
FORMATS = {"qcow2": ImageFormat.QCOW2, "vhd": ImageFormat.VHD, "raw": ImageFormat.RAW}
ORIGINATOR = "agent-1"


@lru_cache(maxsize=8)
def content(seed: int) -> bytes:
    """Data at both ends and a hole between."""
    rng = random.Random(seed)
    return rng.randbytes(3 * MiB // 2) + bytes(SIZE - 3 * MiB // 2 - 4096) + rng.randbytes(4096)


State: TypeAlias = dict[str, Any]
"""Of disks and backups: what they hold, and what is recorded of them, as far as it is not different each time."""


@dataclass
class Scene:
    """An agent, in a directory that outlives it, beside a pool that does as well."""

    here: World
    remote: Remote
    xen: XenPool
    handler: XenHandler
    operations: Operations

    def sr(self, name: str = "shared") -> PrimaryDataStoreTO:
        return PrimaryDataStoreTO(uuid=name, poolType="SR")

    def image(self, name: str) -> TemplateObjectTO:
        return TemplateObjectTO(path=f"t.{name}", format=FORMATS[name], imageDataStore=self.here.directory())

    def volume(self, name: str, sr: str = "shared", **told: Any) -> VolumeObjectTO:
        return VolumeObjectTO(uuid=name, path=name, dataStore=self.sr(sr), **told)

    def template(self, name: str) -> TemplateObjectTO:
        return TemplateObjectTO(uuid=name, path=name, imageDataStore=self.sr())

    def snapshot(self, name: str) -> SnapshotObjectTO:
        return SnapshotObjectTO(path=f"v/{name}", dataStore=self.sr())

    def backup(self, name: str, parent: str | None = None) -> SnapshotObjectTO:
        return SnapshotObjectTO(path=f"b/{name}", dataStore=self.here.directory("backups"), parentSnapshotPath=parent)

    async def run(self, request: Request, token: str) -> Any:
        call = Call(token, HypervisorType.XEN)
        match request:
            case Copy():
                return await self.operations.copy(call, request)
            case Create():
                return await self.operations.create(call, request)
            case Delete():
                return await self.operations.delete(call, request)
            case Resize():
                return await self.operations.resize(call, request)
            case Revert():
                return await self.operations.revert(call, request)
            case _:
                raise AssertionError(request)

    async def tidied(self) -> None:
        """As the agent's next process does at its start."""
        later = XenPool(self.xen.settings, clock=Clock())
        try:
            await reconcile(later)
        finally:
            await later.aclose()

    # --------------------------------------------------------------------------------------- behind everybody's back

    def write(self, name: str, offset: int, data: bytes) -> None:
        """As a guest."""
        (path := self.here.root / "written").write_bytes(data)
        self.remote.control("write", vdi=self._named(name), offset=offset, content=str(path))

    def state(self) -> State:
        found: State = {}
        for uuid, record in self.remote.control("left")["vdis"].items():
            name = record["name_label"]
            if name in found:
                name += ", another"
            content = self.remote.control("digest", vdi=uuid)
            found[name] = (
                record["SR"],
                int(record["virtual_size"]),
                content,
                _records(record["other_config"]),
            )
        for *_, records in found.values():  # a child that is gone is none, whatever its parent still says
            gone = [
                key for key in records if key.startswith("children/") and key.removeprefix("children/") not in found
            ]
            for key in gone:
                del records[key]
        for path in (self.here.root / "backups").rglob("*.json"):  # an object without a manifest is no backup
            content = path.with_name(path.name.removesuffix(SUFFIX)).read_bytes()
            found[f"backup {path.name}"] = hashlib.sha256(content).hexdigest()
        return found

    def leftovers(self) -> list[str]:
        """Of transfers, copies and locks."""
        left = self.remote.control("left")
        keys = [key for record in left["vdis"].values() for key in record["other_config"] if "copying" in key]
        return [
            *(task["name_label"] for task in left["tasks"]),
            *left["dom0_vbds"],
            *keys,
            *(key for config in left["sr_configs"].values() for key in config),
        ]

    def stale(self) -> list[str]:
        """Documents whose replacement was not carried to its end."""
        configs = [record["other_config"] for record in self.remote.control("left")["vdis"].values()]
        return [name for config in configs for name, versions in _documents(config).items() if len(versions) > 1]

    def _named(self, name: str) -> str:
        vdis = self.remote.control("left")["vdis"]
        (uuid,) = (uuid for uuid, record in vdis.items() if record["name_label"] == name)
        return str(uuid)


_KNOWN = ("format", "virtual_size", "backing", "kept")


def _documents(config: dict[str, str]) -> dict[str, dict[int, str]]:
    """Of a disk, by name: their versions, of which the highest counts."""
    found: dict[str, dict[int, str]] = {}
    for key, value in config.items():
        name, _, number = key.removeprefix("storage-agent:doc:").rpartition("#")
        if key.startswith("storage-agent:doc:"):
            found.setdefault(name, {})[int(number)] = value
    return found


def _records(config: dict[str, str]) -> dict[str, Any]:
    """What is kept with a disk: names of documents, and of the records what is the same each time."""
    found: dict[str, Any] = {}
    for name, versions in _documents(config).items():
        told = json.loads(versions[max(versions)] or "{}")
        if not name.startswith("sent/"):  # what was sent is remembered also when it is deleted there
            found[name] = {field: told[field] for field in _KNOWN if field in told}
    return found


@asynccontextmanager
async def scene(base: Path, remote: Remote, **changes: Any) -> AsyncIterator[Scene]:
    """On leaving asserts that the process has left no task, socket, file and process of its own."""
    async with world(root=base) as here:
        pool = XenPool(settings(remote.access, originator=ORIGINATOR, **changes), clock=Clock())
        run = base / "run"
        importer = Importer(here.engine, ToolRunner(), run, limit=GateLimits().virtual_size)
        handler = XenHandler(here.engine, [pool], importer, XenSnapshots(here.engine, [pool], importer))
        operations = Operations(
            here.resolver, {HypervisorType.XEN: handler}, here.engine, lambda: 1_700_000_000.0, GateLimits()
        )
        try:
            yield Scene(here, remote, pool, handler, operations)
        finally:
            await handler.aclose()


@contextmanager
def furnished() -> Iterator[tuple[Path, Remote]]:
    """A directory and a pool that outlive agents, with all that `VERBS` need."""
    base = Path(tempfile.mkdtemp(prefix="sa-"))  # short: sockets are made in it
    try:
        with process(base / "p") as remote:

            async def begin() -> None:
                async with scene(base, remote) as here:
                    await furnish(here)

            asyncio.run(begin())
            yield base, remote
    finally:
        shutil.rmtree(base)


# ------------------------------------------------------------------------------------------------------------- verbs


@dataclass(frozen=True)
class Verb:
    """`undo`: from what there is afterwards back to what there was before. `fates`: what becomes of it when its process dies.
    `elsewhere`: what is made is in an image store, which a recovery does not ask. `lasting`: what it does cannot be taken back,
    and is there also when it fails after that; again, it ends well."""

    request: Callable[[Scene], Request]
    undo: Callable[[Scene], Awaitable[Any]]
    fates: tuple[str, ...] = ("finished", "undone")
    elsewhere: bool = False
    lasting: bool = False


def deleted(made: Callable[[Scene], Any]) -> Callable[[Scene], Awaitable[Any]]:
    return lambda scene: scene.run(Delete(made(scene)), "undo")


def _written(scene: Scene, seed: int, at: int = 0) -> None:
    scene.write("v", at, content(seed)[: 64 * 1024])


def _snapshot(scene: Scene, name: str) -> Create:
    return Create(SnapshotObjectTO(name=name, volume=scene.volume("v"), dataStore=scene.sr()))


async def _written_again(scene: Scene) -> None:
    _written(scene, 9)


async def _made_again(scene: Scene) -> None:
    await scene.run(Copy(scene.template("t"), scene.volume("d")), "undo")


async def _frozen_again(scene: Scene) -> None:
    _written(scene, 2)
    await scene.run(_snapshot(scene, "s3"), "undo")
    _written(scene, 9)


async def _small_again(scene: Scene) -> None:
    await scene.run(Delete(scene.volume("e")), "undo")
    await scene.run(Create(scene.volume("e", size=2 * MiB)), "undo")


def _copied(kind: str) -> Verb:
    return Verb(
        lambda scene: Copy(scene.image(kind), scene.template("new")), deleted(lambda scene: scene.template("new"))
    )


VERBS = {
    "template from qcow2": _copied("qcow2"),
    "template from vhd": _copied("vhd"),
    "template from raw": _copied("raw"),
    "clone": Verb(
        lambda scene: Copy(scene.template("t"), scene.volume("new", size=2 * SIZE)),
        deleted(lambda scene: scene.volume("new")),
    ),
    "copy to another sr": Verb(
        lambda scene: Copy(scene.volume("v"), scene.volume("new", "blocks")),
        deleted(lambda scene: scene.volume("new", "blocks")),
    ),
    "create": Verb(lambda scene: Create(scene.volume("new", size=4 * MiB)), deleted(lambda scene: scene.volume("new"))),
    "resize": Verb(lambda scene: Resize(scene.volume("e"), 8 * MiB), _small_again, lasting=True),
    "snapshot": Verb(
        lambda scene: _snapshot(scene, "new"),
        deleted(lambda scene: scene.snapshot("new")),
        fates=("undone",),  # its record is the last step
    ),
    "delete snapshot": Verb(
        lambda scene: Delete(scene.snapshot("s3")), _frozen_again, fates=("finished",), lasting=True
    ),
    "revert": Verb(lambda scene: Revert(scene.snapshot("s3")), _written_again),
    "full backup": Verb(
        lambda scene: Copy(scene.snapshot("s3"), scene.backup("new")),
        deleted(lambda scene: scene.backup("new")),
        elsewhere=True,
    ),
    "incremental backup": Verb(
        lambda scene: Copy(scene.snapshot("s3"), scene.backup("new", parent="b/s2")),
        deleted(lambda scene: scene.backup("new")),
        elsewhere=True,
    ),
    "restore": Verb(
        lambda scene: Copy(scene.backup("s2"), scene.volume("new")), deleted(lambda scene: scene.volume("new"))
    ),
    "volume from snapshot": Verb(
        lambda scene: Copy(scene.snapshot("s1"), scene.volume("new")), deleted(lambda scene: scene.volume("new"))
    ),
    "delete": Verb(lambda scene: Delete(scene.volume("d")), _made_again, lasting=True),
}

ALIKE = ("template from vhd", "template from raw", "full backup", "volume from snapshot")
"""What these change in the pool others change as well, in the same order."""

IMPORTING = ("template from qcow2", "template from vhd", "template from raw", "restore")
EXPORTING = ("full backup", "incremental backup")


async def furnish(scene: Scene) -> None:
    """Template t; volume v with snapshots s1, s2, of which there are backups, and s3; volumes d, of t, and e, empty."""
    raw = scene.here.root / "t.raw"
    raw.write_bytes(content(1))
    for name, driver in (("qcow2", "qcow2"), ("vhd", "vpc"), ("raw", "raw")):
        options = ("-o", "force_size=on") if driver == "vpc" else ()
        scene.here.directory()
        target = str(scene.here.root / "images" / f"t.{name}")
        qemu_img("convert", "-f", "raw", "-O", driver, *options, str(raw), target)
    await scene.run(Copy(scene.image("qcow2"), scene.template("t")), "c-t")
    for name in "vd":
        await scene.run(Copy(scene.template("t"), scene.volume(name)), f"c-{name}")
    await scene.run(Create(scene.volume("e", size=2 * MiB)), "c-e")
    for number, name in enumerate(("s1", "s2", "s3")):
        _written(scene, number + 2, at=number * MiB)
        await scene.run(_snapshot(scene, name), f"c-{name}")
    await scene.run(Copy(scene.snapshot("s1"), scene.backup("s1")), "c-b1")
    await scene.run(Copy(scene.snapshot("s2"), scene.backup("s2", parent="b/s1")), "c-b2")
    _written(scene, 9)
