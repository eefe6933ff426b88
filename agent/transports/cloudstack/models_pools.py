"""Commands on storage pools and on the host itself, and their answers."""

from __future__ import annotations

from pydantic import Field

from agent.transports.cloudstack.models import API, WireAnswer, WireCommand, WireObject
from agent.transports.cloudstack.models_images import TemplateProp
from agent.transports.cloudstack.models_objects import StorageFilerTO
from stores.secret import Secret
from stores.to import DataStoreTO


class StoragePoolInfo(WireObject):
    """com.cloud.agent.api.StoragePoolInfo."""

    uuid: str | None = None
    host: str | None = None
    localPath: str | None = None
    hostPath: str | None = None
    poolType: str | None = None
    capacityBytes: int = 0
    availableBytes: int = 0
    name: str | None = None
    details: dict[str, Secret] = Field(default={})


class ModifyStoragePoolAnswer(WireAnswer):
    java = f"{API}.ModifyStoragePoolAnswer"
    poolInfo: StoragePoolInfo | None = None
    templateInfo: dict[str, TemplateProp] = Field(default={})
    localDatastoreName: str | None = None
    poolType: str | None = None


class _PoolCommand(WireCommand):
    add: bool = False
    pool: StorageFilerTO
    localPath: str | None = None
    storagePath: str | None = None
    details: dict[str, Secret] = Field(default={})


class ModifyStoragePoolCommand(_PoolCommand):
    """`add`: this host shall use the pool; else it shall not any more."""

    java = f"{API}.ModifyStoragePoolCommand"
    answered_by = ModifyStoragePoolAnswer


class CreateStoragePoolCommand(_PoolCommand):
    java = f"{API}.CreateStoragePoolCommand"
    createDatastore: bool = Field(default=False, alias="_createDatastore")
    moreDetails: dict[str, Secret] = Field(default={}, alias="_details")


class DeleteStoragePoolCommand(WireCommand):
    java = f"{API}.DeleteStoragePoolCommand"
    pool: StorageFilerTO = Field(alias="_pool")
    localPath: str | None = Field(default=None, alias="_localPath")
    removeDatastore: bool = Field(default=False, alias="_removeDatastore")
    details: dict[str, Secret] = Field(default={}, alias="_details")


class GetStorageStatsAnswer(WireAnswer):
    java = f"{API}.GetStorageStatsAnswer"
    usedBytes: int = 0
    capacityBytes: int = 0
    capacityIops: int | None = None
    usedIops: int | None = None


class GetStorageStatsCommand(WireCommand):
    """Of a pool: `id` is its uuid. Of an image store: `store`."""

    java = f"{API}.GetStorageStatsCommand"
    answered_by = GetStorageStatsAnswer
    id: str | None = None
    localPath: str | None = None
    pooltype: str | None = None
    secUrl: Secret | None = None
    store: DataStoreTO | None = None
    nfsVersion: str | None = None


class VolumeStatsEntry(WireObject):
    """com.cloud.agent.api.VolumeStatsEntry; the small `s` is its own."""

    volumeUuid: str
    physicalsize: int = 0
    virtualSize: int = 0


class GetVolumeStatsAnswer(WireAnswer):
    """`volumeStats` by path."""

    java = f"{API}.GetVolumeStatsAnswer"
    poolUuid: str | None = None
    poolType: str | None = None
    volumeStats: dict[str, VolumeStatsEntry] = Field(default={})


class GetVolumeStatsCommand(WireCommand):
    java = f"{API}.GetVolumeStatsCommand"
    answered_by = GetVolumeStatsAnswer
    volumeUuids: tuple[str, ...] = ()
    poolType: str
    poolUuid: str


# ----------------------------------------------------------------------------------------------------- the host


class PhysicalNetworkSetupInfo(WireObject):
    """com.cloud.network.PhysicalNetworkSetupInfo: names of devices by what they carry."""

    physicalNetworkId: int | None = None
    privateNetworkName: str | None = None
    publicNetworkName: str | None = None
    guestNetworkName: str | None = None
    storageNetworkName: str | None = None
    mgmtVlan: str | None = None


class CheckNetworkAnswer(WireAnswer):
    java = f"{API}.CheckNetworkAnswer"
    reconnect: bool = Field(default=False, alias="_reconnect")


class CheckNetworkCommand(WireCommand):
    """Whether the host has the network devices that the zone names."""

    java = f"{API}.CheckNetworkCommand"
    answered_by = CheckNetworkAnswer
    networkInfoList: tuple[PhysicalNetworkSetupInfo, ...] = ()


class CheckHealthAnswer(WireAnswer):
    java = f"{API}.CheckHealthAnswer"


class CheckHealthCommand(WireCommand):
    java = f"{API}.CheckHealthCommand"
    answered_by = CheckHealthAnswer


class HostStatsEntry(WireObject):
    """com.cloud.agent.api.HostStatsEntry. CPU in percent; rates in KiB per second."""

    hostId: int = 0
    entityType: str = "host"
    cpuUtilization: float = 0
    averageLoad: float = 0
    networkReadKBs: float = 0
    networkWriteKBs: float = 0
    totalMemoryKBs: float = 0
    freeMemoryKBs: float = 0


class GetHostStatsAnswer(WireAnswer):
    java = f"{API}.GetHostStatsAnswer"
    hostStats: HostStatsEntry | None = None


class GetHostStatsCommand(WireCommand):
    java = f"{API}.GetHostStatsCommand"
    answered_by = GetHostStatsAnswer
    hostGuid: str | None = None
    hostName: str | None = None
    hostId: int = 0
