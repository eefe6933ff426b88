"""What goes wrong with host or share while verbs run: the right error, nothing left, and the same again succeeds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path

import pytest

from hypervisors.contract import ImageLocked
from hypervisors.hyperv.errors import HypervBusy, HypervRefused
from hypervisors.verbs import Copy, Create, Delete, Resize, Revert
from stores.contract import MiB
from stores.errors import AccessDenied, IntegrityError, NoSpace, NotFound, Retry, StorageError, Unavailable
from stores.to import ImageFormat, SnapshotObjectTO, TemplateObjectTO
from tests.doubles.fault_proxy import FaultProxy
from tests.doubles.hyperv import ScriptFault, WireFault
from tests.doubles.mounts import mounted_tmpfs
from tests.doubles.world import Phases
from tests.hyperv import until
from tests.hyperv_lab import SIZE, Lab, content, laboratory
from tests.samba import SambaServer


@pytest.fixture
async def lab(tmp_path: Path, samba: SambaServer) -> AsyncIterator[Lab]:
    async with laboratory(tmp_path, samba) as made:
        yield made


@asynccontextmanager
async def over_a_proxy(folder: Path, samba: SambaServer) -> AsyncIterator[tuple[Lab, FaultProxy]]:
    async with FaultProxy(samba.port) as proxy, laboratory(folder, samba, port=proxy.port) as made:
        yield made, proxy


Verb = Callable[[Lab], Awaitable[object]]


async def template(lab: Lab) -> None:
    source = TemplateObjectTO(path="t.img", format=ImageFormat.QCOW2, imageDataStore=lab.images())
    await lab.copied(source, TemplateObjectTO(uuid="x", path="x", imageDataStore=lab.pool()))


async def clone(lab: Lab) -> None:
    await lab.clone(TemplateObjectTO(path="t", imageDataStore=lab.pool()), "x")


async def empty(lab: Lab) -> None:
    await lab.operations.create(lab.call(), Create(lab.volume_to("x", MiB)))


async def snapshot(lab: Lab) -> None:
    await lab.snapshot("s")


async def grown(lab: Lab) -> None:
    await lab.operations.resize(lab.call(), Resize(lab.volume_to("r"), 2 * SIZE))


VERBS: dict[str, tuple[Verb, tuple[str, ...]]] = {
    "template": (template, ("test-vhd", "get-file")),
    "clone": (clone, ("get-vhd", "test-vhd", "get-file")),
    "empty volume": (empty, ("test-vhd", "get-file")),
    "snapshot": (snapshot, ("get-vhd", "find-machines", "new-checkpoint", "test-vhd", "get-file", "remove-checkpoint")),
    "resize": (grown, ("get-vhd", "resize-vhd")),
}


REFUSALS: list[tuple[int, type[StorageError], Retry]] = [
    (0x80070070, HypervRefused, Retry.OPERATOR),
    (0x800700AA, HypervBusy, Retry.YES),
    (0x80070020, ImageLocked, Retry.YES),
]


async def prepared(lab: Lab) -> None:
    """Template `t`, volume `v` of a machine that runs, volume `r`."""
    await lab.template(content())
    await lab.volume(content(2))
    await lab.volume(content(3), "r")
    lab.machine("v")


async def undone(lab: Lab, name: str) -> None:
    """What the verb has made is gone again."""
    if name == "snapshot":
        await lab.operations.delete(lab.call(), Delete(SnapshotObjectTO(path="v/s", dataStore=lab.pool())))
    elif name != "resize":
        await lab.operations.delete(lab.call(), Delete(lab.volume_to("x")))


async def expect_as_before(lab: Lab, before: set[str]) -> None:
    machine = lab.place.host.model.machines["vm"]
    await until(lambda: not machine.merging)
    assert machine.checkpoints == []
    assert lab.place.files() == before
    assert lab.seen("v") == content(2)


# ----------------------------------------------------------------------------------------------------------- the host


@pytest.mark.parametrize("name", VERBS)
async def test_every_script_may_be_refused(lab: Lab, name: str) -> None:
    """What the host says is told, and whether it helps to try again. Scripts take turns over what may be said."""
    await prepared(lab)
    verb, scripts = VERBS[name]
    before = lab.place.files()
    for script, (hresult, kind, retry) in zip(scripts, cycle(REFUSALS), strict=False):
        lab.place.host.faults.scripts[:] = [ScriptFault(script, "OperationFailed", hresult)]
        with pytest.raises(kind) as refused:
            await verb(lab)
        assert refused.value.retry is retry
        assert lab.place.host.faults.scripts[0].hits == 1
        await expect_as_before(lab, before)
    lab.place.host.faults.scripts.clear()
    await verb(lab)
    await undone(lab, name)
    await expect_as_before(lab, before)


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_every_message_may_be_lost(lab: Lab, name: str, when: str) -> None:
    """Scripts are run again: nobody sees anything of it."""
    await prepared(lab)
    verb, _ = VERBS[name]
    before = lab.place.files()
    step, lost = 0, True
    while lost:
        fault = WireFault("*", when, skip=step)  # type: ignore[arg-type]
        lab.place.host.faults.wire[:] = [fault]
        await verb(lab)
        lost = fault.hits == 1
        lab.place.host.faults.wire.clear()
        await undone(lab, name)
        await expect_as_before(lab, before)
        step += 9
    assert step >= 10 or name == "resize"


async def test_a_host_that_does_not_know_us_any_more(lab: Lab) -> None:
    await prepared(lab)
    before = lab.place.files()
    await lab.place.host.shells.close()
    lab.place.host.faults.wire[:] = [WireFault("Create", action="fault", code=5, times=None)]
    for name in ("template", "clone", "snapshot"):
        with pytest.raises(AccessDenied):
            await VERBS[name][0](lab)
        await expect_as_before(lab, before)
    lab.place.host.faults.wire.clear()
    await template(lab)


async def test_a_disk_that_the_host_does_not_take(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would be if our VHDX were not what Hyper-V expects."""
    await prepared(lab)
    before = lab.place.files()

    async def invalid(self: object, told: object) -> object:
        return {"valid": False, "problem": {"id": "x", "hresult": -1, "message": "the chain is broken"}}

    lab.place.host.scripts._commands["test-vhd"] = lambda told: invalid(None, told)
    for name in ("template", "clone", "empty volume", "snapshot"):
        with pytest.raises(IntegrityError, match="the chain is broken"):
            await VERBS[name][0](lab)
        await expect_as_before(lab, before)


# ---------------------------------------------------------------------------------------------------------- the share


@pytest.mark.parametrize("name", ["template", "clone", "snapshot"])
async def test_connections_that_break(tmp_path: Path, samba: SambaServer, name: str) -> None:
    """Once, after so many bytes of the server's: nobody sees anything of it, or nothing is left."""
    async with over_a_proxy(tmp_path, samba) as (lab, proxy):
        await prepared(lab)
        verb, _ = VERBS[name]
        before = lab.place.files()
        failed = 0
        for cut in (1, 900, 1700, 2800, 5000):
            await lab.place.place.share.aclose()  # so that there are new connections
            proxy.cut_after, proxy.cut_times = cut, 1
            try:
                await verb(lab)
                proxy.cut_after = None
                await undone(lab, name)
            except Unavailable:
                failed += 1
            proxy.cut_after = None
            await expect_as_before(lab, before)
        await verb(lab)


async def test_a_share_without_room(tmp_path: Path, lab: Lab) -> None:
    lab.image("t.img", content(), ImageFormat.QCOW2)
    with mounted_tmpfs(lab.place.folder, options="size=6m"):
        with pytest.raises(NoSpace):
            await template(lab)
        assert lab.place.files() == set()
        await empty(lab)
        for source in ("x",):
            with pytest.raises(NoSpace):
                await lab.copied(lab.volume_to(source), lab.volume_to("y", 4 * SIZE))
        assert lab.images_there() == {"x.vhdx"}


async def test_a_folder_that_is_gone(lab: Lab) -> None:
    lab.image("t.img", content(), ImageFormat.QCOW2)
    lab.place.folder.rmdir()
    with pytest.raises(NotFound):
        await template(lab)
    assert not lab.place.folder.exists()
    lab.place.folder.mkdir()
    await template(lab)
    assert lab.seen("x") == content()


async def test_a_write_that_was_cut_short(lab: Lab) -> None:
    """By whoever else has access to the share: what is there is not what was written."""
    lab.image("t.img", content(), ImageFormat.QCOW2)

    class Cutting(Phases):
        def phase(self, name: str, total: int | None = None) -> None:
            for file in lab.place.folder.rglob("*.partial"):
                with file.open("r+b") as opened:
                    opened.truncate(MiB)
            super().phase(name, total)

    source = TemplateObjectTO(path="t.img", format=ImageFormat.QCOW2, imageDataStore=lab.images())
    target = TemplateObjectTO(uuid="x", path="x", imageDataStore=lab.pool())
    with pytest.raises(IntegrityError):
        await lab.operations.copy(lab.call(Cutting()), Copy(source, target))
    assert lab.place.files() == set()


async def test_a_snapshot_that_went_missing(lab: Lab) -> None:
    await lab.volume(content())
    await lab.snapshot("s1")
    (lab.place.folder / ".storage-agent/frozen/v/s1.vhdx").unlink()
    before = lab.place.files()
    for broken in (
        lab.operations.revert(lab.call(), Revert(SnapshotObjectTO(path="v/s1", dataStore=lab.pool()))),
        lab.backed_up("s1"),
    ):
        with pytest.raises(StorageError):
            await broken
    assert {name for name in lab.place.files() if "sent" not in name} == before
    assert lab.seen("v") == content()
