"""A machine that runs changes over from one image of a disk to another, by libvirt's block copy.

libvirt writes to both once the second is whole, until we have the machine change over: that is one step, now and for its next
start. Whoever dies before it leaves a copy that goes on; the machine itself says which image it has.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hypervisors.contract import HandlerError
from hypervisors.kvm.domain_xml import Image, copy_target, is_whole, mirror_of
from hypervisors.kvm.domains import Machine, acting, disk_in, find_all
from hypervisors.kvm.libvirt import Libvirt
from hypervisors.kvm.libvirt_calls import library
from hypervisors.kvm.quiet import at_rest
from stores.contract import Progress
from stores.errors import NotFound, Unavailable
from stores.uninterrupted import uninterrupted

_LOOK_S = 0.2


class CopyEnded(HandlerError):
    """The copy of a disk that a machine was to change over to ended before it was whole: details carry `vm`."""


class Changing:
    def __init__(self, libvirt: Libvirt) -> None:
        self._libvirt = libvirt

    async def runs_with(self, path: str) -> bool:
        return any(disk_in(machine.now, path) is not None for machine in await self._machines())

    async def fill(self, path: str, target: Image, progress: Progress) -> None:
        vm, dev = await self._place_of(path)
        try:
            await self._libvirt.call(f"copying {path} of {vm}", acting(vm, lambda domain: _begin(domain, dev, target)))
            await self._until_whole(vm, dev, progress)
        except BaseException:
            await uninterrupted(self._give_up(vm, dev, target))
            raise

    async def copy_out(self, path: str, target: Image, progress: Progress) -> None:
        """`target`, an image of the same size that holds nothing, has the disk as it is at one moment before this returns, with
        its file systems at rest where an agent in the machine answers. Failed or cancelled, it is not being filled any more."""
        vm, dev = await self._place_of(path)
        try:
            await self.fill(path, target, progress)
            await self._libvirt.call(f"ending a copy of {vm}", acting(vm, lambda domain: _end(domain, dev, target)))
        except BaseException:
            await uninterrupted(self._give_up(vm, dev, target))
            raise

    async def change_over(self, path: str, target: Image) -> None:
        async def changed() -> None:
            if await self.runs_with(target.path):
                return
            vm, dev = await self._place_of(path)
            await self._libvirt.call(f"changing over {vm}", acting(vm, lambda domain: _pivot(domain, dev, target)))

        await self._libvirt.surely(changed)

    async def resume(self, path: str, target: Image) -> bool | None:
        """Whether a machine has the second image now; None where none has either of them."""
        found: bool | None = None
        for machine in await self._machines():
            if disk_in(machine.disks, target.path) is not None:
                return True
            disk = disk_in(machine.disks, path)
            if disk is not None:
                await self._give_up(machine.name, disk.target, target)
                found = False
        return found

    async def _place_of(self, path: str) -> tuple[str, str]:
        for machine in await self._machines():
            disk = disk_in(machine.now, path)
            if disk is not None:
                return machine.name, disk.target
        raise Unavailable(f"the machine that ran with {path} does not any more; try again", ref=path)

    async def _machines(self) -> list[Machine]:
        return await self._libvirt.surely(lambda: self._libvirt.call("looking at all virtual machines", find_all))

    async def _until_whole(self, vm: str, dev: str, progress: Progress) -> None:
        done = 0
        while True:
            copied, whole = await self._look(vm, dev)
            progress.advance(copied - done)
            done = copied
            if whole:
                return
            await asyncio.sleep(_LOOK_S)

    async def _look(self, vm: str, dev: str) -> tuple[int, bool]:
        told: list[tuple[int, bool]] = []

        def look(domain: Any) -> None:
            job = domain.blockJobInfo(dev)
            if not job:
                raise CopyEnded(
                    f"the copy of {dev} of {vm} ended before it was whole: the destination may be full, or somebody has ended"
                    " it; the machine goes on with what it had",
                    vm=vm,
                )
            told.append((int(job["cur"]), is_whole(domain.XMLDesc(), dev)))

        await self._libvirt.surely(lambda: self._libvirt.call(f"looking at {vm}", acting(vm, look)))
        return told[-1]

    async def _give_up(self, vm: str, dev: str, target: Image) -> None:
        """Idempotent. A copy to another image is let be."""

        def give_up(domain: Any) -> None:
            if domain.isActive() and mirror_of(domain.XMLDesc(), dev) == target.path:
                domain.blockJobAbort(dev)

        try:
            await self._libvirt.surely(lambda: self._libvirt.call(f"ending a copy of {vm}", acting(vm, give_up)))
        except NotFound:
            return


def _begin(domain: Any, dev: str, target: Image) -> None:
    libvirt = library()
    there = libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT  # and not libvirt's to make
    not_over_restarts = libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
    domain.blockCopy(dev, copy_target(target), None, there | not_over_restarts)


def _end(domain: Any, dev: str, target: Image) -> None:
    """A copy that is whole is brought to the present before it ends: what it holds is of that moment."""
    with at_rest(domain):
        if not is_whole(domain.XMLDesc(), dev) or mirror_of(domain.XMLDesc(), dev) != target.path:
            raise CopyEnded(f"{dev} of {domain.name()} is not being copied to {target.path} any more", vm=domain.name())
        domain.blockJobAbort(dev)


def _pivot(domain: Any, dev: str, target: Image) -> None:
    if mirror_of(domain.XMLDesc(), dev) != target.path:
        raise CopyEnded(f"{dev} of {domain.name()} is not being copied to {target.path} any more", vm=domain.name())
    domain.blockJobAbort(dev, library().VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
