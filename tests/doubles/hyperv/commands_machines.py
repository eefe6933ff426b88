"""What the scripts about machines and checkpoints do. Each takes the script's argument and gives its result."""

from __future__ import annotations

import uuid
from dataclasses import asdict, replace
from typing import Any

from tests.doubles.hyperv.commands_disks import Argument, thrown
from tests.doubles.hyperv.model import Checkpoint, Drive, Machine, Model
from tests.doubles.hyperv.vhds import VhdError

_PLACES = {"SCSI": (4, 64), "IDE": (2, 2)}  # controllers, and places at each


class MachineCommands:
    def __init__(self, model: Model) -> None:
        self._model = model
        self._vhds = model.vhds

    def _machine(self, told: Argument) -> Machine:
        found = [one for name, one in self._model.machines.items() if name.lower() == told["vm"].lower()]
        if not found:
            raise thrown("NoSuchMachine")
        return found[0]

    async def get_host(self, told: Argument) -> Any:
        root = str(next(iter(self._model.volumes.roots)))
        return {
            "name": "HYPERV",
            "disks": root,
            "system": "Microsoft Windows Server 2022 Standard",
            "version": "10.0.20348",
            "module": "2.0.0.0",
            "power_shell": "5.1.20348.1",
        }

    # ------------------------------------------------------------------------------------------------------ drives

    async def get_disks(self, told: Argument) -> Any:
        machine = self._machine(told)
        return {
            "state": machine.state,
            "generation": machine.generation,
            "disks": [asdict(drive) for drive in machine.disks],
            "dvd_drives": [asdict(drive) for drive in machine.dvd_drives],
        }

    async def find_machines(self, told: Argument) -> Any:
        found = []
        for machine in self._model.machines.values():
            for drive in machine.disks:
                chain = [drive.path or ""]
                while chain[-1].lower() != told["path"].lower() and chain[-1].lower().endswith(".avhdx"):
                    try:
                        chain.append((await self._vhds.get(chain[-1])).parent or "")
                    except VhdError:
                        break
                if chain[-1].lower() == told["path"].lower():
                    found.append({"vm": machine.name, "state": machine.state, "chain": chain})
        return {"machines": found}

    async def attach_disk(self, told: Argument) -> Any:
        machine = self._machine(told)
        for drive in machine.disks:
            if drive.path is not None and drive.path.lower() == told["path"].lower():
                return asdict(drive)
        if machine.state != "Off" and told["controller"] != "SCSI":
            raise _refused("InvalidState", "AddVMHardDiskDrive", "an IDE disk cannot be added while the machine runs")
        await self._vhds.chain(told["path"])
        await self._model.need_unused(told["path"], "AddVMHardDiskDrive")
        place = (told["number"], told["location"]) if told["location"] is not None else None
        drive = Drive(told["controller"], *self._free_place(machine, told["controller"], place), told["path"])
        machine.disks.append(drive)
        return asdict(drive)

    def _free_place(self, machine: Machine, controller: str, wanted: tuple[int, int] | None) -> tuple[int, int]:
        taken = {
            (one.number, one.location) for one in machine.disks + machine.dvd_drives if one.controller == controller
        }
        controllers, places = _PLACES[controller]
        every = [(number, place) for number in range(controllers) for place in range(places)]
        free = [place for place in ([wanted] if wanted else every) if place in every and place not in taken]
        if not free:
            raise _refused("InvalidParameter", "AddVMHardDiskDrive", "no such place, or it is taken")
        return free[0]

    async def detach_disk(self, told: Argument) -> Any:
        machine = self._machine(told)
        left = [one for one in machine.disks if one.path is None or one.path.lower() != told["path"].lower()]
        detached = len(left) < len(machine.disks)
        machine.disks = left
        return {"detached": detached}

    async def set_dvd(self, told: Argument) -> Any:
        machine, path = self._machine(told), told["path"]
        if path is not None and not self._model.volumes.local(path).is_file():
            raise _refused("ObjectNotFound", "SetVMDvdDrive", f"no file {path}", 0x80070002)
        if machine.dvd_drives:
            machine.dvd_drives[0] = replace(machine.dvd_drives[0], path=path)
        elif path is not None:
            controller = "SCSI" if machine.generation == 2 else "IDE"
            machine.dvd_drives.append(Drive(controller, *self._free_place(machine, controller, None), path))
        return {"path": path}

    # ------------------------------------------------------------------------------------------------- checkpoints

    async def get_checkpoints(self, told: Argument) -> Any:
        machine = self._machine(told)
        return {"checkpoints": [_told(one) for one in machine.checkpoints], "merging": machine.merging > 0}

    async def new_checkpoint(self, told: Argument) -> Any:
        machine = self._machine(told)
        for checkpoint in machine.checkpoints:
            if checkpoint.name.lower() == told["name"].lower():
                return _told(checkpoint)
        made = Checkpoint(str(uuid.uuid4()), told["name"], machine.current, list(machine.disks))
        machine.disks = [await self._on_top(drive) for drive in machine.disks]
        machine.checkpoints.append(made)
        machine.current = made.id
        return _told(made)

    async def _on_top(self, drive: Drive) -> Drive:
        """The disk goes on in a file of its own, `NAME_GUID.avhdx`."""
        assert drive.path is not None
        stem = drive.path.rpartition(".")[0].partition("_")[0]
        path = f"{stem}_{str(uuid.uuid4()).upper()}.avhdx"
        await self._vhds.create_child(path, drive.path)
        return replace(drive, path=path)

    async def remove_checkpoint(self, told: Argument) -> Any:
        machine = self._machine(told)
        found = [one for one in machine.checkpoints if one.id.lower() == told["checkpoint"].lower()]
        if not found:
            return {"removed": False}
        checkpoint = found[0]
        machine.checkpoints.remove(checkpoint)
        for one in machine.checkpoints:
            one.parent = checkpoint.parent if one.parent == checkpoint.id else one.parent
        if machine.current == checkpoint.id:
            machine.current = checkpoint.parent
        machine.merging += 1

        async def merge() -> None:
            for drive in checkpoint.disks:
                await self._merge_into(machine, drive.path or "")
            machine.merging -= 1

        self._model.later(merge)
        return {"removed": True}

    async def _merge_into(self, machine: Machine, path: str) -> None:
        """The one file that builds on that of a removed checkpoint is written into it. Two of them need it as it is."""
        used = {drive.path for drive in machine.disks} | {d.path for one in machine.checkpoints for d in one.disks}
        parents: dict[str, str | None] = {}
        for file in used:
            for one in await self._vhds.chain(file or ""):
                parents[one.path] = one.parent
        children = self._model.children_of(path, parents)
        if path in used or len(children) != 1:
            return
        await self._vhds.merge(children[0], path)
        self._model.repoint(machine, children[0], path)
        for grandchild in self._model.children_of(children[0], parents):
            await self._vhds.set_parent(grandchild, path, ignore_mismatch=True)
        self._model.volumes.local(children[0]).unlink()

    async def restore_checkpoint(self, told: Argument) -> Any:
        machine = self._machine(told)
        if machine.state != "Off":
            raise thrown("MachineNotOff")
        found = [one for one in machine.checkpoints if one.id.lower() == told["checkpoint"].lower()]
        if not found:
            raise thrown("NoSuchCheckpoint")
        kept = {drive.path for one in machine.checkpoints for drive in one.disks}
        for drive in machine.disks:
            if drive.path not in kept:
                self._model.volumes.local(drive.path or "").unlink()
        machine.disks = [await self._on_top(drive) for drive in found[0].disks]
        machine.current = found[0].id
        return {"restored": True}


def _told(checkpoint: Checkpoint) -> Any:
    return asdict(checkpoint)


def _refused(identifier: str, cmdlet: str, text: str, hresult: int = 0x80131500) -> VhdError:
    return VhdError(f"{identifier},Microsoft.HyperV.PowerShell.Commands.{cmdlet}", hresult, text)
