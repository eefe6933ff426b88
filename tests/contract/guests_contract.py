"""What every hypervisor's `Guests` does, and what most of them do besides. A suite for one of them says how its machines are
made, and looks behind them."""

from __future__ import annotations

import abc
import asyncio
from typing import ClassVar

import pytest

from hypervisors.contract import ImageLocked, Source
from hypervisors.guests import DeviceTaken, GuestHolds, Guests, GuestUnfit
from stores.errors import NotFound

TOKEN = "c-1"
SOON = 5.0


class GuestsContract(abc.ABC):
    """Machines "halted", "running" and "other" (running) have no disks at the beginning, and one CD drive each."""

    no_devices: ClassVar[tuple[int, ...]] = (99, -1)
    """Numbers that no disk of a machine can have."""

    @abc.abstractmethod
    def volume(self) -> Source:
        """A new one."""

    @abc.abstractmethod
    def iso(self) -> Source:
        """A new one."""

    @abc.abstractmethod
    async def start(self, vm: str) -> None: ...

    @abc.abstractmethod
    async def stop(self, vm: str) -> None: ...

    @abc.abstractmethod
    async def suspend(self, vm: str) -> None: ...

    @abc.abstractmethod
    def visible(self, vm: str) -> list[str]:
        """What the hypervisor itself has in its books of the machine: ids of disks, attached now where the machine runs, and of
        what its drives hold; in order."""

    @abc.abstractmethod
    def held(self, vm: str) -> int:
        """How many connections of disks the machine has, attached or not, besides its drives."""

    def id_of(self, source: Source) -> str:
        return source.presentation.id  # type: ignore[union-attr]

    # -------------------------------------------------------------------------------------------------------- disks

    @pytest.mark.parametrize("vm", ["halted", "running"])
    async def test_a_volume_comes_and_goes(self, guests: Guests, vm: str) -> None:
        volume = self.volume()
        attached = await guests.attach(vm, volume, device=None, read_only=False, token=TOKEN)
        assert self.visible(vm) == [self.id_of(volume)]
        assert (attached.disk, attached.read_only, attached.drive) == (self.id_of(volume), False, False)
        assert attached in await guests.attached(vm)
        await guests.detach(vm, volume, within_s=SOON, token="c-2")
        assert self.visible(vm) == []
        assert self.held(vm) == 0
        assert [each for each in await guests.attached(vm) if not each.drive] == []

    @pytest.mark.parametrize("vm", ["halted", "running"])
    async def test_twice_is_once(self, guests: Guests, vm: str) -> None:
        volume = self.volume()
        first = await guests.attach(vm, volume, device=5, read_only=False, token=TOKEN)
        assert first.device == 5
        assert await guests.attach(vm, volume, device=None, read_only=False, token="c-2") == first
        assert await guests.attach(vm, volume, device=5, read_only=False, token="c-3") == first
        assert self.held(vm) == 1
        for _ in range(2):
            await guests.detach(vm, volume, within_s=SOON, token="c-4")
        assert self.held(vm) == 0

    async def test_what_is_attached_stays_as_it_is(self, guests: Guests) -> None:
        volume = self.volume()
        first = await guests.attach("running", volume, device=5, read_only=False, token=TOKEN)
        with pytest.raises(DeviceTaken):
            await guests.attach("running", volume, device=6, read_only=False, token="c-2")
        assert first in await guests.attached("running")
        assert self.held("running") == 1

    @pytest.mark.parametrize("vm", ["halted", "running"])
    async def test_a_device_belongs_to_one_disk(self, guests: Guests, vm: str) -> None:
        first, second, third = self.volume(), self.volume(), self.volume()
        await guests.attach(vm, first, device=5, read_only=False, token=TOKEN)
        with pytest.raises(DeviceTaken) as refused:
            await guests.attach(vm, second, device=5, read_only=False, token="c-2")
        assert refused.value.details["device"] == 5
        for number in self.no_devices:
            with pytest.raises(DeviceTaken):
                await guests.attach(vm, second, device=number, read_only=False, token="c-2")
        assert self.held(vm) == 1
        chosen = [await guests.attach(vm, each, device=None, read_only=False, token="c-3") for each in (second, third)]
        assert len({5, *(each.device for each in chosen)}) == 3

    async def test_a_disk_belongs_to_one_writer(self, guests: Guests) -> None:
        volume = self.volume()
        await guests.attach("running", volume, device=None, read_only=False, token=TOKEN)
        for vm in ("other", "halted"):
            with pytest.raises(ImageLocked) as refused:
                await guests.attach(vm, volume, device=None, read_only=False, token="c-2")
            assert "running" in refused.value.message
            assert self.held(vm) == 0
        await guests.detach("running", volume, within_s=SOON, token="c-3")
        await guests.attach("other", volume, device=None, read_only=False, token="c-4")
        assert (self.visible("running"), self.visible("other")) == ([], [self.id_of(volume)])

    async def test_a_halted_machine_has_its_disks_when_it_starts(self, guests: Guests) -> None:
        volume = self.volume()
        attached = await guests.attach("halted", volume, device=None, read_only=False, token=TOKEN)
        await self.start("halted")
        assert self.visible("halted") == [self.id_of(volume)]
        (now,) = [each for each in await guests.attached("halted") if not each.drive]
        assert (now.device, now.disk) == (attached.device, attached.disk)

    async def test_a_suspended_machine_keeps_what_it_has(self, guests: Guests) -> None:
        volume = self.volume()
        await guests.attach("running", volume, device=None, read_only=False, token=TOKEN)
        await self.suspend("running")
        with pytest.raises(GuestUnfit):
            await guests.detach("running", volume, within_s=SOON, token="c-2")
        with pytest.raises(GuestUnfit):
            await guests.attach("running", self.volume(), device=None, read_only=False, token="c-3")
        assert self.held("running") == 1

    async def test_machines_that_are_not_there(self, guests: Guests) -> None:
        with pytest.raises(NotFound):
            await guests.attach("nobody", self.volume(), device=None, read_only=False, token=TOKEN)
        with pytest.raises(NotFound):
            await guests.insert("nobody", self.iso())
        with pytest.raises(NotFound):
            await guests.attached("nobody")
        await guests.detach("nobody", self.volume(), within_s=SOON, token=TOKEN)
        await guests.eject("nobody", self.iso())

    # -------------------------------------------------------------------------------------------------------- drives

    @pytest.mark.parametrize("vm", ["halted", "running"])
    async def test_an_iso_comes_and_goes(self, guests: Guests, vm: str) -> None:
        iso = self.iso()
        for _ in range(2):
            inserted = await guests.insert(vm, iso)
            assert (inserted.disk, inserted.drive, inserted.read_only) == (self.id_of(iso), True, True)
            assert self.visible(vm) == [self.id_of(iso)]
        assert [each.disk for each in await guests.attached(vm)] == [self.id_of(iso)]
        for _ in range(2):
            await guests.eject(vm, iso)
            assert self.visible(vm) == []
        assert [each.disk for each in await guests.attached(vm)] == [None]

    async def test_the_medium_is_changed(self, guests: Guests) -> None:
        first, second = self.iso(), self.iso()
        await guests.insert("running", first)
        await guests.insert("running", second)
        assert self.visible("running") == [self.id_of(second)]
        await guests.eject("running", first)
        assert self.visible("running") == [self.id_of(second)]

    async def test_an_iso_for_several(self, guests: Guests) -> None:
        iso = self.iso()
        for vm in ("running", "other", "halted"):
            await guests.insert(vm, iso)
        await guests.eject("other", iso)
        assert self.visible("running") == self.visible("halted") == [self.id_of(iso)]

    async def test_what_does_not_go_in_leaves_what_was_in(self, guests: Guests) -> None:
        iso = self.iso()
        await guests.insert("running", iso)
        with pytest.raises(Exception, match=r"(?i)iso"):
            await guests.insert("running", self.volume())
        assert self.visible("running") == [self.id_of(iso)]

    # -------------------------------------------------------------------------------------------------- after a crash

    async def test_nothing_to_resume(self, guests: Guests) -> None:
        volume = self.volume()
        for vm in ("halted", "running", "nobody"):
            assert await guests.resume_attaching(vm, volume, token=TOKEN) is None
            assert await guests.resume_detaching(vm, volume, token=TOKEN) is True

    @pytest.mark.parametrize("vm", ["halted", "running"])
    async def test_what_was_done_counts_as_done(self, guests: Guests, vm: str) -> None:
        volume = self.volume()
        attached = await guests.attach(vm, volume, device=None, read_only=False, token=TOKEN)
        assert await guests.resume_attaching(vm, volume, token=TOKEN) == attached
        assert await guests.resume_detaching(vm, volume, token="c-2") is False
        assert self.visible(vm) == [self.id_of(volume)]
        await guests.detach(vm, volume, within_s=SOON, token="c-2")
        assert await guests.resume_detaching(vm, volume, token="c-2") is True
        assert self.held(vm) == 0


class AskingGuestsContract(GuestsContract):
    """And where machines are asked before they lose a disk, call disks by names, may have them read-only, and have the drives
    that they were given."""

    @abc.abstractmethod
    async def without_drive(self) -> str:
        """A machine's name."""

    @abc.abstractmethod
    async def hold(self, times: int | None) -> None:
        """Machines refuse so often to let go of a disk; None: until `hold(0)`."""

    async def test_it_says_what_it_calls_a_disk(self, guests: Guests) -> None:
        attached = await guests.attach("halted", self.volume(), device=None, read_only=False, token=TOKEN)
        await self.start("halted")
        (now,) = [each for each in await guests.attached("halted") if not each.drive]
        assert (now.device, now.disk) == (attached.device, attached.disk)
        assert now.name is not None

    async def test_read_only_stays_read_only(self, guests: Guests) -> None:
        volume = self.volume()
        first = await guests.attach("running", volume, device=5, read_only=True, token=TOKEN)
        assert (first.device, first.read_only) == (5, True)
        assert await guests.attach("running", volume, device=None, read_only=True, token="c-2") == first
        with pytest.raises(DeviceTaken):
            await guests.attach("running", volume, device=5, read_only=False, token="c-3")
        assert first in await guests.attached("running")

    async def test_readers_share_a_disk_and_a_writer_does_not(self, guests: Guests) -> None:
        volume = self.volume()
        await guests.attach("running", volume, device=None, read_only=False, token=TOKEN)
        for vm in ("other", "halted"):
            with pytest.raises(ImageLocked):
                await guests.attach(vm, volume, device=None, read_only=True, token="c-2")
        with pytest.raises(DeviceTaken):
            await guests.attach("running", volume, device=None, read_only=True, token="c-3")
        await guests.detach("running", volume, within_s=SOON, token="c-4")
        for vm in ("running", "other"):
            await guests.attach(vm, volume, device=None, read_only=True, token="c-5")
        assert self.visible("running") == self.visible("other") == [self.id_of(volume)]

    async def test_a_machine_that_lets_go_late(self, guests: Guests) -> None:
        volume = self.volume()
        await guests.attach("running", volume, device=None, read_only=False, token=TOKEN)
        await self.hold(3)
        await guests.detach("running", volume, within_s=30.0, token="c-2")
        assert self.held("running") == 0

    @pytest.mark.parametrize("within_s", [0.0, 0.3])
    async def test_a_machine_that_does_not_let_go(self, guests: Guests, within_s: float) -> None:
        volume = self.volume()
        await guests.attach("running", volume, device=None, read_only=False, token=TOKEN)
        await self.hold(None)
        with pytest.raises(GuestHolds) as held:
            await guests.detach("running", volume, within_s=within_s, token="c-2")
        assert held.value.details["vm"] == "running"
        assert self.visible("running") == [self.id_of(volume)]
        await self.hold(0)
        await guests.detach("running", volume, within_s=SOON, token="c-3")
        assert self.held("running") == 0

    async def test_waiting_for_a_machine_can_be_cancelled(self, guests: Guests) -> None:
        volume = self.volume()
        await guests.attach("running", volume, device=None, read_only=False, token=TOKEN)
        await self.hold(None)
        waiting = asyncio.create_task(guests.detach("running", volume, within_s=600.0, token="c-2"))
        await asyncio.sleep(0.2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert self.visible("running") == [self.id_of(volume)]
        await self.hold(0)
        await guests.detach("running", volume, within_s=SOON, token="c-3")
        assert self.held("running") == 0

    async def test_a_machine_without_a_drive(self, guests: Guests) -> None:
        with pytest.raises(GuestUnfit, match="drive"):
            await guests.insert(await self.without_drive(), self.iso())
