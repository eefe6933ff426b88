"""Machines that have a disk, and the disk's files while nobody writes to them.

While a machine runs it is a checkpoint that makes them still: from then on the machine writes to a file above them. The
checkpoint carries a tag in its name, by which a recovery finds it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from hypervisors.contract import ImageLocked
from hypervisors.hyperv.checkpoints import remove_checkpoint
from hypervisors.hyperv.place import HostFile
from hypervisors.hyperv.powershell import PowerShellPort
from hypervisors.snapshot_records import TAG
from stores.uninterrupted import uninterrupted

_OFF = "Off"
_NAME = "storage-agent "
"""What our checkpoints' names begin with; the tag follows."""


@dataclass(frozen=True, slots=True)
class User:
    """`chain`: paths on the host, from the file that the machine writes to down to that of the disk."""

    vm: str
    running: bool
    chain: tuple[str, ...]


async def users(disk: HostFile) -> Sequence[User]:
    """The machines of the disk's host that have it. Those that have linked clones of it do not count."""
    told = await disk.place.port.run("find-machines", {"path": disk.id})
    return [User(one["vm"], one["state"] != _OFF, tuple(one["chain"])) for one in told["machines"]]


async def require_idle(disk: HostFile) -> None:
    """`ImageLocked` while a machine that is not off has it, or has written past a checkpoint of it."""
    for user in await users(disk):
        if user.running:
            raise ImageLocked(f"{disk.info.ref} is in use by the machine {user.vm}", ref=disk.info.ref, vm=user.vm)
        if len(user.chain) > 1:
            raise ImageLocked(
                f"the machine {user.vm} has checkpoints of {disk.info.ref}, whose content is in files above it: remove them"
                " first",
                ref=disk.info.ref,
                vm=user.vm,
            )


@asynccontextmanager
async def still(disk: HostFile, tag: str) -> AsyncIterator[Sequence[str]]:
    """Files of the pool that build on the disk's own and belong to it, the nearest first: none where it is not checkpointed.
    Nobody writes to them, nor to the disk's own, until the context ends; when it does, the checkpoint is gone and merged.
    Failed or cancelled, it is gone, and the host merges it by itself. `ImageLocked` where several machines have the disk, or
    where its files are not all in the pool."""
    found = await users(disk)
    if len({user.vm for user in found}) > 1:
        names = ", ".join(sorted(user.vm for user in found))
        raise ImageLocked(f"{disk.info.ref} belongs to several machines: {names}", ref=disk.info.ref)
    if not any(user.running for user in found):
        yield _names(disk, found[0].chain if found else (disk.id,))
        return
    vm, port = found[0].vm, disk.place.port
    merged = False
    try:
        checkpoint = await port.run("new-checkpoint", {"vm": vm, "name": _NAME + tag})
        (_, *below) = (await users(disk))[0].chain
        yield _names(disk, below)
        await remove_checkpoint(port, vm, checkpoint["id"], poll_s=disk.place.folder.host.poll_s)
        merged = True
    finally:
        if not merged:
            await uninterrupted(_remove_named(port, vm, tag))


async def tags(disk: HostFile) -> frozenset[str]:
    """Of the checkpoints of ours that a machine with this disk has."""
    found = set()
    for vm in {user.vm for user in await users(disk)}:
        for checkpoint in (await disk.place.port.run("get-checkpoints", {"vm": vm}))["checkpoints"]:
            if checkpoint["name"].startswith(_NAME + TAG):
                found.add(checkpoint["name"].removeprefix(_NAME))
    return frozenset(found)


async def remove(disk: HostFile, tag: str) -> None:
    """That checkpoint is gone; the host merges it by itself, however long that takes. Idempotent."""
    for vm in {user.vm for user in await users(disk)}:
        await _remove_named(disk.place.port, vm, tag)


async def _remove_named(port: PowerShellPort, vm: str, tag: str) -> None:
    for checkpoint in (await port.run("get-checkpoints", {"vm": vm}))["checkpoints"]:
        if checkpoint["name"] == _NAME + tag:
            await port.run("remove-checkpoint", {"vm": vm, "checkpoint": checkpoint["id"]})


def _names(disk: HostFile, chain: Sequence[str]) -> Sequence[str]:
    """Of a chain that ends with the disk's own file: those above that, the nearest first."""
    names = []
    for path in chain[-2::-1]:
        name = disk.place.folder.name_of(path)
        if name is None:
            raise ImageLocked(
                f"the machine keeps checkpoints of {disk.info.ref} outside of its pool, in {path}: remove them first",
                ref=disk.info.ref,
                path=path,
            )
        names.append(name)
    return names
