"""Volumes and ISOs of machines of Hyper-V, on a fake host: by the verbs, as commands order them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hypervisors.contract import ImageLocked, OperationUnsupported
from hypervisors.guests import DeviceTaken, GuestUnfit
from hypervisors.hyperv.guests import HypervGuests
from stores.errors import NotFound
from stores.to import ImageFormat, TemplateObjectTO
from tests.doubles.hyperv import ScriptFault
from tests.hyperv import disk, port_to
from tests.hyperv_lab import Lab, content, laboratory
from tests.images import make_iso
from tests.samba import SambaServer


@pytest.fixture
async def lab(tmp_path: Path, samba: SambaServer) -> AsyncIterator[Lab]:
    async with laboratory(tmp_path, samba) as made:
        await made.volume(content())
        await made.volume(content(2), "w")
        for name, state in (("vm", "Running"), ("off", "Off"), ("saved", "Saved")):
            made.machine(name=name, state=state)
        yield made


@pytest.fixture
def guests(lab: Lab) -> HypervGuests:
    return lab.place.handler.guests


@pytest.mark.parametrize("vm", ["vm", "off", "VM"])
async def test_a_volume_comes_and_goes(lab: Lab, guests: HypervGuests, vm: str) -> None:
    volume = lab.place.source("v")
    for _ in range(2):
        made = await guests.attach(vm, volume, device=None, read_only=False, token="c-1")
        assert (made.device, made.disk, made.drive) == (0, disk("v.vhdx"), False)
    assert await guests.attached(vm) == [made]
    assert await guests.resume_attaching(vm, volume, token="c-1") == made
    assert await guests.resume_detaching(vm, volume, token="c-2") is False
    for _ in range(2):
        await guests.detach(vm, volume, within_s=1, token="c-2")
    assert await guests.attached(vm) == []
    assert await guests.resume_attaching(vm, volume, token="c-1") is None
    assert await guests.resume_detaching(vm, volume, token="c-2") is True


async def test_devices(lab: Lab, guests: HypervGuests) -> None:
    volume, other = lab.place.source("v"), lab.place.source("w")
    assert (await guests.attach("off", volume, device=70, read_only=False, token="c-1")).device == 70
    assert [(drive.number, drive.location) for drive in lab.place.host.model.machines["off"].disks] == [(1, 6)]
    for device in (70, 256, -1):
        with pytest.raises(DeviceTaken):
            await guests.attach("off", other, device=device, read_only=False, token="c-2")
    with pytest.raises(DeviceTaken, match="device 70"):
        await guests.attach("off", volume, device=3, read_only=False, token="c-2")
    with pytest.raises(OperationUnsupported):
        await guests.attach("off", other, device=None, read_only=True, token="c-2")


async def test_a_disk_belongs_to_one_machine(lab: Lab, guests: HypervGuests) -> None:
    volume = lab.place.source("v")
    await guests.attach("vm", volume, device=None, read_only=False, token="c-1")
    with pytest.raises(ImageLocked, match="vm"):
        await guests.attach("off", volume, device=None, read_only=False, token="c-2")
    await guests.detach("off", volume, within_s=1, token="c-3")
    assert len(await guests.attached("vm")) == 1


async def test_what_checkpoints_and_saved_states_forbid(lab: Lab, guests: HypervGuests) -> None:
    volume = lab.place.source("v")
    with pytest.raises(GuestUnfit):
        await guests.attach("saved", volume, device=None, read_only=False, token="c-1")
    await guests.attach("vm", volume, device=None, read_only=False, token="c-1")
    port = port_to(lab.place.host.endpoint)
    checkpoint = await port.run("new-checkpoint", {"vm": "vm", "name": "an operator's"})
    with pytest.raises(ImageLocked, match="checkpoints"):
        await guests.detach("vm", volume, within_s=1, token="c-2")
    await port.run("remove-checkpoint", {"vm": "vm", "checkpoint": checkpoint["id"]})
    await port.aclose()


async def test_what_fails_leaves_nothing(lab: Lab, guests: HypervGuests) -> None:
    lab.place.host.faults.scripts[:] = [ScriptFault("attach-disk", "InvalidState", 0x80131500)]
    with pytest.raises(Exception, match="InvalidState"):
        await guests.attach("vm", lab.place.source("v"), device=None, read_only=False, token="c-1")
    assert await guests.attached("vm") == []


async def test_machines_that_are_not_there(lab: Lab, guests: HypervGuests) -> None:
    volume = lab.place.source("v")
    for call in (guests.attach("nobody", volume, device=None, read_only=False, token="c-1"), guests.attached("nobody")):
        with pytest.raises(NotFound):
            await call
    await guests.detach("nobody", volume, within_s=1, token="c-1")
    assert await guests.resume_attaching("nobody", volume, token="c-1") is None


async def test_isos(lab: Lab, guests: HypervGuests) -> None:
    sources = []
    for name in ("one", "two"):
        make_iso(lab.image_path(name))
        image = TemplateObjectTO(path=name, format=ImageFormat.ISO, imageDataStore=lab.images())
        await lab.copied(image, TemplateObjectTO(uuid=name, path=name, imageDataStore=lab.pool()))
        sources.append(lab.place.source(name, ending="iso"))
    one, two = sources
    for iso in (one, one, two):
        made = await guests.insert("vm", iso)
        assert made.drive
        assert [each.disk for each in await guests.attached("vm")] == [made.disk]
    await guests.eject("vm", one)
    assert [each.disk for each in await guests.attached("vm")] == [disk("two.iso")]
    for _ in range(2):
        await guests.eject("vm", two)
    assert [each.disk for each in await guests.attached("vm")] == [None]
    with pytest.raises(NotFound):
        await guests.insert("nobody", one)
    await guests.eject("nobody", one)
