"""Machines of XenServer on a fake pool, held to the contract; and what only they can have: calls that fail in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hypervisors.contract import ImageLocked, Source
from hypervisors.guests import DeviceTaken, GuestHolds, Guests, GuestUnfit
from hypervisors.xen.errors import XapiFailure
from stores.contract import MiB
from stores.errors import InvalidReference, Unavailable
from stores.transfer.engine import TransferEngine
from tests.contract.guests_contract import SOON, TOKEN, AskingGuestsContract
from tests.xen_machines import Machines
from tests.xen_place import XenPlace, xen_place


class TestXenGuests(AskingGuestsContract):
    @pytest.fixture(autouse=True)
    async def guests(self, tmp_path: Path) -> AsyncIterator[Guests]:
        engine = TransferEngine()
        async with xen_place(tmp_path, engine) as self.place:
            self.machines = Machines(self.place)
            for name, state in (("halted", "Halted"), ("running", "Running"), ("other", "Running")):
                await self.machines.make(name, state)
            yield self.place.handler.guests
        await engine.aclose()

    def volume(self) -> Source:
        return self.place.source(self.place.make("v", bytes(2 * MiB)))

    def iso(self) -> Source:
        return self.place.source(self.place.make("i", bytes(MiB), sr="isos"))

    async def start(self, vm: str) -> None:
        await self.machines.call(vm, "start", False, False)

    async def stop(self, vm: str) -> None:
        await self.machines.call(vm, "hard_shutdown")

    async def suspend(self, vm: str) -> None:
        await self.machines.call(vm, "suspend")

    async def without_drive(self) -> str:
        await self.machines.make("bare", "Halted", drive=False)
        return "bare"

    async def hold(self, times: int | None) -> None:
        await self.machines.hold(times)

    def visible(self, vm: str) -> list[str]:
        return self.machines.visible(vm)

    def held(self, vm: str) -> int:
        return self.machines.held(vm)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[XenPlace]:
    engine = TransferEngine()
    async with xen_place(tmp_path, engine) as made:
        yield made
    await engine.aclose()


@pytest.fixture
async def machines(place: XenPlace) -> Machines:
    made = Machines(place)
    await made.make("vm", "Running")
    return made


def disk(place: XenPlace) -> Source:
    return place.source(place.make("v", bytes(2 * MiB)))


async def attach(place: XenPlace, volume: Source, token: str = TOKEN, **told: Any) -> Any:
    return await place.handler.guests.attach(
        "vm", volume, **{"device": None, "read_only": False, "token": token, **told}
    )


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("VM_MISSING_PV_DRIVERS", GuestUnfit),
        ("VDI_IN_USE", ImageLocked),
        ("DEVICE_ALREADY_EXISTS", DeviceTaken),
        ("INTERNAL_ERROR", XapiFailure),
    ],
)
async def test_a_plug_that_fails_leaves_nothing(
    place: XenPlace, machines: Machines, code: str, error: type[Exception]
) -> None:
    await place.fake.controls.arm(where="async", step="start", match="VBD.plug", action="fail", error=[code, "x"])
    with pytest.raises(error):
        await attach(place, disk(place))
    assert machines.held("vm") == 0


@pytest.mark.parametrize("step", ["start", "answer"])
@pytest.mark.parametrize(
    "method", ["VBD.create", "Async.VBD.plug", "VBD.get_record", "task.get_record", "task.destroy"]
)
async def test_a_connection_that_breaks_while_attaching(
    place: XenPlace, machines: Machines, method: str, step: str
) -> None:
    """It is attached, or nothing is left of it."""
    volume = disk(place)
    await place.fake.controls.arm(where="rpc", step=step, match=method, action="drop")
    try:
        await attach(place, volume)
    except Unavailable:
        assert machines.held("vm") == 0
    await attach(place, volume, token="c-2")
    assert machines.visible("vm") == [machines.id_of(volume)]
    await left_tasks(place)


@pytest.mark.parametrize("step", ["start", "answer"])
@pytest.mark.parametrize("method", ["Async.VBD.unplug", "VBD.destroy", "VBD.add_to_other_config", "task.get_record"])
async def test_a_connection_that_breaks_while_detaching(
    place: XenPlace, machines: Machines, method: str, step: str
) -> None:
    """It is gone, or it is there as before."""
    volume = disk(place)
    await attach(place, volume)
    await place.fake.controls.arm(where="rpc", step=step, match=method, action="drop")
    try:
        await place.handler.guests.detach("vm", volume, within_s=SOON, token="c-2")
    except Unavailable:
        assert machines.visible("vm") in ([], [machines.id_of(volume)])
        assert machines.held("vm") == len(machines.visible("vm"))
    await place.handler.guests.detach("vm", volume, within_s=SOON, token="c-3")
    assert machines.held("vm") == 0
    await left_tasks(place)


async def test_cancelled_while_it_is_plugged(place: XenPlace, machines: Machines) -> None:
    await place.fake.controls.arm(where="async", step="start", match="VBD.plug", action="delay", seconds=0.5)
    attaching = asyncio.create_task(attach(place, disk(place)))
    while not machines.held("vm"):
        await asyncio.sleep(0.01)
    attaching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attaching
    assert machines.held("vm") == 0
    await left_tasks(place)


async def test_an_unplugging_that_never_ends(place: XenPlace, machines: Machines) -> None:
    volume = disk(place)
    await attach(place, volume)
    await place.fake.controls.arm(where="async", step="start", match="VBD.unplug", action="hang")
    with pytest.raises(GuestHolds):
        await place.handler.guests.detach("vm", volume, within_s=0.2, token="c-2")
    assert machines.visible("vm") == [machines.id_of(volume)]
    for task in place.fake.world.db.refs("task"):  # marked as done with, and at work for ever
        place.fake.world.tasks.lose(task)
    await place.handler.guests.detach("vm", volume, within_s=SOON, token="c-3")
    assert machines.held("vm") == 0


@pytest.mark.parametrize("step", ["start", "answer"])
@pytest.mark.parametrize("method", ["VBD.eject", "VBD.insert"])
async def test_a_connection_that_breaks_while_the_medium_is_changed(
    place: XenPlace, machines: Machines, method: str, step: str
) -> None:
    first, second = (place.source(place.make("i", bytes(MiB), sr="isos")) for _ in range(2))
    await place.handler.guests.insert("vm", first)
    await place.fake.controls.arm(where="rpc", step=step, match=method, action="drop")
    await place.handler.guests.insert("vm", second)
    assert machines.visible("vm") == [machines.id_of(second)]


async def test_names_that_several_machines_have(place: XenPlace, machines: Machines) -> None:
    await machines.make("vm", "Halted")
    with pytest.raises(InvalidReference, match="2 virtual machines"):
        await attach(place, disk(place))


async def test_templates_and_snapshots_are_no_machines(place: XenPlace, machines: Machines) -> None:
    await machines.make("vm", "Halted", is_a_template=True)
    await machines.make("vm", "Halted", is_a_snapshot=True)
    volume = disk(place)
    await attach(place, volume)
    assert machines.visible("vm") == [machines.id_of(volume)]


async def test_what_a_dead_process_has_not_plugged_is_removed(place: XenPlace, machines: Machines) -> None:
    volume = disk(place)
    await machines.connect("vm", volume, {"storage-agent:attach": "c-1"})
    assert await place.handler.guests.resume_attaching("vm", volume, token="c-2") is None
    assert machines.held("vm") == 1  # another command's
    assert await place.handler.guests.resume_attaching("vm", volume, token="c-1") is None
    assert machines.held("vm") == 0


async def test_what_a_dead_process_has_unplugged_is_removed(place: XenPlace, machines: Machines) -> None:
    volume = disk(place)
    await machines.connect("vm", volume, {"storage-agent:detach": "c-1"})
    assert await place.handler.guests.resume_detaching("vm", volume, token="c-2") is False
    assert await place.handler.guests.resume_detaching("vm", volume, token="c-1") is True
    assert machines.held("vm") == 0


async def test_what_a_dead_process_was_about_to_unplug_stays(place: XenPlace, machines: Machines) -> None:
    volume = disk(place)
    await attach(place, volume)
    (vbd,) = place.fake.world.db.find("VBD", type="Disk")
    place.fake.world.db.change("VBD", vbd, other_config={"storage-agent:detach": "c-2"})
    assert await place.handler.guests.resume_detaching("vm", volume, token="c-2") is False
    assert place.fake.world.db.field("VBD", vbd, "other_config") == {}
    assert machines.visible("vm") == [machines.id_of(volume)]


async def left_tasks(place: XenPlace) -> None:
    left = await place.fake.controls.left()
    for task in left["tasks"]:  # whose reference nobody was told
        assert task["status"] != "pending"
        place.fake.world.tasks.lose(place.fake.world.db.by_uuid("task", task["uuid"]))
