"""Disks and ISOs of libvirt's machines.

A machine that runs, and is defined, has two descriptions: what it has now, and what it has from its next start on. libvirt
attaches in both in one step. It detaches in the first when the machine has let go, which it does when it likes, and we in the
second after that; so a detaching that was interrupted leaves a disk that will be there at the next start, and is resumed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog

from hypervisors.contract import ImageLocked, OperationUnsupported, SizeRefused, Source
from hypervisors.guests import (
    UNTUNED,
    Attachment,
    DeviceTaken,
    GuestHolds,
    Guests,
    GuestUnfit,
    Tuning,
    refuse_disk_as_medium,
)
from hypervisors.images.formats import DRIVERS
from hypervisors.kvm.changing import Changing
from hypervisors.kvm.domain_xml import Disk, Image, as_it_is, new_disk, with_medium
from hypervisors.kvm.domains import Machine, State, acting, disk_in, find, find_all, flags
from hypervisors.kvm.libvirt import Libvirt, LibvirtFailure
from hypervisors.kvm.volume_secrets import Needed, forget, needed, tell
from hypervisors.narrowing import as_local
from hypervisors.qemu.nodes import known_format
from hypervisors.qemu.qemu_img import direct_io_works
from stores.contract import Kind, LocalPath, NetworkImage, Progress
from stores.errors import NotFound, StorageError, Unavailable
from stores.to import ImageFormat
from stores.transfer.engine import TransferEngine
from stores.uninterrupted import uninterrupted

_log = structlog.get_logger(__name__)

_FORMATS = (ImageFormat.QCOW2, ImageFormat.RAW)

_ASK_S = 5.0
"""How often a machine is asked to let go: one that is starting up does not hear it. qemu refuses to ask again earlier."""

_LOOK_S = 1.0
"""How often we look whether it has, besides at every event."""

_UNDO_S = 10.0

_BUSY = 68  # VIR_ERR_OPERATION_TIMEOUT: another call has its turn at the machine
_NO_SUCH_DEVICE = 99  # VIR_ERR_DEVICE_MISSING


class KvmGuests(Guests):
    reads = Kind.LOCAL_PATH

    def __init__(self, libvirt: Libvirt, engine: TransferEngine) -> None:
        self._libvirt = libvirt
        self._engine = engine
        self._changing = Changing(libvirt)

    async def aclose(self) -> None:
        await self._libvirt.aclose()

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
        images = _images(volume)
        path, secret = images[0].path, needed(volume, images[0])
        cache = tuning.cache
        if cache is None and (images[0].network or await self._engine.run(direct_io_works, Path(path))):
            cache = "none"
        before = await self._libvirt.surely(lambda: self._look_for(vm, path, device, read_only=read_only))
        if before is not None:
            # A libvirt that ended meanwhile does not know it any more.
            await self._libvirt.surely(lambda: self._tell(secret))
            return before

        async def attached() -> Attachment:
            there = await self._look_for(vm, path, device, read_only=read_only)
            if there is not None:
                return there
            if not read_only:
                await _require_idle(volume)
            await self._tell(secret)
            machine = await self._find(vm)
            target = machine.free_target(device)
            disk = new_disk(
                images,
                target,
                machine.bus,
                tuning,
                cache=cache.lower() if cache else None,
                read_only=read_only,
                secret=None if secret is None or secret.secret is None else secret.id,
            )
            change = flags(now=machine.now is not None, later=machine.later is not None)
            with _telling(machine, path, device):
                await self._libvirt.call(
                    f"attaching {path} to {vm}", acting(vm, lambda domain: domain.attachDeviceFlags(disk, change))
                )
            return _has(await self._find(vm), path)

        try:
            return await self._libvirt.surely(attached)
        except BaseException:
            await uninterrupted(self._undo(vm, volume, path))
            raise

    async def detach(self, vm: str, volume: Source, *, within_s: float, token: str) -> None:
        path = _images(volume)[0].path
        await self._libvirt.surely(lambda: self._let_go(vm, path, within_s))
        await self._forget(volume)

    # ------------------------------------------------------------------------------------------------------- drives

    async def insert(self, vm: str, iso: Source) -> Attachment:
        refuse_disk_as_medium(iso)
        path = str(as_local(iso.presentation).path)

        async def inserted() -> Attachment:
            machine = await self._find(vm)
            drive = next(iter(sorted(_drives(machine), key=lambda each: _preference(each, path))), None)
            if drive is None:
                raise _unfit(machine, "it has no CD drive; add one while it is shut down")
            await uninterrupted(self._change(machine, drive.target, path))
            return next(each.attachment() for each in _drives(await self._find(vm)) if each.source == path)

        return await self._libvirt.surely(inserted)

    async def eject(self, vm: str, iso: Source) -> None:
        path = str(as_local(iso.presentation).path)

        async def ejected() -> None:
            try:
                machine = await self._find(vm)
            except NotFound:
                return
            for drive in machine.all_disks:
                if drive.drive and drive.source == path:
                    await uninterrupted(self._change(machine, drive.target, None))

        await self._libvirt.surely(ejected)

    async def attached(self, vm: str) -> Sequence[Attachment]:
        machine = await self._libvirt.surely(lambda: self._find(vm))
        return [disk.attachment() for disk in machine.disks]

    # ------------------------------------------------------------------------------------------------ after a crash

    async def resume_attaching(self, vm: str, volume: Source, *, token: str) -> Attachment | None:
        """libvirt attaches in one step: there is nothing to be undone."""
        path = _images(volume)[0].path
        try:
            machine = await self._libvirt.surely(lambda: self._find(vm))
        except NotFound:
            await self._forget(volume)
            return None
        disk = disk_in(machine.disks, path)
        if disk is None:
            await self._forget(volume)
        return None if disk is None else disk.attachment()

    async def resume_detaching(self, vm: str, volume: Source, *, token: str) -> bool:
        path = _images(volume)[0].path

        async def resumed() -> bool:
            try:
                machine = await self._find(vm)
            except NotFound:
                return True
            if disk_in(machine.disks, path) is not None:
                return False
            await self._not_later(machine, path)
            return True

        done = await self._libvirt.surely(resumed)
        if done:
            await self._forget(volume)
        return done

    # ------------------------------------------------------------------------------------------------------- resize

    async def resize(self, volume: Source, new_size: int, present: int) -> bool:
        """Whether a machine that runs has the volume; if so, it has the new size now."""
        path = _images(volume)[0].path
        for machine in await self._libvirt.surely(self._find_all):
            disk = disk_in(machine.now, path)
            if disk is None:
                continue
            if new_size < present:
                raise SizeRefused(
                    f"{path} has {present} bytes, and {machine.name}, which runs, has it: it can only grow; detach it first",
                    asked=new_size,
                    least=present,
                )
            await self._resized(machine, disk.target, path, new_size)
            return True
        return False

    async def runs_with(self, volume: Source) -> bool:
        return isinstance(volume.presentation, LocalPath) and await self._changing.runs_with(_images(volume)[0].path)

    async def fill(self, volume: Source, target: Source, progress: Progress) -> None:
        if not isinstance(target.presentation, LocalPath):
            raise OperationUnsupported(
                f"the volume of a machine that runs moves to a file, and {target.presentation.info.ref} is none; stop it",
                ref=target.presentation.info.ref,
            )
        await self._changing.fill(_images(volume)[0].path, _images(target)[0], progress)

    async def change_over(self, volume: Source, target: Source) -> None:
        await self._changing.change_over(_images(volume)[0].path, _images(target)[0])

    async def resume_changing(self, volume: Source, target: Source) -> bool | None:
        if not all(isinstance(each.presentation, LocalPath) for each in (volume, target)):
            return None
        return await self._changing.resume(_images(volume)[0].path, _images(target)[0])

    async def _resized(self, machine: Machine, target: str, path: str, size: int) -> None:
        in_bytes = 1  # VIR_DOMAIN_BLOCK_RESIZE_BYTES
        with _telling(machine, path, None):
            await self._libvirt.call(
                f"resizing {path} in {machine.name}",
                acting(machine.name, lambda domain: domain.blockResize(target, size, in_bytes)),
            )

    # -------------------------------------------------------------------------------------------------------- steps

    async def _find(self, vm: str) -> Machine:
        return await self._libvirt.call(f"looking for {vm}", find(vm))

    async def _find_all(self) -> list[Machine]:
        return await self._libvirt.call("looking at all virtual machines", find_all)

    async def _look_for(self, vm: str, path: str, device: int | None, *, read_only: bool) -> Attachment | None:
        """What the machine has of it already. Raises what stands against attaching it."""
        machines = await self._find_all()
        machine = next((each for each in machines if each.name == vm), None)
        if machine is None:
            raise NotFound(f"libvirt has no virtual machine {vm}", vm=vm)
        for other in machines:
            theirs = next((disk for disk in other.all_disks if disk.source == path), None)
            if other is not machine and theirs is not None and not (read_only and theirs.read_only):
                raise ImageLocked(f"{path} is attached to {other.name}; detach it there first", ref=path, vm=other.name)
        mine = disk_in(machine.disks, path)
        if mine is not None and (device not in (None, mine.device) or read_only != mine.read_only):
            raise DeviceTaken(
                f"{vm} has {path} already, as device {mine.device}, {'read-only' if mine.read_only else 'writable'};"
                " detach it first",
                vm=vm,
                device=mine.device,
            )
        if machine.state in (State.PAUSED, State.SAVED):
            raise _unfit(machine, f"it is {machine.state}, and its disks stay as they are; let it go on first")
        return None if mine is None else mine.attachment()

    async def _let_go(self, vm: str, path: str, within_s: float) -> None:
        loop = asyncio.get_running_loop()
        until, ask = loop.time() + within_s, 0.0
        with self._libvirt.watching() as happened:
            while True:
                happened.clear()
                try:
                    machine = await self._find(vm)
                except NotFound:
                    return
                disk = disk_in(machine.now, path)
                if disk is None:
                    break
                if machine.state is State.PAUSED:
                    raise _unfit(machine, f"it is paused, and cannot let go of {path}; let it go on first")
                if loop.time() >= ask:
                    await self._ask(machine, disk, path)
                    ask = loop.time() + _ASK_S
                elif loop.time() >= until:
                    raise _holds(machine, path, within_s)
                await _set_within(happened, min(_LOOK_S, max(0.0, until - loop.time())))
        if machine.state is State.SAVED and disk_in(machine.later, path) is not None:
            raise _unfit(machine, f"it is saved, and {path} belongs to what was saved of it")
        await self._not_later(machine, path)

    async def _ask(self, machine: Machine, disk: Disk, path: str) -> None:
        """Returns before the machine has done anything."""
        now = flags(now=True, later=False)
        try:
            await self._libvirt.call(
                f"detaching {path} from {machine.name}",
                acting(machine.name, lambda domain: domain.detachDeviceAlias(disk.alias, now)),
            )
        except LibvirtFailure as problem:
            known = problem.code == _NO_SUCH_DEVICE or "already in the process of unplug" in problem.message
            if not known and await self._has_now(machine.name, path):
                raise

    async def _has_now(self, vm: str, path: str) -> bool:
        """Of what was gone already libvirt sometimes speaks as of an internal error."""
        try:
            return disk_in((await self._find(vm)).now, path) is not None
        except NotFound:
            return False

    async def _not_later(self, machine: Machine, path: str) -> None:
        """It is not there when the machine starts again."""
        disk = disk_in(machine.later, path)
        if disk is None:
            return
        later = flags(now=False, later=True)
        with _telling(machine, path, None):
            await self._libvirt.call(
                f"detaching {path} from {machine.name}",
                acting(machine.name, lambda domain: domain.detachDeviceFlags(as_it_is(disk), later)),
            )

    async def _tell(self, what: Needed | None) -> None:
        if what is not None and what.secret is not None:
            await self._libvirt.call(f"telling the secret of {what.path}", tell(what, what.secret))

    async def _forget(self, volume: Source) -> None:
        """Its secret, if it has one."""
        what = needed(volume, _images(volume)[0])
        if what is not None:
            await self._libvirt.surely(
                lambda: self._libvirt.call(f"forgetting the secret of {what.path}", forget(what))
            )

    async def _undo(self, vm: str, volume: Source, path: str) -> None:
        """As far as possible, after a failure, which is what is told."""
        try:
            await self._let_go(vm, path, _UNDO_S)
            await self._forget(volume)
        except StorageError as problem:
            _log.warning("disk left attached", vm=vm, path=path, error=problem.message)

    async def _change(self, machine: Machine, target: str, path: str | None) -> None:
        """What the drive holds, now and later."""
        for disks, change in (
            (machine.now, flags(now=True, later=False)),
            (machine.later, flags(now=False, later=True)),
        ):
            for drive in disks or ():
                if drive.drive and drive.target == target and drive.source != path:
                    await self._update(machine, with_medium(drive, path), change, path or str(drive.source))

    async def _update(self, machine: Machine, drive: str, change: int, path: str) -> None:
        with _telling(machine, path, None):
            await self._libvirt.call(
                f"changing the medium of {machine.name}",
                acting(machine.name, lambda domain: domain.updateDeviceFlags(drive, change)),
            )


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def _images(volume: Source) -> list[Image]:
    """The volume's file, and those that it is built on, by our own records."""
    if known_format(volume) not in _FORMATS:
        raise OperationUnsupported(
            f"a guest of KVM has disks in the formats {', '.join(_FORMATS)}, and {volume.presentation.info.ref} is a"
            f" {volume.spec.format} image; copy it to a volume of one of these",
            ref=volume.presentation.info.ref,
            format=known_format(volume).value,
        )
    return [_image(each) for each in (volume, *volume.backing)]


def _image(layer: Source) -> Image:
    given, driver = layer.presentation, DRIVERS[known_format(layer)]
    if not isinstance(given, NetworkImage):
        return Image(str(as_local(given).path), driver)
    if given.network is not None:
        return Image(given.network.name, driver, network=given.network)
    if given.kind is not Kind.BLOCK_DEVICE:
        raise OperationUnsupported(
            f"{given.info.ref} is a {given.kind} of which its store does not say where a guest finds it",
            ref=given.info.ref,
            kind=given.kind.value,
        )
    return Image(str(given.options["filename"]), driver, device=given.options["driver"] == "host_device")


async def _require_idle(volume: Source) -> None:
    """`ImageLocked` while a guest of another host has it, as far as its storage knows."""
    given = volume.presentation
    if isinstance(given, NetworkImage) and await given.storage.in_use():
        raise ImageLocked(
            f"somebody has {given.info.ref} open, a guest of another host perhaps; detach it there first",
            ref=given.info.ref,
        )


def _has(machine: Machine, path: str) -> Attachment:
    disk = disk_in(machine.disks, path)
    if disk is None:
        raise Unavailable(
            f"{path} was attached to {machine.name}, and is not there any more; try again", vm=machine.name
        )
    return disk.attachment()


def _drives(machine: Machine) -> list[Disk]:
    return [disk for disk in machine.disks if disk.drive]


def _preference(drive: Disk, path: str) -> tuple[bool, bool]:
    """First the one that has it, then an empty one."""
    return drive.source != path, drive.source is not None


def _unfit(machine: Machine, why: str) -> GuestUnfit:
    return GuestUnfit(f"{machine.name}: {why}", vm=machine.name, state=machine.state.value)


def _holds(machine: Machine, path: str, waited: float) -> GuestHolds:
    return GuestHolds(
        f"{machine.name} did not let go of {path} within {waited:g} s and still has it; it may do so later, since qemu does not"
        " take that back: unmount it there, and try again",
        vm=machine.name,
        ref=path,
        waited=waited,
    )


@contextmanager
def _telling(machine: Machine, path: str, device: int | None) -> Iterator[None]:
    """What libvirt says no with, to whoever knows machines and disks."""
    try:
        yield
    except LibvirtFailure as problem:
        said, told = problem.message, {"vm": machine.name, "code": problem.code}
        if "lock" in said and "Failed to get" in said:
            raise ImageLocked(f"another process has {path} open: {said}", ref=path, **told) from problem
        if "already exists" in said or "duplicated" in said:
            raise DeviceTaken(f"{machine.name} has no free device {device}: {said}", device=device, **told) from problem
        if "No more available PCI slots" in said:
            raise GuestUnfit(
                f"{machine.name} has no free PCI slot; give it more pcie-root-port controllers while it is shut down: {said}",
                state=machine.state.value,
                **told,
            ) from problem
        if "tray" in said or "locked" in said:
            raise GuestHolds(
                f"{machine.name} has its CD drive locked; unmount what is in it there, and try again: {said}", **told
            ) from problem
        if problem.code == _BUSY:
            raise Unavailable(f"{machine.name} is busy: {said}; try again", **told) from problem
        raise
