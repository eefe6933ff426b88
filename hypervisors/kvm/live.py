"""Disks of machines that run, held as they are at one moment: libvirt's pull-mode backups and checkpoints.

A machine has one backup at a time, and refuses much else meanwhile; commands of ours take turns. What is held is served by the
machine's own qemu on a socket, until it is dropped, or the machine stops. What the machine overwrites meanwhile is kept in a
scratch file, which loses its name at once, and so is gone with the job. qemu makes both beside the volume: there it and we can
open what the other makes.

Checkpoints are libvirt's names of qemu's bitmaps. It needs to know one only while we use it: bitmaps live in the volume, and
outlive machines, and our own records say which there are. One that libvirt knows outside of a command of ours is of a dead one.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from hypervisors.contract import ImageLocked
from hypervisors.kvm import backup_xml
from hypervisors.kvm.changing import Changing
from hypervisors.kvm.domain_xml import Image, mirrors_of
from hypervisors.kvm.domains import acting, disk_in, find_all
from hypervisors.kvm.libvirt import Libvirt, LibvirtFailure
from hypervisors.kvm.libvirt_calls import library
from hypervisors.kvm.quiet import at_rest, thaw_forgotten
from hypervisors.snapshot_records import FROZEN, TAG
from stores.contract import GiB, Silent
from stores.errors import InvalidReference, NoSpace, NotFound, Unavailable
from stores.transfer.engine import TransferEngine
from stores.transfer.groups import first_failure
from stores.uninterrupted import uninterrupted

_log = structlog.get_logger(__name__)

T = TypeVar("T")

LEAST_FREE = 1 * GiB
"""Room below which a backup is given up, or a fiftieth of the file system where that is less: qemu fails the machine's own
writes when it cannot keep what they overwrite."""

LONGEST_PATH = 107
"""Bytes in the name of a unix socket (unix(7))."""

_LOOK_S = 0.5
_END_S = 30.0


@dataclass(frozen=True)
class Place:
    """Where a volume is: `target` is libvirt's name of it in the machine `vm`, `vda`."""

    vm: str
    target: str


@dataclass(frozen=True)
class Held:
    """A moment of the disk that is the file `path`, served as the export `tag` on `socket`. `since`: the point from which on
    changes are told, as the dirty bitmap of that name."""

    place: Place
    path: Path
    tag: str
    socket: Path
    since: str | None


class LiveDisks:
    def __init__(self, libvirt: Libvirt, engine: TransferEngine) -> None:
        self._libvirt = libvirt
        self._engine = engine
        self._turns: dict[str, asyncio.Lock] = {}
        self._held: dict[str, Held] = {}

    async def place_of(self, path: Path) -> Place | None:
        """The machine that runs and has it. None where none of libvirt's has."""
        for machine in await self._libvirt.surely(self._machines):
            disk = disk_in(machine.now, str(path))
            if disk is not None:
                return Place(machine.name, disk.target)
        return None

    async def _machines(self) -> Any:
        return await self._libvirt.call("looking at all virtual machines", find_all)

    # ------------------------------------------------------------------------------------------------- holding a moment

    def held(self, tag: str | None) -> Held | None:
        return self._held.get(tag) if tag is not None else None

    async def hold(self, place: Place, path: Path, tag: str, *, tracked: bool, since: str | None) -> Held | None:
        """The disk as it is now, until `drop`; with its file systems at rest where an agent in the machine answers. `tracked`:
        from now on what is written is noted under `tag`. `since`: told if it is well.

        None where libvirt, or the machine's qemu, has no backups. Waits for those of ours of the same machine. `ImageLocked`
        while somebody else has one; `NoSpace`.
        """
        await self._require_room(path.parent)
        turn = self._turns.setdefault(place.vm, asyncio.Lock())
        await turn.acquire()
        try:
            with _no_backups():
                return await uninterrupted(self._begin(place, path, tag, tracked=tracked, since=since))
        except BaseException:
            await uninterrupted(self.end(place, path, tag))
            self._held.pop(tag, None)
            turn.release()
            raise
        turn.release()
        return None

    async def _begin(self, place: Place, path: Path, tag: str, *, tracked: bool, since: str | None) -> Held:
        socket, scratch = _beside(path, tag)

        def begin(domain: Any) -> str | None:
            self._require_no_job(domain)
            known = since if since is not None and _define(domain, place.target, since) else None
            try:
                new = backup_xml.checkpoint(place.target, tag) if tracked else None
                with at_rest(domain) as quiet:
                    domain.backupBegin(backup_xml.backup(place.target, tag, socket, scratch, known), new)
            finally:
                scratch.unlink(missing_ok=True)
                if known is not None:
                    _undefine(domain, known)
            _log.info("disk held", vm=place.vm, disk=place.target, tag=tag, at_rest=quiet, since=known)
            return known

        # Not done again after a connection broke: whoever began it cleans up, and then may.
        known = await self._once(place, "beginning a backup", begin)
        held = self._held[tag] = Held(place, path, tag, socket, known)
        return held

    async def copy_out(self, place: Place, path: Path, target: Path, driver: str) -> None:
        """The disk as it is at one moment, for where nothing can be held, in `target`, which is an image of its size that holds
        nothing; `driver` is qemu's name of its format. Waits for what we do with the same machine already. `NoSpace`."""
        await self._require_room(path.parent)
        async with self._turns.setdefault(place.vm, asyncio.Lock()):
            await Changing(self._libvirt).copy_out(str(path), Image(str(target), driver), Silent())

    def _require_no_job(self, domain: Any) -> None:
        """In a thread. What a dead process of ours left is ended."""
        job = _job(domain)
        if job is not None and job.exports and all(name.startswith(TAG) for name in job.exports):
            _end_job(domain)
        elif job is not None:
            raise ImageLocked(
                f"{domain.name()} has a backup that somebody else has begun; wait for its end, or end it: virsh domjobabort"
                f" {domain.name()}",
                vm=domain.name(),
            )

    async def drop(self, held: Held) -> None:
        """Nothing is held any more. Idempotent."""
        try:
            await uninterrupted(self.end(held.place, held.path, held.tag))
        finally:
            if self._held.pop(held.tag, None) is not None:
                self._turns[held.place.vm].release()

    async def end(self, place: Place, path: Path, tag: str) -> None:
        """As `drop`, of what a dead process held."""
        await self._end(place, tag)
        await self._engine.run(_remove, *_beside(path, tag))

    async def _end(self, place: Place, tag: str) -> None:
        def end(domain: Any) -> None:
            job = _job(domain)
            if job is not None and tag in job.exports:
                _end_job(domain)

        with suppress(NotFound):
            await self._in(place, "ending a backup", end)

    @asynccontextmanager
    async def guarded(self, held: Held) -> AsyncIterator[None]:
        """Given up, with `NoSpace`, before what the machine overwrites has no room any more."""
        why: list[NoSpace] = []
        try:
            with first_failure():
                async with asyncio.TaskGroup() as group:
                    watching = group.create_task(self._watch(held, why), name="room for a backup")
                    yield
                    watching.cancel()
        except Unavailable as error:
            raise (why[0] if why else error) from error

    async def _watch(self, held: Held, why: list[NoSpace]) -> None:
        """What ends the backup makes its readers fail first. Of one that was dropped nothing grows any more."""
        while held.tag in self._held:
            await asyncio.sleep(_LOOK_S)
            try:
                await self._require_room(held.path.parent)
            except NoSpace as problem:
                why.append(problem)
                await self._end(held.place, held.tag)
                raise

    async def _require_room(self, folder: Path) -> None:
        found = await self._engine.run(os.statvfs, folder)
        free, least = found.f_bavail * found.f_frsize, min(LEAST_FREE, found.f_blocks * found.f_frsize // 50)
        if free < least:
            raise NoSpace(
                f"{folder} has {free} bytes left, and a backup of a running machine needs at least {least}, for what the"
                " machine overwrites; free space, or stop the machine",
                needed=least,
                available=free,
            )

    # -------------------------------------------------------------------------------------------------------- points

    async def tags(self, place: Place) -> frozenset[str]:
        """Of ours, that libvirt knows of: what commands that did not come to their end have left."""

        def look(domain: Any) -> frozenset[str]:
            job = _job(domain)
            names = {each.getName() for each in _checkpoints(domain)} | set(job.exports if job else ())
            return frozenset(name for name in names if name.startswith(TAG))

        return await self._in(place, "looking for checkpoints", look)

    async def settle(self, place: Place, tag: str) -> None:
        """The point is recorded: libvirt need not know of it. Idempotent."""
        await self._in(place, "settling a checkpoint", lambda domain: _undefine(domain, tag))

    async def forget(self, place: Place, tag: str) -> None:
        """Nothing is noted under `tag` any more. Idempotent."""

        def forget(domain: Any) -> None:
            found = _find(domain, tag)
            if found is None and _define(domain, place.target, tag):
                found = _find(domain, tag)
            if found is not None:
                found.delete()

        with _no_backups():  # and no checkpoints: the bitmap is removed when a snapshot is made without the machine
            await self._in(place, "removing a checkpoint", forget)

    # -------------------------------------------------------------------------------------------------- after a crash

    async def reconcile(self) -> None:
        """Machines are thawed; backups and checkpoints that no command of this process has are gone. Idempotent."""
        for machine in await self._libvirt.surely(self._machines):
            turn = self._turns.setdefault(machine.name, asyncio.Lock())
            if not turn.locked():
                async with turn:
                    with suppress(NotFound):
                        await self._in(Place(machine.name, ""), "looking for leftovers", _tidy)

    async def _in(self, place: Place, doing: str, act: Callable[[Any], T]) -> T:
        """What `act` returns, which can be done again."""
        return await self._libvirt.surely(lambda: self._once(place, doing, act))

    async def _once(self, place: Place, doing: str, act: Callable[[Any], T]) -> T:
        told: list[T] = []

        def work(domain: Any) -> None:
            told.append(act(domain))

        await self._libvirt.call(f"{doing} of {place.vm}", acting(place.vm, work))
        return told[-1]


@contextmanager
def _no_backups() -> Iterator[None]:
    """Ends quietly where libvirt, or the machine's qemu, has no backups."""
    try:
        yield
    except LibvirtFailure as problem:
        if problem.code not in _unknown():
            raise


def _unknown() -> tuple[int, ...]:
    """What libvirt answers where it, or the machine's qemu, knows nothing of backups, or of checkpoints."""
    libvirt = library()
    return (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_UNSUPPORTED)


# ------------------------------------------------------------------------------------------- in a thread, of virDomain


def _job(domain: Any) -> backup_xml.Job | None:
    libvirt = library()
    if not domain.isActive():
        return None
    try:
        return backup_xml.job_of(domain.backupGetXMLDesc())
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, *_unknown()):
            raise
        return None


def _end_job(domain: Any) -> None:
    """Which is not a failure of the job: pull-mode backups end in no other way."""
    libvirt = library()
    try:
        domain.abortJob()
    except libvirt.libvirtError:
        if _job(domain) is not None:
            raise
    until = time.monotonic() + _END_S
    while _job(domain) is not None:
        if time.monotonic() > until:
            raise Unavailable(f"the backup of {domain.name()} did not end within {_END_S:g} s; look at its qemu")
        time.sleep(0.01)


def _checkpoints(domain: Any) -> list[Any]:
    libvirt = library()
    try:
        return list(domain.listAllCheckpoints())
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _unknown():
            raise
        return []


def _find(domain: Any, tag: str) -> Any:
    libvirt = library()
    try:
        return domain.checkpointLookupByName(tag)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT, *_unknown()):
            raise
        return None


def _define(domain: Any, target: str, tag: str) -> bool:
    """libvirt knows of the bitmap; False where there is none, or it is broken, or does not record."""
    libvirt = library()
    if _find(domain, tag) is not None:
        return True
    told = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
    try:
        domain.checkpointCreateXML(backup_xml.checkpoint(target, tag, created=int(time.time())), told)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT:
            raise
        return False
    return True


def _undefine(domain: Any, tag: str) -> None:
    """libvirt does not know of it; the bitmap stays."""
    found = _find(domain, tag)
    if found is not None:
        found.delete(library().VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _tidy(domain: Any) -> None:
    if domain.isActive():
        thaw_forgotten(domain)
        job = _job(domain)
        if job is not None and job.exports and all(name.startswith(TAG) for name in job.exports):
            _log.warning("backup ended", vm=domain.name(), why="an agent that died had begun it")
            _end_job(domain)
        for target, path in mirrors_of(domain.XMLDesc()).items():
            if f"/{FROZEN}/" in path:
                _log.warning("copy of a disk ended", vm=domain.name(), why="an agent that died had begun it")
                domain.blockJobAbort(target)
    for checkpoint in _checkpoints(domain):
        if checkpoint.getName().startswith(TAG):
            _undefine(domain, checkpoint.getName())


def _beside(path: Path, tag: str) -> tuple[Path, Path]:
    """The socket, and the scratch file. `InvalidReference` for a path that is too long for a socket."""
    socket = path.with_name(f".{tag}.sock")
    if len(os.fsencode(socket)) > LONGEST_PATH:
        raise InvalidReference(
            f"{socket} is too long for a socket, which a backup of a running machine needs beside its volume: at most"
            f" {LONGEST_PATH} bytes; use a pool with a shorter path, or stop the machine",
            ref=path.name,
        )
    return socket, path.with_name(f".{tag}.scratch")


def _remove(*paths: Path) -> None:
    """Blocking."""
    for path in paths:
        path.unlink(missing_ok=True)
