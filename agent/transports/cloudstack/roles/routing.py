"""The role of a hypervisor host: what it says of itself, and what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from agent.transports.cloudstack import commands_guests, commands_storage, commands_stores
from agent.transports.cloudstack.commands_desk import Desk
from agent.transports.cloudstack.commands_naming import pool_of
from agent.transports.cloudstack.commands_refused import refused, unsupported
from agent.transports.cloudstack.commands_route import Route, failure
from agent.transports.cloudstack.models import WireAnswer, WireCommand
from agent.transports.cloudstack.models_images import ListDataStoreObjectsCommand
from agent.transports.cloudstack.models_pools import (
    CheckHealthCommand,
    CheckNetworkCommand,
    CreateStoragePoolCommand,
    DeleteStoragePoolCommand,
    GetHostStatsAnswer,
    GetHostStatsCommand,
    GetStorageStatsCommand,
    GetVolumeStatsCommand,
    ModifyStoragePoolCommand,
)
from agent.transports.cloudstack.models_session import (
    PingCommand,
    PingRoutingCommand,
    StartupCommand,
    StartupRoutingCommand,
)
from agent.transports.cloudstack.roles.host import Load, Machine, device_names, interface_of
from agent.transports.cloudstack.roles.identity import PROTOCOL, Identity
from stores.to import PrimaryDataStoreTO

_RESOURCE = "LibvirtComputingResource"


class RoutingRole:
    """One link's. Remembers which pools the server has connected this host to: some commands name them by uuid only."""

    name = "Routing"

    def __init__(
        self,
        identity: Identity,
        desk: Desk,
        machine: Machine,
        load: Load,
        *,
        hypervisor: str,
        healthy: Callable[[], bool],
        devices: Callable[[], frozenset[str]] = device_names,
    ) -> None:
        """`healthy`: whether the agent takes commands. `devices`: names of the host's network devices."""
        self._identity = identity
        self._desk = desk
        self._machine = machine
        self._load = load
        self._hypervisor = hypervisor
        self._healthy = healthy
        self._devices = devices
        self._pools: dict[str, PrimaryDataStoreTO] = {}
        shared: tuple[type[WireCommand], ...] = (GetStorageStatsCommand, ListDataStoreObjectsCommand)
        self._routes: dict[type[WireCommand], Route] = {
            **commands_storage.ROUTES,
            **commands_guests.ROUTES,
            **commands_stores.POOLS,
            **{kind: commands_stores.STORES[kind] for kind in shared},
            GetVolumeStatsCommand: commands_stores.volume_stats(self._pools.get),
        }

    def introduction(self, local_address: str) -> Sequence[StartupCommand]:
        identity, machine, device = self._identity, self._machine, interface_of(local_address)
        details = {
            "Host.OS": machine.system,
            "Host.OS.Version": machine.system_version,
            "Host.OS.Kernel.Version": machine.kernel,
        }
        return [
            StartupRoutingCommand(
                guid=identity.resource_guid(_RESOURCE),
                resourceName=_RESOURCE,
                name=identity.name,
                dataCenter=identity.zone,
                pod=identity.pod,
                cluster=identity.cluster,
                version=PROTOCOL,
                privateIpAddress=device.address,
                privateNetmask=device.netmask,
                privateMacAddress=device.mac,
                storageIpAddress=device.address,
                storageNetmask=device.netmask,
                storageMacAddress=device.mac,
                cpus=machine.cpus,
                speed=machine.speed,
                memory=machine.memory,
                dom0MinMemory=identity.reserved_memory,
                caps="hvm,snapshot",
                hypervisorType=self._hypervisor,
                hostDetails=details,
                arch=machine.arch,
            )
        ]

    def ping(self, host_id: int) -> PingCommand:
        """Says nothing about guests: this agent does not know them."""
        return PingRoutingCommand(hostId=host_id)

    async def execute(self, command: WireCommand, *, within_s: float) -> WireAnswer:
        """The answer in its own class. Cancelled, it leaves nothing behind (`Desk.serve`)."""
        match command:
            case CheckHealthCommand():
                healthy = self._healthy()
                return command.answered_by(result=healthy, details=None if healthy else "the agent takes no commands")
            case CheckNetworkCommand():
                return _checked(command, await asyncio.to_thread(self._devices))
            case GetHostStatsCommand():
                stats = await asyncio.to_thread(self._load.since_last, command.hostId)
                return GetHostStatsAnswer(result=True, hostStats=stats)
        route = self._routes.get(type(command))
        if route is None:
            return refused(command) or unsupported(command.java, self.name)
        answer = await self._desk.serve(route, command, within_s=within_s)
        if answer.result:
            self._remember(command)
        return answer

    def _remember(self, command: WireCommand) -> None:
        match command:
            case ModifyStoragePoolCommand(add=True) | CreateStoragePoolCommand():
                self._pools[command.pool.uuid] = pool_of(command.pool, command.details)
            case ModifyStoragePoolCommand() | DeleteStoragePoolCommand():
                self._pools.pop(command.pool.uuid, None)


def _checked(command: CheckNetworkCommand, devices: frozenset[str]) -> WireAnswer:
    """Whether every device that the zone names is there. What the zone does not name is left to the host."""
    wanted = {
        name
        for network in command.networkInfoList
        for name in (
            network.privateNetworkName,
            network.publicNetworkName,
            network.guestNetworkName,
            network.storageNetworkName,
        )
        if name
    }
    missing = sorted(wanted - devices)
    if missing:
        return failure(command, f"this host has no network device {', '.join(missing)}")
    return command.answered_by(result=True)
