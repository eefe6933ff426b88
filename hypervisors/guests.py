"""What a handler does with virtual machines: disks and ISOs come and go.

A machine is known by its name, as the management server knows it. An attachment is there or is not, whenever
the agent dies: what is half done carries the command's token, and `resume_...` account for it.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from hypervisors.contract import HandlerError, OperationUnsupported, Source
from stores.contract import Kind, Progress
from stores.errors import InvalidReference, Retry
from stores.to import ImageFormat

DETACH_WITHIN_S = 60.0
"""How long a machine has to let go of a disk where the command does not say."""


class GuestHolds(HandlerError):
    """The virtual machine did not let go of a disk in time. It still has it: details carry `vm` and `waited` in seconds."""

    retry = Retry.YES


class DeviceTaken(HandlerError):
    """The machine has another disk at the device number that was asked for, or no device of that number: details carry
    `device`."""


class GuestUnfit(HandlerError):
    """The machine is not in a state in which that can be done: suspended, without drivers, without a CD drive."""

    retry = Retry.OPERATOR


@dataclass(frozen=True, slots=True)
class Attachment:
    """A disk of a virtual machine, or its CD drive."""

    device: int
    """Its number in the machine."""

    disk: str | None
    """The hypervisor's own name of what is attached, as in the presentation; None: an empty drive."""

    name: str | None = None
    """What the machine calls it, as far as the hypervisor knows: None while it does not run."""

    read_only: bool = False
    drive: bool = False


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a disk is to behave in a machine, where that is said; rates are per second. What a hypervisor has no way to do is
    left undone."""

    serial: str | None = None
    """By which the machine tells its disks apart."""

    cache: str | None = None
    """CloudStack's cacheMode: none, writeback, writethrough."""

    bytes_read: int | None = None
    bytes_written: int | None = None
    reads: int | None = None
    writes: int | None = None


UNTUNED = Tuning()


def refuse_disk_as_medium(iso: Source) -> None:
    """`InvalidReference` for what is no ISO."""
    if iso.spec.format is not ImageFormat.ISO:
        raise InvalidReference(
            f"only an ISO goes into a CD drive, and {iso.presentation.info.ref} is a {iso.spec.format} image",
            ref=iso.presentation.info.ref,
        )


class Guests(abc.ABC):
    """Machines that do not run count too: they have their disks from their next start on.

    `NotFound` where no machine has that name, `InvalidReference` where several have. A machine that is not there has nothing
    attached: detaching and ejecting succeed.
    """

    reads: ClassVar[Kind]
    """What a machine's disks, and the media of its drives, are presented as."""

    @abc.abstractmethod
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
        """The machine has the volume when this returns; a running one at once. `device` None: the first that is free.

        Idempotent: a volume that the machine has stays where it is; another device or mode than it has there is
        `DeviceTaken`. `ImageLocked` while another machine has it, unless both only read; `GuestUnfit`.
        """

    @abc.abstractmethod
    async def detach(self, vm: str, volume: Source, *, within_s: float, token: str) -> None:
        """The machine does not have the volume when this returns. Idempotent. A running one is asked to let go, again and
        again: `GuestHolds` if it does not within that time; `GuestUnfit`."""

    @abc.abstractmethod
    async def insert(self, vm: str, iso: Source) -> Attachment:
        """The ISO is in a CD drive of the machine; what else was in that is not. Idempotent. `GuestUnfit` without a drive;
        `GuestHolds` where the machine keeps it locked."""

    @abc.abstractmethod
    async def eject(self, vm: str, iso: Source) -> None:
        """The ISO is in none of the machine's CD drives. Idempotent. `GuestHolds` where the machine keeps it locked."""

    @abc.abstractmethod
    async def attached(self, vm: str) -> Sequence[Attachment]:
        """The machine's disks and CD drives, by device."""

    async def runs_with(self, volume: Source) -> bool:
        """Whether a machine that runs has it, and can change over to another image. Those of which that is not known cannot."""
        return False

    async def fill(self, volume: Source, target: Source, progress: Progress) -> None:
        """`target`, an image of the same size that holds nothing, has all that the machine that runs with `volume` has written,
        and will write until it changes over. Failed or cancelled, it is not being filled any more."""
        raise OperationUnsupported("this handler does not change the images of machines that run")

    async def change_over(self, volume: Source, target: Source) -> None:
        """After `fill`: the machine has `target` in the place of `volume`, now and at its next start. Idempotent."""
        raise OperationUnsupported("this handler does not change the images of machines that run")

    async def resume_changing(self, volume: Source, target: Source) -> bool | None:
        """After a crash: whether a machine has `target` now; if not, it is not being filled any more. None where no machine has
        either of them. Idempotent."""
        return None

    @abc.abstractmethod
    async def resume_attaching(self, vm: str, volume: Source, *, token: str) -> Attachment | None:
        """After a crash: the attachment, if it came to be, else None, and nothing of the attempt is left. Idempotent."""

    @abc.abstractmethod
    async def resume_detaching(self, vm: str, volume: Source, *, token: str) -> bool:
        """After a crash: whether the machine has let go, and then nothing is left; else it has the volume as before.
        Idempotent."""
