"""Disks and ISOs of machines of Hyper-V: drives, added and removed by the host.

Adding or removing a drive is one step of the host's, so that nothing is ever half done: after a crash the machine has the disk,
or has it not. A running machine is not asked: it loses a SCSI disk at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hypervisors.contract import ImageLocked, OperationUnsupported, Source
from hypervisors.guests import (
    UNTUNED,
    Attachment,
    DeviceTaken,
    Guests,
    GuestUnfit,
    Tuning,
    refuse_disk_as_medium,
)
from hypervisors.hyperv.machines import User, users
from hypervisors.hyperv.place import HostFile, as_host_file
from hypervisors.hyperv.powershell import PowerShellPort
from stores.contract import Kind
from stores.errors import NotFound
from stores.uninterrupted import uninterrupted

LOCATIONS = 64
"""Of a SCSI controller; a machine has up to four. Device 70 is location 6 of the second one."""
_CONTROLLERS = 4
_IDE = _CONTROLLERS * LOCATIONS
"""From here on devices are IDE: two locations at each of two controllers."""
_SUSPENDED = frozenset({"Saved", "Saving", "FastSaved", "FastSaving"})


class HypervGuests(Guests):
    reads = Kind.MANAGED_DISK

    def __init__(self, ports: Callable[[], Iterable[PowerShellPort]]) -> None:
        """`ports`: to all hosts."""
        self._ports = ports

    async def attach(
        self,
        vm: str,
        volume: Source,
        *,
        device: int | None,
        read_only: bool,
        token: str,
        tuning: Tuning = UNTUNED,
    ) -> Attachment:
        """As a SCSI disk. Read-only ones there are none: `OperationUnsupported`."""
        disk = as_host_file(volume.presentation)
        if read_only:
            raise OperationUnsupported("machines of Hyper-V write to their disks: leave readOnly out", vm=vm)
        machine = await disk.place.port.run("get-disks", {"vm": vm})
        others = [user.vm for user in await users(disk) if not _same(user.vm, vm)]
        if others:
            raise ImageLocked(
                f"{disk.info.ref} is attached to {others[0]}; detach it there first", ref=disk.info.ref, vm=others[0]
            )
        drive = _drive_of(machine["disks"], [disk.id])
        if drive is not None:
            return _as_asked(vm, disk, drive, device)
        _refuse_suspended(vm, machine, disk)
        place = _free_place(vm, machine, device)
        try:
            made = await disk.place.port.run("attach-disk", {"vm": vm, "path": disk.id, "controller": "SCSI", **place})
        except BaseException:
            await uninterrupted(disk.place.port.run("detach-disk", {"vm": vm, "path": disk.id}))
            raise
        return _attachment(made)

    async def detach(self, vm: str, volume: Source, *, within_s: float, token: str) -> None:
        """`ImageLocked` where the machine has checkpoints of it."""
        disk = as_host_file(volume.presentation)
        user = await _user(disk, vm)
        if user is None:
            return
        if len(user.chain) > 1:
            raise ImageLocked(f"{vm} has checkpoints of {disk.info.ref}; remove them first", ref=disk.info.ref, vm=vm)
        _refuse_suspended(vm, await disk.place.port.run("get-disks", {"vm": vm}), disk)
        await uninterrupted(disk.place.port.run("detach-disk", {"vm": vm, "path": disk.id}))

    async def insert(self, vm: str, iso: Source) -> Attachment:
        """Into the first drive, which is added to a machine that has none."""
        refuse_disk_as_medium(iso)
        disk = as_host_file(iso.presentation)
        await uninterrupted(disk.place.port.run("set-dvd", {"vm": vm, "path": disk.id}))
        drives = (await disk.place.port.run("get-disks", {"vm": vm}))["dvd_drives"]
        drive = _drive_of(drives, [disk.id])
        if drive is None:
            raise GuestUnfit(f"{vm}: another ISO was put into its drive meanwhile", vm=vm)
        return _attachment(drive, drive_of_media=True)

    async def eject(self, vm: str, iso: Source) -> None:
        disk = as_host_file(iso.presentation)
        try:
            drives = (await disk.place.port.run("get-disks", {"vm": vm}))["dvd_drives"]
        except NotFound:
            return
        if drives and _is_path(drives[0], disk.id):
            await uninterrupted(disk.place.port.run("set-dvd", {"vm": vm, "path": None}))

    async def attached(self, vm: str) -> Sequence[Attachment]:
        for port in self._ports():
            try:
                machine = await port.run("get-disks", {"vm": vm})
            except NotFound:
                continue
            found = [_attachment(drive) for drive in machine["disks"]]
            found += [_attachment(drive, drive_of_media=True) for drive in machine["dvd_drives"]]
            return sorted(found, key=lambda each: each.device)
        raise NotFound(f"no host has a machine {vm}", vm=vm)

    async def resume_attaching(self, vm: str, volume: Source, *, token: str) -> Attachment | None:
        disk = as_host_file(volume.presentation)
        try:
            machine = await disk.place.port.run("get-disks", {"vm": vm})
        except NotFound:
            return None
        drive = _drive_of(machine["disks"], [disk.id])
        return _attachment(drive) if drive is not None else None

    async def resume_detaching(self, vm: str, volume: Source, *, token: str) -> bool:
        return await _user(as_host_file(volume.presentation), vm) is None


async def _user(disk: HostFile, vm: str) -> User | None:
    return next((user for user in await users(disk) if _same(user.vm, vm)), None)


def _same(one: str, other: str) -> bool:
    """Names of machines: capitals do not matter."""
    return one.lower() == other.lower()


def _is_path(drive: Any, path: str) -> bool:
    return drive["path"] is not None and drive["path"].lower() == path.lower()


def _drive_of(drives: Sequence[Any], paths: Sequence[str]) -> Any | None:
    return next((drive for drive in drives if any(_is_path(drive, path) for path in paths)), None)


def _as_asked(vm: str, disk: HostFile, drive: Any, device: int | None) -> Attachment:
    found = _attachment(drive)
    if device not in (None, found.device):
        raise DeviceTaken(
            f"{vm} has {disk.info.ref} already, as device {found.device}; detach it first", vm=vm, device=found.device
        )
    return found


def _free_place(vm: str, machine: Any, device: int | None) -> dict[str, int | None]:
    if device is None:
        return {"number": None, "location": None}
    number, location = divmod(device, LOCATIONS)
    taken = {
        (drive["number"], drive["location"])
        for drive in (*machine["disks"], *machine["dvd_drives"])
        if drive["controller"] == "SCSI"
    }
    if not 0 <= device < _IDE or (number, location) in taken:
        raise DeviceTaken(
            f"{vm} has no free device {device}; leave the number out, or choose another one", vm=vm, device=device
        )
    return {"number": number, "location": location}


def _refuse_suspended(vm: str, machine: Any, disk: HostFile) -> None:
    if machine["state"] in _SUSPENDED:
        raise GuestUnfit(
            f"{vm}: it is saved, and {disk.info.ref} belongs to what was saved of it, or is not part of it; start it, or"
            " discard its saved state",
            vm=vm,
            state=machine["state"],
        )


def _attachment(drive: Any, *, drive_of_media: bool = False) -> Attachment:
    first, places = (0, LOCATIONS) if drive["controller"] == "SCSI" else (_IDE, 2)
    device = first + drive["number"] * places + drive["location"]
    return Attachment(device, drive["path"], read_only=drive_of_media, drive=drive_of_media)
