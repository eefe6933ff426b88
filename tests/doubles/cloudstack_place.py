"""An agent in both roles over real pools and stores, asked in CloudStack's JSON and answering in it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.dispatcher import Dispatcher, Limits
from agent.execution import Execution
from agent.journal import Journal
from agent.transports.cloudstack.commands_desk import Desk
from agent.transports.cloudstack.json_codec import decode, encode
from agent.transports.cloudstack.models import WireCommand
from agent.transports.cloudstack.roles.host import Load, Machine
from agent.transports.cloudstack.roles.identity import Identity
from agent.transports.cloudstack.roles.routing import RoutingRole
from agent.transports.cloudstack.roles.secondary import SecondaryRole
from agent.transports.cloudstack.staging import StagingDesk
from agent.transports.cloudstack.staging_file import Zone
from hypervisors.contract import HypervisorType
from stores.to import S3TO
from tests.doubles.world import World

API, STORAGE = "com.cloud.agent.api", "org.apache.cloudstack.storage.command"
TO = "org.apache.cloudstack.storage.to"
IDENTITY = Identity(guid="0c6f1c7e", name="kvm7", zone="1", pod="2", cluster="3")
MACHINE = Machine(cpus=8, speed=2400, memory=2**35, arch="x86_64", system="Debian", system_version="12", kernel="6.1")


@dataclass
class Place:
    world: World
    routing: RoutingRole
    secondary: SecondaryRole
    healthy: list[bool]

    async def host(self, java: str, **fields: Any) -> dict[str, Any]:
        return await self._asked(self.routing, java, fields)

    async def ssvm(self, java: str, **fields: Any) -> dict[str, Any]:
        return await self._asked(self.secondary, java, fields)

    async def _asked(self, role: RoutingRole | SecondaryRole, java: str, fields: dict[str, Any]) -> dict[str, Any]:
        """What the server gets, fields of the answer and its class as `class`."""
        (command,) = decode(json.dumps([{java: fields}]).encode())
        assert isinstance(command, WireCommand), command
        answer = await role.execute(command, within_s=60)
        ((name, body),) = json.loads(encode([answer]))[0].items()
        return {"class": name.rpartition(".")[2], **body}

    def filer(self, name: str = "pool") -> dict[str, Any]:
        pool = self.world.pool(name)
        return {"id": 1, "uuid": pool.uuid, "type": pool.poolType, "path": pool.path, "host": "localhost", "port": 0}

    def pool(self, name: str = "pool") -> dict[str, Any]:
        pool = self.world.pool(name)
        return {f"{TO}.PrimaryDataStoreTO": {"uuid": pool.uuid, "poolType": pool.poolType, "path": pool.path}}

    def images(self) -> dict[str, Any]:
        return {f"{TO}.ImageStoreTO": {"uri": self.world.directory().uri.reveal(), "role": "Image"}}

    def left(self, name: str = "pool") -> list[str]:
        """Every file of a pool, records aside."""
        root = self.world.root / name
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if ".storage-agent" not in path.parts)


@asynccontextmanager
async def standing(its_world: World, directory: Path, zone: Zone | None = None) -> AsyncIterator[Place]:
    """`directory` is the journal's. With a `zone`, some of its stores are only names."""
    execution = Execution(its_world.operations, HypervisorType.KVM)
    async with Journal(directory) as journal, Dispatcher(journal, execution, Limits()) as dispatcher:
        desk, healthy = Desk(dispatcher) if zone is None else StagingDesk(dispatcher, zone), [True]
        routing = RoutingRole(
            IDENTITY,
            desk,
            MACHINE,
            Load(lambda: 0.0),
            hypervisor="KVM",
            healthy=lambda: healthy[0],
            devices=lambda: frozenset({"cloudbr0", "eth0"}),
        )
        yield Place(its_world, routing, SecondaryRole(IDENTITY, desk), healthy)


def volume(store: Any, path: str | None = None, **fields: Any) -> dict[str, Any]:
    return {f"{TO}.VolumeObjectTO": {"path": path, "dataStore": store, "hypervisorType": "KVM", **fields}}


def template(store: Any, path: str | None = None, **fields: Any) -> dict[str, Any]:
    return {f"{TO}.TemplateObjectTO": {"path": path, "imageDataStore": store, "hypervisorType": "KVM", **fields}}


def s3(store: S3TO) -> dict[str, Any]:
    """An S3 store as the wire has it."""
    assert store.secretKey is not None
    fields = {"accessKey": store.accessKey, "secretKey": store.secretKey.reveal(), "bucketName": store.bucketName}
    return {"com.cloud.agent.api.to.S3TO": {**fields, "endPoint": store.endPoint}}


def snapshot(store: Any, path: str | None = None, **fields: Any) -> dict[str, Any]:
    return {f"{TO}.SnapshotObjectTO": {"path": path, "dataStore": store, "hypervisorType": "KVM", **fields}}
