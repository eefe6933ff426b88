"""Machines of libvirt as they are at one moment. Everything here blocks: it runs inside of `Libvirt.call`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hypervisors.guests import DeviceTaken
from hypervisors.kvm.domain_xml import DEVICES, Disk, disks_of, target_of
from hypervisors.kvm.libvirt_calls import library
from stores.errors import NotFound


class State(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    SAVED = "saved"  # its memory lies on a disk, and knows of the disks that it had
    HALTED = "halted"


@dataclass(frozen=True)
class Machine:
    """`now`: the disks that it has, None while it does not run. `later`: those of its next start, None if it has none, since it
    is gone once it stops."""

    name: str
    state: State
    now: tuple[Disk, ...] | None
    later: tuple[Disk, ...] | None

    @property
    def disks(self) -> tuple[Disk, ...]:
        found = self.now if self.now is not None else self.later
        return found or ()

    @property
    def all_disks(self) -> tuple[Disk, ...]:
        """The same one may be in it twice."""
        return (*(self.now or ()), *(self.later or ()))

    @property
    def bus(self) -> str:
        """What its disks are on."""
        return next((disk.bus for disk in self.disks if not disk.drive and disk.bus == "scsi"), "virtio")

    def free_target(self, device: int | None) -> str:
        """`DeviceTaken`."""
        taken = {disk.device for disk in self.all_disks if not disk.drive}
        names = {disk.target for disk in self.all_disks}
        free = [n for n in range(DEVICES) if n not in taken and target_of(n, self.bus) not in names]
        chosen = next(iter(free), None) if device is None else device
        if chosen not in free:
            what = f"no free device {device}" if device is not None else "no free device"
            raise DeviceTaken(
                f"{self.name} has {what}; leave the number out, or choose one of {', '.join(map(str, free[:10]))}",
                vm=self.name,
                device=device,
            )
        return target_of(chosen, self.bus)


def disk_in(disks: tuple[Disk, ...] | None, path: str) -> Disk | None:
    """The one that is this file, and no CD drive."""
    return next((disk for disk in disks or () if disk.source == path and not disk.drive), None)


def find(vm: str) -> Callable[[Any], Machine]:
    """`NotFound`."""

    def look(connection: Any) -> Machine:
        with _missing(vm):
            return _machine(connection.lookupByName(vm))

    return look


def find_all(connection: Any) -> list[Machine]:
    """All that there are; what goes away meanwhile is left out."""
    libvirt, found = library(), []
    for domain in connection.listAllDomains():
        try:
            found.append(_machine(domain))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    return found


def acting(vm: str, act: Callable[[Any], object]) -> Callable[[Any], None]:
    """`act` gets the machine (virDomain). `NotFound`."""

    def work(connection: Any) -> None:
        with _missing(vm):
            act(connection.lookupByName(vm))

    return work


def flags(*, now: bool, later: bool) -> int:
    """What of a machine a change is for."""
    libvirt = library()
    return (libvirt.VIR_DOMAIN_AFFECT_LIVE if now else 0) | (libvirt.VIR_DOMAIN_AFFECT_CONFIG if later else 0)


def _machine(domain: Any) -> Machine:
    libvirt = library()
    runs, persists = domain.isActive() == 1, domain.isPersistent() == 1
    state = State.HALTED
    if runs:
        stopped = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED)
        state = State.PAUSED if domain.state()[0] in stopped else State.RUNNING
    elif domain.hasManagedSaveImage():
        state = State.SAVED
    return Machine(
        name=domain.name(),
        state=state,
        now=tuple(disks_of(domain.XMLDesc())) if runs else None,
        later=tuple(disks_of(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))) if persists else None,
    )


@contextmanager
def _missing(vm: str) -> Iterator[None]:
    libvirt = library()
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise
        raise NotFound(f"libvirt has no virtual machine {vm}", vm=vm) from error
