"""From a command to the verb that does it, and from what the verb returns to the command's outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agent import backup_answers, commands
from agent.cache_service import CacheService
from agent.commands import Command, Outcome
from agent.locks import Claim
from agent.upload_service import UploadService
from hypervisors import verbs
from hypervisors.contract import HypervisorType
from hypervisors.guests import DETACH_WITHIN_S
from hypervisors.operations import Copied, Operations
from stores.contract import Progress
from stores.errors import InvalidReference
from stores.resolver import Durability
from stores.to import DiskTO


def request_of(command: Command) -> verbs.Request | None:
    """What the command asks of `Operations`; None for a command that asks nothing."""
    match command:
        case commands.Copy():
            return verbs.Copy(
                command.source,
                command.destination,
                prefer_cache=command.cache == "prefer",
                durability=Durability(command.durability),
            )
        case commands.CreateObject():
            return verbs.Create(command.data)
        case commands.Delete():
            return verbs.Delete(command.data, merge=command.merge)
        case commands.RevertSnapshot():
            return verbs.Revert(command.snapshot)
        case commands.ResizeVolume():
            return verbs.Resize(command.volume, command.newSize, command.shrinkOk)
        case commands.MigrateVolume():
            return verbs.Migrate(command.source, command.destination)
        case commands.CreateStoragePool():
            return verbs.CreatePool(command.pool)
        case commands.ModifyStoragePool():
            return verbs.ModifyPool(command.pool) if command.add else verbs.DeletePool(command.pool, everywhere=False)
        case commands.DeleteStoragePool():
            return verbs.DeletePool(command.pool)
        case commands.ComputeChecksum():
            return verbs.ComputeChecksum(command.store, command.templatePath, command.algorithm.lower())
        case commands.GetStorageStats():
            return verbs.GetStorageStats(command.store)
        case commands.GetVolumeStats():
            return verbs.GetVolumeStats(command.pool, tuple(command.volumeUuids))
        case commands.ListDataStoreObjects():
            return verbs.ListObjects(
                command.store, command.path, command.startIndex, command.pageSize, command.recursive
            )
        case commands.VerifyBackup():
            return verbs.VerifyBackup(command.store, command.path)
        case commands.ListBackups():
            return verbs.ListBackups(command.store, command.path)
        case commands.Attach():
            return attaching(command)
        case commands.Dettach():
            return _detaching(command)
        case commands.IntroduceObject():
            return verbs.Introduce(command.data)
        case commands.ForgetObject():
            return verbs.Forget(command.data)
        case commands.Prefetch():
            return verbs.Prefetch(command.data)
        case commands.Ping() | commands.ScrubCache() | commands.ReconcileCache():
            return None


def attaching(command: commands.Attach) -> verbs.AttachIso | verbs.AttachVolume:
    data = command.disk.data
    match data.type:
        case "template":
            return verbs.AttachIso(data, command.vmName, insert=command.insert)
        case "volume":
            return verbs.AttachVolume(data, command.vmName, command.disk.diskSeq, command.readOnly)
        case "snapshot":
            raise InvalidReference("a snapshot is not attached to guests")


def _detaching(command: commands.Dettach) -> verbs.DetachIso | verbs.DetachVolume:
    data = command.disk.data
    match data.type:
        case "template":
            return verbs.DetachIso(data, command.vmName)
        case "volume":
            wait = command.waitDetachDevice
            return verbs.DetachVolume(data, command.vmName, DETACH_WITHIN_S if wait is None else wait / 1000)
        case "snapshot":
            raise InvalidReference("a snapshot is not attached to guests")


class Execution:
    """Commands by way of `Operations`: what the dispatcher and the recovery need of them."""

    def __init__(
        self,
        operations: Operations,
        hypervisor: HypervisorType,
        cache: CacheService | None = None,
        uploads: UploadService | None = None,
    ) -> None:
        """`hypervisor` is the one of commands that name none."""
        self._operations = operations
        self._hypervisor = hypervisor
        self._cache = cache or CacheService(None)
        self._uploads = uploads or UploadService()
        self._awaited: dict[str, str] = {}  # uploads, by the command that was stopped while it waited for them

    def claims(self, command: Command) -> Sequence[Claim]:
        """What a verb touches it has to itself, except for the source of a copy: many may copy from it at once, unless the copy
        makes a snapshot of it."""
        request = request_of(command)
        if request is None:
            return ()
        touched = verbs.touched(request)
        if not isinstance(request, verbs.Copy) or verbs.is_direct(request):
            return [Claim(key) for key in touched]
        changed = verbs.touched(verbs.Create(request.destination))
        return [Claim(key, exclusive=key in changed) for key in touched]

    async def execute(self, command: Command, token: str, progress: Progress) -> Outcome:
        """Do it. What it wrote is as durable as the command asks when this returns. Cancelled or failed, it leaves nothing
        behind, but for what it has staged: see `settle`."""
        match command:
            case commands.ScrubCache():
                return await self._cache.scrub(command, progress)
            case commands.ReconcileCache():
                return await self._cache.reconcile(command, progress)
        request = request_of(command)
        if request is None:
            return Outcome()
        call = verbs.Call(token, self._of(command), progress)
        result = await self._verb(call, request)
        if isinstance(command, commands.Copy) and isinstance(result, Copied):
            result = await self._as_durable_as_asked(command, token, result, progress)
        return _answered(command, _outcome(request, result))

    async def settle(self, command: Command, token: str, *, give_up: bool) -> None:
        """After a run was stopped: returns when nothing of it is left. `UploadPending` where what it has staged, or waited for,
        goes on to its store, or why that failed; with `give_up` what it has staged is given up as well. A command that would
        have been answered `staged` is undone: nobody was told of what it has staged."""
        awaited = self._awaited.pop(token, None)
        if isinstance(command, commands.Copy) and command.destination.store.storeType != "primary":
            await self._uploads.settle(token, give_up=give_up or command.durability == "staged")
        if awaited is not None and not give_up:
            await self._uploads.require_stored(awaited)

    async def undo(self, command: Command, token: str) -> Outcome | None:
        """Account for a run that a dead process left: its outcome if it had come to its end, None once it is undone. Raises as
        `settle` where what it has staged is neither stored nor told as staged."""
        request = request_of(command)
        if request is None:
            return None
        recovered = await self._operations.recover(self._of(command), request, token)
        if recovered.outcome != "finished":
            await self.settle(command, token, give_up=False)
            return None
        result = recovered.answer
        if isinstance(result, Copied) and isinstance(command, commands.Copy):
            result = replace(result, upload=await self._uploads.pending_of(token))
            if command.durability == "stored":
                await self.settle(command, token, give_up=False)
        return _answered(command, _outcome(request, result))

    async def _as_durable_as_asked(
        self, command: commands.Copy, token: str, copied: Copied, progress: Progress
    ) -> Copied:
        """A client that does not ask for `staged` may not know the word: it is told of a success when the store has confirmed
        it, whoever has staged it."""
        if copied.upload is None or command.durability == "staged":
            return copied
        progress.phase("upload")
        try:
            await self._uploads.stored(copied.upload)
        except asyncio.CancelledError:
            self._awaited[token] = copied.upload
            raise
        return replace(copied, upload=None)

    def _of(self, command: Command) -> HypervisorType:
        return command.hypervisorType or self._hypervisor

    async def _verb(self, call: verbs.Call, request: verbs.Request) -> object:
        operations = self._operations
        match request:
            case verbs.Copy():
                return await operations.copy(call, request)
            case verbs.Create():
                return await operations.create(call, request)
            case verbs.Delete():
                await operations.delete(call, request)
            case verbs.Resize():
                return await operations.resize(call, request)
            case verbs.Revert():
                return await operations.revert(call, request)
            case verbs.Migrate():
                return await operations.migrate(call, request)
            case verbs.CreatePool():
                return await operations.create_pool(call, request)
            case verbs.ModifyPool():
                return await operations.modify_pool(call, request)
            case verbs.DeletePool():
                await operations.delete_pool(call, request)
            case verbs.ComputeChecksum():
                return await operations.checksum(call, request)
            case verbs.GetStorageStats():
                return await operations.storage_stats(call, request)
            case verbs.GetVolumeStats():
                return await operations.volume_stats(call, request)
            case verbs.ListObjects():
                return await operations.list_objects(call, request)
            case verbs.VerifyBackup(store, path):
                return await operations.verify_backup(call, store, path)
            case verbs.ListBackups(store, prefix):
                return await operations.backup_tree(store, prefix)
            case verbs.AttachIso():
                return await operations.attach_iso(call, request)
            case verbs.DetachIso():
                await operations.detach_iso(call, request)
            case verbs.AttachVolume():
                return await operations.attach_volume(call, request)
            case verbs.DetachVolume():
                await operations.detach_volume(call, request)
            case verbs.Introduce():
                return await operations.introduce(call, request)
            case verbs.Forget():
                await operations.forget(call, request)
            case verbs.Prefetch():
                return await operations.prefetch(call, request)
        return None


def _answered(command: Command, outcome: Outcome) -> Outcome:
    """With the disk as it was sent, and the path and the device that it has now."""
    if outcome.disk is None or not isinstance(command, commands.Attach | commands.Dettach):
        return outcome
    now: dict[str, object] = {"path": outcome.disk.path}
    if outcome.disk.diskSeq is not None:
        now["diskSeq"] = outcome.disk.diskSeq
    return outcome.model_copy(update={"disk": command.disk.model_copy(update=now)})


def _outcome(request: verbs.Request, result: Any) -> Outcome:
    """`result` is what the request's verb returns (`Operations`)."""
    match request:
        case verbs.Copy():
            return Outcome(
                durability="staged" if result.upload else "stored",
                upload=result.upload,
                newData=result.data,
                details=result.note,
            )
        case verbs.Create():
            return Outcome(durability="stored", data=result)
        case verbs.Delete():
            return Outcome(durability="stored")
        case verbs.Revert():
            return Outcome(durability="stored", data=result)
        case verbs.Migrate():
            return Outcome(durability="stored", newData=result)
        case verbs.Resize():
            return Outcome(durability="stored", data=result, newSize=result.size)
        case verbs.CreatePool(pool) | verbs.ModifyPool(pool):
            return Outcome(
                poolInfo=commands.PoolInfo(
                    uuid=result.uuid,
                    localPath=pool.path,
                    poolType=pool.poolType,
                    capacityBytes=result.capacity,
                    availableBytes=result.available,
                )
            )
        case verbs.DeletePool():
            return Outcome()
        case verbs.ComputeChecksum():
            return Outcome(details=result)
        case verbs.GetStorageStats():
            return Outcome(usedBytes=result.used, capacityBytes=result.capacity)
        case verbs.GetVolumeStats():
            return Outcome(
                volumeStats={
                    path: commands.VolumeStats(physicalSize=stats.physical, virtualSize=stats.virtual)
                    for path, stats in result.items()
                }
            )
        case verbs.VerifyBackup():
            return Outcome(verified=backup_answers.verified(result))
        case verbs.ListBackups():
            return Outcome(backups=backup_answers.tree(result))
        case verbs.AttachIso(iso):
            return Outcome(disk=DiskTO(type="ISO", data=iso, path=result.path, diskSeq=result.device))
        case verbs.DetachIso(iso):
            return Outcome(disk=DiskTO(type="ISO", data=iso))
        case verbs.AttachVolume(volume):
            return Outcome(disk=DiskTO(type="DATADISK", data=volume, path=verbs.ref_of(volume), diskSeq=result.device))
        case verbs.DetachVolume(volume):
            return Outcome(disk=DiskTO(type="DATADISK", data=volume, path=verbs.ref_of(volume)))
        case verbs.Introduce():
            return Outcome(data=result)
        case verbs.Forget():
            return Outcome()
        case verbs.Prefetch():
            return Outcome(data=result)
        case verbs.ListObjects():
            return Outcome(
                pathExists=result.path_exists,
                count=result.count,
                names=[entry.name for entry in result.entries],
                paths=[entry.path for entry in result.entries],
                isDirs=[entry.is_dir for entry in result.entries],
                sizes=[entry.size for entry in result.entries],
                lastModified=[int(entry.modified * 1000) for entry in result.entries],
            )
