"""An agent that dies at any step of what it does to a Hyper-V pool, and the next one, which accounts for that."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from agent.commands import COMMAND
from agent.config import Config
from agent.wiring import Parts, build
from hypervisors.contract import HypervisorType
from stores.contract import MiB
from stores.transfer.engine import TransferEngine
from tests.doubles.disk_images import qemu_img
from tests.doubles.hyperv.model import Drive, Machine
from tests.doubles.mortal_hyperv import Mortal, carried_out, parent, request
from tests.hyperv import disk, until
from tests.hyperv_agent import Body, hyperv_config, in_share
from tests.hyperv_place import HypervPlace, hyperv_place
from tests.samba import SambaServer

SIZE = 6 * MiB
POINTS = 4
"""Steps at which each verb is killed, evenly over all of them, and the last ones."""


@lru_cache(maxsize=8)
def content(seed: int = 1) -> bytes:
    rng = random.Random(seed)
    return rng.randbytes(MiB) + bytes(SIZE - MiB - 4096) + rng.randbytes(4096)


@dataclass
class Site:
    place: HypervPlace
    mortal: Mortal
    parts: Parts
    images: Path
    tokens: int = field(default=0)

    def at(self, kind: str, path: str, **fields: Any) -> Body:
        return in_share(self.place.samba, self.place.folder.name, kind, path, **fields)

    def template(self, name: str = "t") -> Body:
        store = {"storeType": "image", "uri": f"file://{self.images}"}
        source = {"type": "template", "path": "t.qcow2", "format": "QCOW2", "imageDataStore": store}
        return {"command": "Copy", "source": source, "destination": self.at("template", name)}

    def token(self) -> str:
        self.tokens += 1
        return f"c-{self.tokens}"

    async def done(self, command: Body) -> None:
        await carried_out(self.parts.operations, request(command), self.token())

    async def dies(self, command: Body, at: int) -> tuple[bool, int]:
        """And the next agent accounts for it: True if it was found finished. Otherwise how many steps it lived."""
        token = self.token()
        died, steps = await asyncio.to_thread(self.mortal.die, command, token, at)
        if not died:
            return True, steps
        outcome = await self.parts.execution.undo(COMMAND.validate_python(command), token)
        again = await self.parts.execution.undo(COMMAND.validate_python(command), token)
        assert (again is None) == (outcome is None)
        return outcome is not None, steps

    def machine(self, name: str) -> Machine:
        machine = self.place.host.model.add_machine("vm", state="Running")
        machine.disks = [Drive("SCSI", 0, 0, disk(f"{name}.vhdx"))]
        return machine

    def unfinished(self) -> list[str]:
        return [name for name in self.place.files() if name.endswith(".partial")]

    def digest(self, name: str) -> str:
        return hashlib.sha256(self.place.content(name)).hexdigest()


@asynccontextmanager
async def site_in(folder: Path, samba: SambaServer, engine: TransferEngine, dying: Popen[str]) -> AsyncIterator[Site]:
    images = folder / "images"
    images.mkdir()
    (folder / "raw").write_bytes(content())
    qemu_img("convert", "-f", "raw", "-O", "qcow2", str(folder / "raw"), str(images / "t.qcow2"))
    (folder / "agent" / "state").mkdir(parents=True, mode=0o700)
    async with hyperv_place(folder, engine, samba, deaths=True) as place:
        config = hyperv_config(place.host, samba, place.folder.name, folder / "agent", roots=[images])
        parts = build(Config.model_validate(config))
        try:
            yield Site(place, Mortal(dying, config), parts, images)
        finally:
            await parts.aclose()


@pytest.fixture(scope="module")
def dying() -> Iterator[Popen[str]]:
    with parent() as process:
        yield process


@pytest.fixture
async def site(tmp_path: Path, samba: SambaServer, engine: TransferEngine, dying: Popen[str]) -> AsyncIterator[Site]:
    async with site_in(tmp_path, samba, engine, dying) as made:
        yield made


async def seen(site: Site, name: str) -> bytes:
    """What a guest reads from that disk."""
    return await site.place.host.model.vhds.content(disk(f"{name}.vhdx"))


def points(steps: int) -> list[int]:
    return sorted({*(1 + number * steps // POINTS for number in range(POINTS)), *range(max(steps - 1, 1), steps + 1)})


@pytest.mark.parametrize("what", ["template", "linked clone", "full clone"])
async def test_killed_while_an_image_is_made(site: Site, what: str) -> None:
    target = "x"
    command = site.template(target)
    if what != "template":
        await site.done(site.template())
        destination = site.at("volume", target, full=what == "full clone")
        command = {"command": "Copy", "source": site.at("template", "t"), "destination": destination}
    delete = {"command": "Delete", "data": site.at("volume", target)}
    before = site.place.files()
    _, steps = await site.dies(command, 0)
    await site.done(delete)
    assert site.place.files() == before
    outcomes = set()
    for at in points(steps):
        finished, _ = await site.dies(command, at)
        outcomes.add(finished)
        assert site.unfinished() == []
        if not finished:
            assert site.place.files() == before
            await site.done(command)
        assert await seen(site, target) == content()
        await site.done(delete)
        assert site.place.files() == before
    assert outcomes == {True, False}
    assert site.parts.config.agent.hypervisor is HypervisorType.HYPERV


@pytest.mark.parametrize("running", [False, True])
async def test_killed_while_a_snapshot_is_made(site: Site, running: bool) -> None:
    """Of a disk that a machine has: also the checkpoint is gone, and merged."""
    await site.done(site.template("v"))
    machine = site.machine("v")
    machine.state = "Running" if running else "Off"
    digest = site.digest("v")
    named = {"name": "s", "volume": site.at("volume", "v")}
    command = {"command": "CreateObject", "data": site.at("snapshot", "v/s", **named)}
    delete = {"command": "Delete", "data": site.at("snapshot", "v/s")}
    before = site.place.files()
    _, steps = await site.dies(command, 0)
    await site.done(delete)
    assert site.place.files() == before
    outcomes = set()
    for at in points(steps):
        finished, _ = await site.dies(command, at)
        outcomes.add(finished)
        await until(lambda: not machine.merging)
        assert machine.checkpoints == []
        assert [drive.path for drive in machine.disks] == [disk("v.vhdx")]
        assert site.unfinished() == []
        if not finished:
            assert site.place.files() == before
            await site.done(command)
        assert site.digest(".storage-agent/frozen/v/s") == site.digest("v") == digest
        await site.done(delete)
        assert site.place.files() == before
    assert outcomes == {True, False}


async def test_killed_while_going_back(site: Site) -> None:
    await site.done(site.template("v"))
    named = {"name": "s", "volume": site.at("volume", "v")}
    await site.done({"command": "CreateObject", "data": site.at("snapshot", "v/s", **named)})
    then = site.digest("v")
    command = {"command": "RevertSnapshot", "data": site.at("snapshot", "v/s")}
    _, steps = await site.dies(command, 0)
    for at in points(steps):
        site.place.write("v", 2 * MiB, random.Random(at).randbytes(MiB))
        now = site.digest("v")
        finished, _ = await site.dies(command, at)
        assert site.unfinished() == []
        assert site.digest("v") == (then if finished else now)
        await site.done(command)
        assert site.digest("v") == then


async def test_killed_while_resizing(site: Site) -> None:
    """The host has done it, or not, and what is told of it is so; the same again is done."""
    await site.done(site.template("v"))
    before, size = site.place.files(), SIZE

    def larger() -> Body:
        nonlocal size
        size += MiB
        return {"command": "ResizeVolume", "data": site.at("volume", "v"), "newSize": size}

    _, steps = await site.dies(larger(), 0)
    outcomes = set()
    for at in points(steps):
        command = larger()
        finished, _ = await site.dies(command, at)
        outcomes.add(finished)
        if finished:
            assert len(await seen(site, "v")) == size
        await site.done(command)
        assert await seen(site, "v") == content() + bytes(size - SIZE)
        assert site.place.files() == before
    assert outcomes == {True, False}


async def test_killed_while_restoring(site: Site) -> None:
    await site.done(site.template("v"))
    named = {"name": "s", "volume": site.at("volume", "v")}
    await site.done({"command": "CreateObject", "data": site.at("snapshot", "v/s", **named)})
    store = {"storeType": "image", "uri": f"file://{site.images}"}
    backup = {"type": "snapshot", "path": "b/s", "hypervisorType": "Hyperv", "dataStore": store}
    await site.done({"command": "Copy", "source": site.at("snapshot", "v/s"), "destination": backup})
    command = {"command": "Copy", "source": backup, "destination": site.at("volume", "x")}
    delete = {"command": "Delete", "data": site.at("volume", "x")}
    before = site.place.files()
    _, steps = await site.dies(command, 0)
    await site.done(delete)
    outcomes = set()
    for at in points(steps):
        finished, _ = await site.dies(command, at)
        outcomes.add(finished)
        assert site.unfinished() == []
        if not finished:
            assert site.place.files() == before
            await site.done(command)
        assert await seen(site, "x") == content()
        await site.done(delete)
        assert site.place.files() == before
    assert outcomes == {True, False}


@pytest.mark.parametrize("what", ["volume", "ISO"])
async def test_killed_while_a_machine_gets_and_loses_something(site: Site, what: str) -> None:
    """It has it, or not, and what is told of that is so."""
    machine = site.place.host.model.add_machine("vm", state="Running")
    if what == "volume":
        await site.done(site.template("i"))
        told = {"disk": {"type": "DATADISK", "data": site.at("volume", "i"), "diskSeq": 1}}
    else:
        (site.place.folder / "i.iso").write_bytes(content())
        told = {"disk": {"type": "ISO", "data": site.at("template", "i", format="ISO")}}
    image = disk("i.vhdx" if what == "volume" else "i.iso")
    attach, detach = ({"command": verb, "vmName": "vm", **told} for verb in ("Attach", "Dettach"))
    before = site.place.files()

    def has() -> list[str | None]:
        return [drive.path for drive in (*machine.disks, *machine.dvd_drives) if drive.path is not None]

    for command, other, now in ((attach, detach, [image]), (detach, attach, [])):
        await site.done(other)
        _, steps = await site.dies(command, 0)
        outcomes = set()
        for at in points(steps):
            await site.done(other)
            then = has()
            assert then != now
            finished, _ = await site.dies(command, at)
            outcomes.add(finished)
            assert has() == (now if finished else then)
            await site.done(command)
            assert has() == now
            assert site.place.files() == before
        assert outcomes == ({True} if (what, command) == ("ISO", detach) else {True, False})


async def test_killed_while_deleting(site: Site) -> None:
    await site.done(site.template())
    empty = site.place.files()
    clone = {"command": "Copy", "source": site.at("template", "t"), "destination": site.at("volume", "x")}
    command = {"command": "Delete", "data": site.at("volume", "x")}
    await site.done(clone)
    _, steps = await site.dies(command, 0)
    for at in points(steps):
        await site.done(clone)
        finished, _ = await site.dies(command, at)
        if not finished:
            assert await seen(site, "x") == content()
            await site.done(command)
        assert site.place.files() == empty
