"""Pools and image stores: set up, measured, listed, digested. Pure."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable

from agent import commands
from agent.commands import Answer, Command
from agent.transports.cloudstack.commands_naming import deep_enough, pool_of
from agent.transports.cloudstack.commands_route import Route
from agent.transports.cloudstack.commands_storage import done
from agent.transports.cloudstack.models import WireAnswer, WireCommand
from agent.transports.cloudstack.models_images import (
    ComputeChecksumCommand,
    DeleteSnapshotsDirCommand,
    ListDataStoreObjectsAnswer,
    ListDataStoreObjectsCommand,
    SecStorageSetupAnswer,
    SecStorageSetupCommand,
)
from agent.transports.cloudstack.models_pools import (
    CreateStoragePoolCommand,
    DeleteStoragePoolCommand,
    GetStorageStatsAnswer,
    GetStorageStatsCommand,
    GetVolumeStatsAnswer,
    GetVolumeStatsCommand,
    ModifyStoragePoolAnswer,
    ModifyStoragePoolCommand,
    StoragePoolInfo,
    VolumeStatsEntry,
)
from stores.errors import InvalidReference
from stores.to import PrimaryDataStoreTO, VolumeObjectTO

UNBOUNDED = (1 << 63) - 1
"""Capacity of a store that has no such number: an object store. The server reckons with the part that is used."""
_PAGE = 10_000
_PROBED = "setup"
"""A path that is listed to see whether a store answers; nothing has to be there."""


# ------------------------------------------------------------------------------------------------------------ pools


def _modify(command: ModifyStoragePoolCommand) -> Command:
    return commands.ModifyStoragePool(add=command.add, pool=pool_of(command.pool, command.details))


def _modified(command: ModifyStoragePoolCommand, answer: Answer) -> WireAnswer:
    if not command.add:
        return WireAnswer(result=True)
    return ModifyStoragePoolAnswer(
        result=True, poolInfo=_pool_info(command, answer.poolInfo), poolType=command.pool.type
    )


def _pool_info(command: ModifyStoragePoolCommand, info: commands.PoolInfo | None) -> StoragePoolInfo:
    filer = command.pool
    return StoragePoolInfo(
        uuid=filer.uuid,
        host=filer.host,
        localPath=(info.localPath if info else None) or command.localPath,
        hostPath=filer.path,
        poolType=filer.type,
        capacityBytes=(info.capacityBytes if info else None) or 0,
        availableBytes=(info.availableBytes if info else None) or 0,
    )


def _create(command: CreateStoragePoolCommand) -> Command:
    return commands.CreateStoragePool(pool=pool_of(command.pool, {**command.details, **command.moreDetails}))


def _delete(command: DeleteStoragePoolCommand) -> Command:
    return commands.DeleteStoragePool(pool=pool_of(command.pool))


# ------------------------------------------------------------------------------------------------------------ numbers


def _stats(command: GetStorageStatsCommand) -> Command:
    if command.store is not None:
        return commands.GetStorageStats(store=command.store)
    if command.id is None or command.pooltype is None:
        raise InvalidReference("statistics need a store, or the id and pooltype of a pool")
    return commands.GetStorageStats(
        store=PrimaryDataStoreTO(uuid=command.id, poolType=command.pooltype, path=command.localPath)
    )


def _stats_told(command: GetStorageStatsCommand, answer: Answer) -> WireAnswer:
    capacity = answer.capacityBytes if answer.capacityBytes is not None else UNBOUNDED
    return GetStorageStatsAnswer(result=True, usedBytes=answer.usedBytes or 0, capacityBytes=capacity)


def volume_stats(known: Callable[[str], PrimaryDataStoreTO | None]) -> Route:
    """The command names a pool by its uuid; `known` are those of which this host has heard more."""

    def asks(command: GetVolumeStatsCommand) -> Command:
        pool = known(command.poolUuid) or PrimaryDataStoreTO(uuid=command.poolUuid, poolType=command.poolType)
        return commands.GetVolumeStats(pool=pool, volumeUuids=list(command.volumeUuids))

    return Route(asks, _volume_stats_told)


def _volume_stats_told(command: GetVolumeStatsCommand, answer: Answer) -> WireAnswer:
    entries = {
        path: VolumeStatsEntry(volumeUuid=path, physicalsize=stats.physicalSize, virtualSize=stats.virtualSize)
        for path, stats in (answer.volumeStats or {}).items()
    }
    return GetVolumeStatsAnswer(result=True, poolUuid=command.poolUuid, poolType=command.poolType, volumeStats=entries)


def _checksum(command: ComputeChecksumCommand) -> Command:
    return commands.ComputeChecksum(
        store=command.store,
        templatePath=command.templatePath.strip("/"),
        algorithm=command.algorithm.replace("-", ""),
    )


# ------------------------------------------------------------------------------------------------------ image stores


def _setup(command: SecStorageSetupCommand) -> Command:
    return commands.ListDataStoreObjects(store=command.store, path=_PROBED, pageSize=1)


def _set_up(command: SecStorageSetupCommand, answer: Answer) -> WireAnswer:
    """The server keeps the directory's name with the store; by CloudStack's custom it is made of the URL."""
    directory = None
    if command.store.storeType == "nfs":
        digest = hashlib.md5(command.store.url.reveal().encode(), usedforsecurity=False).digest()
        directory = str(uuid.UUID(bytes=digest, version=3))
    return SecStorageSetupAnswer(result=True, details="success", directory=directory)


def _list(command: ListDataStoreObjectsCommand) -> Command:
    return commands.ListDataStoreObjects(
        store=command.store,
        path=command.path.strip("/"),
        startIndex=max(command.startIndex, 0),
        pageSize=min(command.pageSize, _PAGE) if command.pageSize > 0 else _PAGE,
    )


def _listed(command: ListDataStoreObjectsCommand, answer: Answer) -> WireAnswer:
    paths = tuple(answer.paths or ())
    return ListDataStoreObjectsAnswer(
        result=True,
        pathExists=bool(answer.pathExists),
        count=answer.count or 0,
        names=tuple(answer.names or ()),
        paths=paths,
        absPaths=paths,
        isDirs=tuple(answer.isDirs or ()),
        sizes=tuple(answer.sizes or ()),
        lastModified=tuple(answer.lastModified or ()),
    )


def _delete_directory(command: DeleteSnapshotsDirCommand) -> Command:
    """What is not a backup by its name is deleted as it lies there: all objects below the path."""
    return commands.Delete(data=deep_enough(VolumeObjectTO(path=command.directory, dataStore=command.store)))


POOLS: dict[type[WireCommand], Route] = {
    ModifyStoragePoolCommand: Route(_modify, _modified),
    CreateStoragePoolCommand: Route(_create, done),
    DeleteStoragePoolCommand: Route(_delete, done),
}
STORES: dict[type[WireCommand], Route] = {
    GetStorageStatsCommand: Route(_stats, _stats_told),
    ComputeChecksumCommand: Route(_checksum, done),
    SecStorageSetupCommand: Route(_setup, _set_up),
    ListDataStoreObjectsCommand: Route(_list, _listed),
    DeleteSnapshotsDirCommand: Route(_delete_directory, done),
}
