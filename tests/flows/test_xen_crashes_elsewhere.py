"""kill -9 of what takes more than one SR: a copy from pool to pool, and a new SR. The rest: `test_xen_crashes`; of guests,
`test_xen_attaching`.

Both change something at many steps that are alike, so that only each third dies.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hypervisors.contract import HypervisorType
from hypervisors.images.gate import GateLimits
from hypervisors.operations import Operations
from hypervisors.verbs import Call, Copy, CreatePool, Delete, DeletePool, Request
from hypervisors.xen.handler import XenHandler
from hypervisors.xen.importing import Importer
from hypervisors.xen.pool import XenPool
from hypervisors.xen.snapshots import XenSnapshots
from stores.contract import MiB
from stores.secret import Secret
from stores.to import ImageFormat, PrimaryDataStoreTO, VolumeObjectTO
from stores.tools.process import ToolRunner
from tests.doubles.dying import killed
from tests.doubles.dying_xen import watch
from tests.doubles.world import world
from tests.doubles.xapi import Remote, process
from tests.images import content
from tests.xen_pools import Clock, settings

MOST, EACH = 90, 3
SIZE = 4 * MiB
NFS = PrimaryDataStoreTO(
    uuid="p-1",
    poolType="NetworkFilesystem",
    host="nfs.example",
    path="/exports/a",
    details={"pool": Secret("b")},
)


@dataclass(frozen=True)
class Stage:
    """Two pools of hosts, "a" and "b", which outlive the agent."""

    base: Path
    remotes: dict[str, Remote]

    def play(self, work: Callable[[Operations, XenHandler], Awaitable[Any]]) -> Any:
        """In a new life of the agent."""

        async def live() -> Any:
            async with self._agent() as (operations, handler):
                return await work(operations, handler)

        return asyncio.run(live())

    @asynccontextmanager
    async def _agent(self) -> AsyncIterator[tuple[Operations, XenHandler]]:
        async with world(root=self.base) as here:
            told = [settings(remote.access, name=name, grace_s=0.1) for name, remote in self.remotes.items()]
            pools = [XenPool(one, clock=Clock()) for one in told]
            importer = Importer(here.engine, ToolRunner(), self.base / "run", limit=GateLimits().virtual_size)
            handler = XenHandler(here.engine, pools, importer, XenSnapshots(here.engine, pools, importer))
            handlers = {HypervisorType.XEN: handler}
            try:
                yield Operations(here.resolver, handlers, here.engine, lambda: 1_700_000_000.0, GateLimits()), handler
            finally:
                await handler.aclose()

    def dies(self, request: Request, token: str, step: int) -> bool:
        async def die(operations: Operations, handler: XenHandler) -> None:
            await run(operations, request, token)

        if not killed(lambda: self.play(die), step, watch):
            return False
        for remote in self.remotes.values():
            remote.control("drop_sessions")
        shutil.rmtree(self.base / "run", ignore_errors=True)  # systemd empties it between two lives
        return True

    def recovered(self, request: Request, token: str) -> str:
        """What becomes of it at the agent's next start."""

        async def start(operations: Operations, handler: XenHandler) -> str:
            outcome = (await operations.recover(HypervisorType.XEN, request, token)).outcome
            await handler.reconcile()
            return outcome

        outcome: str = self.play(start)
        assert self.leftovers() == []
        return outcome

    def sr(self, name: str) -> PrimaryDataStoreTO:
        """The shared SR of that pool."""
        return PrimaryDataStoreTO(uuid=self.remotes[name].control("srs")["shared"], poolType="SR")

    def disks(self, name: str) -> dict[str, str]:
        """Digests by name."""
        control = self.remotes[name].control
        vdis = control("left")["vdis"]
        assert len({record["name_label"] for record in vdis.values()}) == len(vdis)
        return {record["name_label"]: control("digest", vdi=uuid) for uuid, record in vdis.items()}

    def leftovers(self) -> list[str]:
        """Without XAPI's own tasks that ended before anybody noted whose they are: see `hypervisors.xen.tasks`."""
        lefts = [remote.control("left") for remote in self.remotes.values()]
        return [
            *(task["name_label"] for left in lefts for task in left["tasks"] if not _nobodys(task)),
            *(vbd for left in lefts for vbd in left["dom0_vbds"]),
            *(key for left in lefts for config in left["sr_configs"].values() for key in config),
            *(originator for left in lefts for originator in left["sessions"]),
        ]


def _nobodys(task: dict[str, Any]) -> bool:
    return task["status"] != "pending" and task["name_label"].startswith("Async.") and not task["other_config"]


async def run(operations: Operations, request: Request, token: str) -> None:
    call = Call(token, HypervisorType.XEN)
    match request:
        case Copy():
            await operations.copy(call, request)
        case Delete():
            await operations.delete(call, request)
        case CreatePool():
            await operations.create_pool(call, request)
        case DeletePool():
            await operations.delete_pool(call, request)
        case _:
            raise AssertionError(request)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    base = Path(tempfile.mkdtemp(prefix="sa-"))  # short: sockets are made in it
    try:
        with ExitStack() as stack:
            yield Stage(base, {name: stack.enter_context(process(base / name)) for name in "ab"})
    finally:
        shutil.rmtree(base)


def test_a_copy_from_pool_to_pool(stage: Stage) -> None:
    data = stage.base / "data"
    data.write_bytes(content(MiB, seed=1))
    uuid = stage.remotes["a"].control("make_vdi", sr=stage.sr("a").uuid, size=SIZE, content=str(data), name="theirs")
    made = VolumeObjectTO(uuid="new", path="new", dataStore=stage.sr("b"))
    copy = Copy(VolumeObjectTO(uuid=uuid, path=uuid, format=ImageFormat.VHD, dataStore=stage.sr("a")), made)
    before = stage.disks("a")
    done = {"new": before["theirs"]}
    outcomes = set()

    def dies(step: int) -> bool:
        """And all is as before again."""
        token = f"copy-{step}"
        dead = stage.dies(copy, token, step)
        outcome = stage.recovered(copy, token) if dead else "finished"
        assert stage.disks("a") == before
        assert stage.disks("b") == (done if outcome == "finished" else {})
        if outcome == "finished":
            stage.play(lambda operations, _: run(operations, Delete(made), "undo"))
        if dead:
            outcomes.add(outcome)
        return dead

    end = next(step for step in range(1, MOST, EACH) if not dies(step))
    for step in range(end - EACH + 1, end):  # of the last ones each: they are what finishes it
        dies(step)
    assert outcomes == {"finished", "undone"}


def test_a_new_sr(stage: Stage) -> None:
    """The same command finishes it."""
    control = stage.remotes["b"].control
    create, disks = CreatePool(NFS), stage.disks("b")
    for step in range(1, MOST, EACH):
        token = f"create-{step}"
        if not stage.dies(create, token, step):
            break
        stage.recovered(create, token)
        stage.play(lambda operations, _: run(operations, create, "again"))
        assert "p-1" in control("srs")
        assert (stage.leftovers(), stage.disks("b")) == ([], disks)
        stage.play(lambda operations, _: run(operations, DeletePool(NFS, everywhere=True), "undo"))
        assert "p-1" not in control("srs")
    assert 1 < step < MOST - EACH
