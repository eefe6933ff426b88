"""Everything between the verbs and the disk, real, in directories of its own; and what is left of it afterwards."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from hypervisors.contract import HypervisorType
from hypervisors.images.gate import GateLimits
from hypervisors.operations import Operations
from hypervisors.registry import handlers
from hypervisors.verbs import Call
from stores.resolver import Resolver
from stores.settings import LvmSettings, StoreSettings, UrlSettings
from stores.to import DataTO, ImageStoreTO, PrimaryDataStoreTO
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from tests.doubles.counting import Counting

LOOPBACK = ip_network("127.0.0.0/8")


class Phases:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.done: dict[str, int] = {}
        self.reached = asyncio.Event()
        self.wanted: str | None = None  # `reached` is set when this phase begins

    def phase(self, name: str, total: int | None = None) -> None:
        self.seen.append(name)
        if name == self.wanted:
            self.reached.set()

    def advance(self, count: int) -> None:
        self.done[self.seen[-1]] = self.done.get(self.seen[-1], 0) + count


class World:
    """`root` is the one allowed directory; pools and directory stores are made below it."""

    def __init__(
        self,
        root: Path,
        runtime_dir: Path,
        engine: TransferEngine,
        resolver: Resolver,
        limits: GateLimits,
        counting: Counting,
    ) -> None:
        self.root = root
        self.engine = engine
        self.resolver = resolver
        self.counting = counting
        self.handlers = handlers(engine, ToolRunner(), runtime_dir, limits)
        self.operations = Operations(resolver, self.handlers, engine, lambda: 1_700_000_000.0, limits)

    def pool(self, name: str = "pool", *, full_clone: bool = False) -> PrimaryDataStoreTO:
        path = self.root / name
        path.mkdir(exist_ok=True)
        return PrimaryDataStoreTO(uuid=name, poolType="Filesystem", path=str(path), fullCloneFlag=full_clone)

    def directory(self, name: str = "images") -> ImageStoreTO:
        path = self.root / name
        path.mkdir(exist_ok=True)
        return ImageStoreTO.model_validate({"uri": f"file://{path}"})

    def call(self, token: str = "c-1", progress: Phases | None = None) -> Call:
        return Call(token, HypervisorType.KVM, progress or Phases())

    def path(self, image: DataTO) -> Path:
        """Where an image of a pool lies."""
        store = image.store
        assert isinstance(store, PrimaryDataStoreTO)
        return Path(str(store.path)) / str(image.path)

    def files(self, pool: str = "pool") -> set[str]:
        """Every file in the pool, records and unfinished ones included."""
        root = self.root / pool
        return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


@asynccontextmanager
async def world(
    *,
    limits: GateLimits | None = None,
    ca_file: Path | None = None,
    root: Path | None = None,
    lvm: LvmSettings | None = None,
) -> AsyncIterator[World]:
    """On leaving asserts that no task, socket, descriptor or process is left. A `root` that is given stays."""
    base = Path(tempfile.mkdtemp(prefix="sa-")) if root is None else root
    before = (_descriptors(), _children())
    directory = base / "root"
    directory.mkdir(exist_ok=True)
    runtime = base / "run"
    runtime.mkdir(mode=0o700, exist_ok=True)
    settings = StoreSettings(
        roots=(directory,),
        runtime_dir=runtime,
        notes_dir=base / "notes",
        urls=UrlSettings(allow_http=True, allow_networks=(LOOPBACK,), ports=()),
        ca_file=ca_file,
        connect_timeout=5.0,
        read_timeout=10.0,
        attempts=3,
        lvm=lvm or LvmSettings(),
    )
    engine = TransferEngine()
    counting = Counting()
    resolver = Resolver(settings, engine, observer=counting)
    made = World(directory, runtime, engine, resolver, limits or GateLimits(), counting)
    tasks = asyncio.all_tasks()
    try:
        yield made
        await made.resolver.aclose()
        for handler in made.handlers.values():
            await handler.aclose()
        await engine.aclose()
        await _over(tasks)
        assert [path for path in runtime.rglob("*") if not path.is_dir()] == []
        assert _children() == before[1]
        assert sum(_descriptors().values()) <= sum(before[0].values()) + 2, (before[0], _descriptors())
    finally:
        await made.resolver.aclose()
        await engine.aclose()
        if root is None:
            shutil.rmtree(base, ignore_errors=True)


async def _over(tasks: set[asyncio.Task[Any]]) -> None:
    """No other tasks are left. Those of servers in the test's own loop end when they have seen that we are gone."""
    for attempt in range(100):
        await asyncio.sleep(0.02 if attempt else 0)
        left = asyncio.all_tasks() - {asyncio.current_task()} - tasks
        if not left:
            return
    raise AssertionError(left)


def records_of(*refs: str) -> set[str]:
    """What `World.files` shows for images of these names."""
    return {*refs, *(f".storage-agent/images/{ref}.json" for ref in refs)}


def _descriptors() -> dict[str, int]:
    """How many descriptors lead where; libraries keep a few for good, so that only numbers are compared."""
    found: dict[str, int] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}").partition(":")[0]
        except FileNotFoundError:
            continue
        found[target] = found.get(target, 0) + 1
    return found


def _children() -> set[str]:
    return {
        child
        for thread in threading.enumerate()
        if thread.native_id is not None
        for child in _children_of(thread.native_id)
    }


def _children_of(thread: int) -> list[str]:
    try:
        return Path(f"/proc/self/task/{thread}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []


@asynccontextmanager
async def running_qemu(volume: Path) -> AsyncIterator[None]:
    """A virtual machine, without a program, that has the volume open for writing."""
    process = await asyncio.create_subprocess_exec(
        "qemu-system-x86_64",
        *("-machine", "none", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"),
        *("-blockdev", f"driver=qcow2,node-name=disk,file.driver=file,file.filename={volume}"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert b"QMP" in await process.stdout.readline()
        yield
    finally:
        process.terminate()
        await process.wait()
