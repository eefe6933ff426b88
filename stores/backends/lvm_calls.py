"""LVM's own tool on one volume group: each call is one process, and one step of the group's metadata or none.

Names are checked before they come here (`lvm_names`); what a command says goes into arguments and nowhere else. See lvm(8).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stores.backends.lvm_report import (
    GROUP_FIELDS,
    REPORT,
    VOLUME_FIELDS,
    Group,
    Volume,
    growth_tag,
    read_groups,
    read_volumes,
)
from stores.contract import MiB
from stores.errors import AccessDenied, AlreadyExists, DeviceFault, NoSpace, NotFound, StorageError, Unavailable
from stores.tools.process import ToolFailed, ToolRunner

QUICK_S = 120.0
"""Deadline of what touches metadata only; it waits for whoever has the group's lock."""

_SECTOR = 512
_WIPED_AT_ONCE = 256 * MiB
"""Between two pieces a wipe can be stopped."""

_SAID: tuple[tuple[str, type[StorageError], str], ...] = (
    ("insufficient free", NoSpace, "free space in it, or add a physical volume"),
    ("insufficient suitable", NoSpace, "free space in it, or add a physical volume"),
    ("already exists in volume group", AlreadyExists, "nothing was changed"),
    ("not found", NotFound, "check its name, and that this host sees its disks"),
    ("failed to find", NotFound, "check its name, and that this host sees its disks"),
    ("locked by other host", Unavailable, "another host uses it; try again when that is done"),
    ("lock failed", Unavailable, "check lvmlockd and the lock manager"),
    ("in use", Unavailable, "whoever has it open, a virtual machine perhaps, has to let go of it first"),
    ("non-root user", AccessDenied, "the agent needs the rights of root for LVM"),
    ("permission denied", AccessDenied, "check the service's sandbox"),
    ("device-mapper", DeviceFault, "the kernel of this host has to have device-mapper"),
)
"""What LVM complains of in which words (LC_ALL=C; as of 2.03), and what an operator can do. It has one exit status for all."""


class Lvm:
    """One volume group."""

    def __init__(self, runner: ToolRunner, group: str, *, exclusive: bool = False, options: Sequence[str] = ()) -> None:
        """`exclusive`: hosts share the group, and one of them at a time has a volume active. `options` go into each call."""
        self.group = group
        self._runner = runner
        self._exclusive = exclusive
        self._options = tuple(options)

    # -------------------------------------------------------------------------------------------------------- looking

    async def volumes(self) -> list[Volume]:
        return read_volumes(await self._run("lvs", *REPORT, "-o", VOLUME_FIELDS, self.group))

    async def volume(self, name: str) -> Volume | None:
        """None if there is none of that name."""
        selected = ("--select", f"lv_name={name}")
        found = read_volumes(await self._run("lvs", *REPORT, "-o", VOLUME_FIELDS, *selected, self.group))
        return found[0] if found else None

    async def known(self, name: str) -> Volume:
        """`NotFound`."""
        volume = await self.volume(name)
        if volume is None:
            raise NotFound(f"there is no volume {name} in the volume group {self.group}", group=self.group)
        return volume

    async def look(self) -> Group:
        """The group itself. `NotFound`."""
        return read_groups(await self._run("vgs", *REPORT, "-o", GROUP_FIELDS, self.group))[0]

    # ------------------------------------------------------------------------------------------------------- changing

    async def create(self, name: str, size: int) -> None:
        """Of `size` bytes at least. Not active; what it held before, others can see when it is."""
        await self._run(
            *("lvcreate", "--yes", "--activate", "n", "--zero", "n", "--wipesignatures", "n"),
            *("--size", _bytes(size), "--name", name, self.group),
        )

    async def create_thin(self, name: str, size: int, pool: str) -> None:
        """Takes what is written into it from the pool. Not active."""
        await self._run(
            *("lvcreate", "--yes", "--activate", "n", "--virtualsize", _bytes(size)),
            *("--name", name, "--thinpool", pool, self.group),
        )

    async def snapshot_thin(self, name: str, origin: str) -> None:
        """A thin volume with the content that another has now, and that is activated as any other. Not active."""
        await self._run(
            *("lvcreate", "--yes", "--activate", "n", "--snapshot", "--setactivationskip", "n"),
            *("--name", name, self._path(origin)),
        )

    async def rename(self, name: str, new: str) -> None:
        """In one step. `AlreadyExists` if the new name is taken."""
        await self._run("lvrename", self.group, name, new)

    async def resize(self, name: str, size: int) -> None:
        """To `size` bytes at least; what is cut off is lost."""
        if (await self.known(name)).size != (await self.look()).rounded(size):
            await self._run("lvresize", "--yes", "--force", "--size", _bytes(size), self._path(name))

    async def note_growth(self, volume: Volume) -> None:
        """From now on it is known that what is behind its present size is to be wiped. Durable."""
        await self._run("lvchange", "--addtag", growth_tag(volume.size), self._path(volume.name))

    async def forget_growth(self, volume: Volume) -> None:
        """It was wiped."""
        if volume.grown_from is not None:
            await self._run("lvchange", "--deltag", growth_tag(volume.grown_from), self._path(volume.name))

    async def remove(self, name: str) -> None:
        """`NotFound`; `Unavailable` while somebody has it open."""
        await self._run("lvremove", "--yes", self._path(name))

    async def activate(self, name: str) -> Path:
        """Its device. Idempotent. `Unavailable` while another host has it, if they share the group."""
        await self._run("lvchange", "--yes", "--activate", "ey" if self._exclusive else "y", self._path(name))
        return Path("/dev", self.group, name)

    async def deactivate(self, name: str) -> None:
        """Idempotent. `Unavailable` while somebody has it open."""
        await self._run("lvchange", "--yes", "--activate", "n", self._path(name))

    async def retag(self, add: Sequence[str], remove: Sequence[str]) -> None:
        """Tags of the group, in one step. Idempotent."""
        changes = [argument for tag in remove for argument in ("--deltag", tag)]
        changes += [argument for tag in add for argument in ("--addtag", tag)]
        if changes:
            await self._run("vgchange", *changes, self.group)

    # --------------------------------------------------------------------------------------------------------- wiping

    async def wipe(self, device: Path, *, offset: int = 0, discard: bool = False) -> None:
        """From `offset` to its end the device reads as zeroes; with `discard` it gives the blocks back instead, and what they
        read as then is up to it. Durable."""
        how = () if discard else ("--zeroout",)
        argv = ["blkdiscard", *how, "--step", str(_WIPED_AT_ONCE), "--offset", str(offset), str(device)]
        await self._runner.run(argv, deadline_s=None)  # as long as the command itself may take

    def _path(self, name: str) -> str:
        return f"{self.group}/{name}"

    async def _run(self, command: str, *arguments: str) -> bytes:
        argv = ["lvm", command, *self._options, *arguments]
        try:
            return (await self._runner.run(argv, deadline_s=QUICK_S)).stdout
        except ToolFailed as error:
            raise explained(error, self.group) from error


def _bytes(size: int) -> str:
    """As an option of LVM's, which wants whole sectors."""
    return f"{-(-size // _SECTOR) * _SECTOR}b"


def explained(error: ToolFailed, group: str) -> StorageError:
    """What LVM said, as one of our errors where an operator can tell more from that."""
    said = str(error.details.get("stderr", ""))
    for words, kind, advice in _SAID:
        if words in said.lower():
            return kind(f"LVM refuses, in the volume group {group}: {said}; {advice}", group=group, said=said)
    return error
