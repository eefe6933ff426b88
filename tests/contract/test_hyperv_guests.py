"""Machines of a fake Hyper-V host, held to the contract. What is peculiar to them: `tests/flows/test_hyperv_guests.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hypervisors.contract import Source
from hypervisors.guests import Guests
from stores.contract import MiB
from stores.transfer.engine import TransferEngine
from tests.contract.guests_contract import GuestsContract
from tests.doubles.hyperv.model import Drive, Machine
from tests.hyperv_place import hyperv_place
from tests.samba import SambaServer


class TestHypervGuests(GuestsContract):
    no_devices = (256, -1)

    @pytest.fixture(autouse=True)
    async def guests(self, tmp_path: Path, samba: SambaServer, engine: TransferEngine) -> AsyncIterator[Guests]:
        self.made = 0
        async with hyperv_place(tmp_path, engine, samba) as self.place:
            for name, state in (("halted", "Off"), ("running", "Running"), ("other", "Running")):
                drive = Drive("SCSI", 0, 1, None)
                self.place.host.model.add_machine(name, state=state).dvd_drives = [drive]
            yield self.place.handler.guests

    def machine(self, vm: str) -> Machine:
        return self.place.host.model.machines[vm]

    def volume(self) -> Source:
        name = self.new_name()
        self.place.make(name, bytes(MiB))
        return self.place.source(name)

    def iso(self) -> Source:
        name = self.new_name()
        (self.place.folder / f"{name}.iso").write_bytes(bytes(MiB))
        return self.place.source(name, ending="iso")

    def new_name(self) -> str:
        self.made += 1
        return f"image-{self.made}"

    async def start(self, vm: str) -> None:
        self.machine(vm).state = "Running"

    async def stop(self, vm: str) -> None:
        self.machine(vm).state = "Off"

    async def suspend(self, vm: str) -> None:
        self.machine(vm).state = "Saved"

    def visible(self, vm: str) -> list[str]:
        machine = self.machine(vm)
        return [drive.path for drive in (*machine.disks, *machine.dvd_drives) if drive.path is not None]

    def held(self, vm: str) -> int:
        return len(self.machine(vm).disks)
