"""Disks and ISOs of virtual machines of XenServer: VBDs, made and unmade.

A VBD that we make carries the command's token from its first moment on, and so does one that we are about to unmake: whoever
finds it half done knows what was going on. A machine that does not run has whatever it has a VBD for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import structlog

from hypervisors.contract import ImageLocked, Source
from hypervisors.guests import UNTUNED, Attachment, DeviceTaken, GuestHolds, Guests, GuestUnfit, Tuning
from hypervisors.narrowing import as_managed
from hypervisors.xen.errors import HANDLE_INVALID, XapiFailure, of_disk
from hypervisors.xen.longer import carried_out
from hypervisors.xen.machines import Machine, Vbd, find_machine, shown
from hypervisors.xen.marks import OURS
from hypervisors.xen.pool import XenPool
from hypervisors.xen.vdis import Vdi, find_vdi
from stores.contract import Kind
from stores.errors import NotFound, StorageError, Unavailable
from stores.uninterrupted import uninterrupted

_log = structlog.get_logger(__name__)

ATTACH = f"{OURS}attach"
DETACH = f"{OURS}detach"
"""Keys of a VBD's other_config: the token of the command that made it, or is about to remove it."""

_PLUGGED = "DEVICE_ALREADY_ATTACHED"
_UNPLUGGED = "DEVICE_ALREADY_DETACHED"
_EMPTY = "VBD_IS_EMPTY"
_NOT_EMPTY = "VBD_NOT_EMPTY"
_HELD = {"DEVICE_DETACH_REJECTED", "DEVICE_DETACH_TIMEOUT", "OTHER_OPERATION_IN_PROGRESS"}
_TAKEN = {"DEVICE_ALREADY_EXISTS", "INVALID_DEVICE"}
_UNFIT = {
    "VM_BAD_POWER_STATE",
    "VM_MISSING_PV_DRIVERS",
    "VM_OLD_PV_DRIVERS",
    "OPERATION_NOT_ALLOWED",
    "VBD_NOT_UNPLUGGABLE",
}


class XenGuests(Guests):
    reads = Kind.MANAGED_DISK

    def __init__(self, pools: Sequence[XenPool]) -> None:
        self._pools = tuple(pools)

    # -------------------------------------------------------------------------------------------------------- disks

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
        vdi = await self._vdi(volume)
        machine = await find_machine([vdi.sr.pool], vm)
        mine = await self._free_for(machine, vdi, read_only=read_only)
        if mine is not None and (device not in (None, mine.device) or read_only != mine.read_only):
            raise DeviceTaken(
                f"{vm} has {vdi.disk.name} already, as device {mine.device}, {'read-only' if mine.read_only else 'writable'};"
                " detach it first",
                vm=vm,
                device=mine.device,
            )
        if machine.state == "Suspended":
            raise _unfit(machine, f"it is suspended, and {vdi.disk.name} would be missing from what was saved of it")
        if mine is not None:
            return await self._plugged(machine, vdi, mine)
        try:
            with _telling(machine, vdi, device):
                made = await uninterrupted(self._made(machine, vdi, device, read_only, token))
                return await self._plugged(machine, vdi, made)
        except BaseException:
            await uninterrupted(_as_far_as_possible(machine, vdi, self._undo(machine, vdi, token)))
            raise

    async def detach(self, vm: str, volume: Source, *, within_s: float, token: str) -> None:
        vdi = await self._vdi(volume)
        try:
            machine = await find_machine([vdi.sr.pool], vm)
        except NotFound:
            return
        for vbd in await self._of(machine, vdi):
            if machine.state == "Suspended":
                raise _unfit(machine, f"it is suspended, and {vdi.disk.name} belongs to what was saved of it")
            try:
                with _telling(machine, vdi, vbd.device):
                    await vdi.sr.remove_keys("VBD", vbd.handle, [DETACH])  # a dead command's
                    await vdi.sr.add_key("VBD", vbd.handle, DETACH, token)
                    if vbd.plugged:
                        await self._unplug(machine, vdi, vbd, within_s)
            except BaseException:
                await uninterrupted(_as_far_as_possible(machine, vdi, self._stay(machine, vdi, token)))
                raise
            await uninterrupted(self._destroy(machine.pool, vbd))

    # ------------------------------------------------------------------------------------------------------- drives

    async def insert(self, vm: str, iso: Source) -> Attachment:
        vdi = await self._vdi(iso)
        machine = await find_machine([vdi.sr.pool], vm)
        drives = [vbd for vbd in await machine.vbds() if vbd.drive]
        held = next((vbd for vbd in drives if vbd.vdi == vdi.disk.handle), None)
        if held is not None:
            return held.attachment(vdi.disk.uuid)
        drive = next(iter(sorted(drives, key=lambda vbd: (vbd.vdi is not None, vbd.device))), None)
        if drive is None:
            raise _unfit(machine, "it has no CD drive; add one while it is shut down")
        with _telling(machine, vdi, drive.device):
            await uninterrupted(self._change(machine, drive, vdi))
        return drive.attachment(vdi.disk.uuid)

    async def eject(self, vm: str, iso: Source) -> None:
        vdi = await self._vdi(iso)
        try:
            machine = await find_machine([vdi.sr.pool], vm)
        except NotFound:
            return
        for vbd in await machine.vbds():
            if vbd.drive and vbd.vdi == vdi.disk.handle:
                with _telling(machine, vdi, vbd.device):
                    await uninterrupted(_but(_EMPTY, machine.pool, "VBD.eject", vbd.handle))

    async def attached(self, vm: str) -> Sequence[Attachment]:
        machine = await find_machine(self._pools, vm)
        found = []
        for vbd in await machine.vbds():
            uuid = str(await machine.pool.call("VDI.get_uuid", vbd.vdi)) if vbd.vdi is not None else None
            found.append(vbd.attachment(uuid))
        return sorted(found, key=lambda each: each.device)

    # ------------------------------------------------------------------------------------------------ after a crash

    async def resume_attaching(self, vm: str, volume: Source, *, token: str) -> Attachment | None:
        vdi = await self._vdi(volume)
        try:
            machine = await find_machine([vdi.sr.pool], vm)
        except NotFound:
            return None
        for vbd in await self._of(machine, vdi):
            if vbd.plugged or not machine.running:
                return vbd.attachment(vdi.disk.uuid)
        await uninterrupted(self._undo(machine, vdi, token))
        return None

    async def resume_detaching(self, vm: str, volume: Source, *, token: str) -> bool:
        vdi = await self._vdi(volume)
        try:
            machine = await find_machine([vdi.sr.pool], vm)
        except NotFound:
            return True
        await uninterrupted(self._stay(machine, vdi, token))
        return not await self._of(machine, vdi)

    # -------------------------------------------------------------------------------------------------------- steps

    async def _vdi(self, image: Source) -> Vdi:
        return await find_vdi(self._pools, as_managed(image.presentation))

    async def _of(self, machine: Machine, vdi: Vdi) -> list[Vbd]:
        """The machine's connections to that disk."""
        return [vbd for vbd in await shown(machine.pool, vdi.disk.vbds) if vbd.vm == machine.handle]

    async def _free_for(self, machine: Machine, vdi: Vdi, *, read_only: bool) -> Vbd | None:
        """The machine's connection to the disk, if it has one. `ImageLocked` if another machine's is in the way. What a control
        domain has for the time being XAPI judges itself."""
        for vbd in await shown(machine.pool, vdi.disk.vbds):
            if vbd.vm == machine.handle:
                return vbd
            if (read_only and vbd.read_only) or await machine.pool.call("VM.get_is_control_domain", vbd.vm):
                continue
            other = str(await machine.pool.call("VM.get_name_label", vbd.vm))
            raise ImageLocked(
                f"{vdi.disk.name} is attached to {other}; detach it there first", ref=vdi.disk.name, vm=other
            )
        return None

    async def _made(self, machine: Machine, vdi: Vdi, device: int | None, read_only: bool, token: str) -> Vbd:
        record = {
            "VM": machine.handle,
            "VDI": vdi.disk.handle,
            "userdevice": "autodetect" if device is None else str(device),
            "bootable": False,
            "mode": "RO" if read_only else "RW",
            "type": "Disk",
            "unpluggable": True,
            "empty": False,
            "other_config": {ATTACH: token},
            "qos_algorithm_type": "",
            "qos_algorithm_params": {},
        }
        try:
            handle = str(await machine.pool.call("VBD.create", record))
        except Unavailable:
            made = [vbd for vbd in await machine.vbds() if _ours(vbd, vdi, ATTACH, token)]
            if not made:
                raise
            return made[0]
        return (await shown(machine.pool, [handle]))[0]

    async def _plugged(self, machine: Machine, vdi: Vdi, vbd: Vbd) -> Attachment:
        """Of a running machine; another one will have it when it starts."""
        if machine.state != "Halted" and not vbd.plugged:
            with _telling(machine, vdi, vbd.device):
                try:
                    await carried_out(machine.pool, "VBD.plug", vbd.handle)
                except XapiFailure as problem:
                    if problem.code != _PLUGGED:
                        raise
            vbd = (await shown(machine.pool, [vbd.handle]) or [vbd])[0]
        return vbd.attachment(vdi.disk.uuid)

    async def _unplug(self, machine: Machine, vdi: Vdi, vbd: Vbd, within_s: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        pause_s = machine.pool.settings.pause_s
        while True:
            left = max(until - loop.time(), pause_s)
            try:
                await carried_out(machine.pool, "VBD.unplug", vbd.handle, within_s=left)
                return
            except TimeoutError as late:
                if not await self._still_plugged(machine, vbd):
                    return
                _holds(machine, vdi, within_s, late)
            except XapiFailure as problem:
                if problem.code == _UNPLUGGED:
                    return
                if problem.code not in _HELD:
                    raise
                if loop.time() + pause_s >= until:
                    _holds(machine, vdi, within_s, problem)
            await machine.pool.sleep(pause_s)

    async def _still_plugged(self, machine: Machine, vbd: Vbd) -> bool:
        return any(each.plugged for each in await shown(machine.pool, [vbd.handle]))

    async def _undo(self, machine: Machine, vdi: Vdi, token: str) -> None:
        """What an attach with that token has made is not there any more."""
        for vbd in await machine.vbds():
            if _ours(vbd, vdi, ATTACH, token):
                if vbd.plugged:
                    await _but(_UNPLUGGED, machine.pool, "VBD.unplug", vbd.handle)
                await self._destroy(machine.pool, vbd)

    async def _stay(self, machine: Machine, vdi: Vdi, token: str) -> None:
        """A detach with that token has come to its end or to nothing: a disk that a running machine has let go is gone from it,
        any other one stays as it was."""
        for vbd in await machine.vbds():
            if not _ours(vbd, vdi, DETACH, token):
                continue
            if machine.running and not vbd.plugged:
                await self._destroy(machine.pool, vbd)
            else:
                await vdi.sr.remove_keys("VBD", vbd.handle, [DETACH])

    async def _destroy(self, pool: XenPool, vbd: Vbd) -> None:
        await _but(HANDLE_INVALID, pool, "VBD.destroy", vbd.handle)

    async def _change(self, machine: Machine, drive: Vbd, iso: Vdi) -> None:
        """The drive holds the ISO instead of what it held, or still what it held."""
        if drive.vdi is not None:
            await _but(_EMPTY, machine.pool, "VBD.eject", drive.handle)
        try:
            await self._insert(machine, drive, iso.disk.handle)
        except StorageError:
            if drive.vdi is not None:
                await self._insert(machine, drive, drive.vdi)
            raise

    async def _insert(self, machine: Machine, drive: Vbd, vdi: str) -> None:
        try:
            await machine.pool.surely("VBD.insert", drive.handle, vdi)
        except XapiFailure as problem:
            if problem.code != _NOT_EMPTY or await machine.pool.call("VBD.get_VDI", drive.handle) != vdi:
                raise


async def _as_far_as_possible(machine: Machine, vdi: Vdi, work: Coroutine[Any, Any, None]) -> None:
    """For cleaning up after a failure, which is what is told. What is left over carries its token."""
    try:
        await work
    except StorageError as problem:
        _log.warning("connection left half done", vm=machine.name, vdi=vdi.disk.uuid, error=problem.message)


def _ours(vbd: Vbd, vdi: Vdi, key: str, token: str) -> bool:
    return vbd.vdi == vdi.disk.handle and vbd.config.get(key) == token


async def _but(code: str, pool: XenPool, method: str, handle: str) -> None:
    """As `XenPool.surely`; `code` says that it is done already."""
    try:
        await pool.surely(method, handle)
    except XapiFailure as problem:
        if problem.code != code:
            raise


def _unfit(machine: Machine, why: str) -> GuestUnfit:
    return GuestUnfit(f"{machine.name}: {why}", vm=machine.name, state=machine.state)


def _holds(machine: Machine, vdi: Vdi, waited: float, problem: Exception) -> NoReturn:
    raise GuestHolds(
        f"{machine.name} did not let go of {vdi.disk.name} within {waited:g} s and still has it; unmount it there, and try"
        " again",
        vm=machine.name,
        ref=vdi.disk.name,
        waited=waited,
    ) from problem


@contextmanager
def _telling(machine: Machine, vdi: Vdi, device: int | None) -> Iterator[None]:
    """What XAPI says no with, to whoever knows machines and disks."""
    try:
        yield
    except XapiFailure as problem:
        told = {"vm": machine.name, "code": problem.code, "params": list(problem.params)}
        if problem.code in _TAKEN:
            raise DeviceTaken(
                f"{machine.name} has no free device {device}; leave the number out, or choose another one",
                device=device,
                **told,
            ) from problem
        if problem.code in _UNFIT:
            raise GuestUnfit(f"{machine.name}: {problem.message}", state=machine.state, **told) from problem
        raise of_disk(problem, vdi.disk.name) from problem
