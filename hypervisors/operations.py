"""Every storage verb, written once over any hypervisor and any store.

A verb opens its stores through the resolver, asks the handler what it accepts, lets it read and write, and publishes: record
first, then the image, both durable. Names of hypervisors and of kinds of stores do not occur here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from hypervisors.contract import HypervisorHandler, HypervisorType
from hypervisors.verbs import (
    AttachIso,
    Call,
    ComputeChecksum,
    Copy,
    Create,
    CreatePool,
    Delete,
    DeletePool,
    GetStorageStats,
    GetVolumeStats,
    ListObjects,
    ModifyPool,
    Request,
    Resize,
)
from stores.contract import Kind, Usage
from stores.resolver import Resolver
from stores.to import DataTO, VolumeObjectTO
from stores.transfer.engine import TransferEngine


@dataclass(frozen=True, slots=True)
class VolumeStats:
    physical: int
    virtual: int


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """A pool that was found usable. Sizes in bytes."""

    uuid: str
    capacity: int
    available: int


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    path: str
    is_dir: bool
    size: int
    modified: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Listing:
    path_exists: bool
    count: int  # of all entries, whatever the page
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Side:
    """One half of a negotiation."""

    store: str
    ref: str
    accepted: tuple[Kind, ...]
    because: str
    offered: tuple[Kind, ...]
    chosen: Kind | None
    via: str | None  # native, bridge, cache
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would be done, and why. `refusal` is set where nothing would be."""

    operation: str
    hypervisor: str
    how: str
    source: Side
    target: Side | None
    refusal: str | None


@dataclass(frozen=True, slots=True)
class Recovered:
    """What became of a command that was running when the agent died.

    `answer` is what the verb would have returned, where it was found finished.
    """

    outcome: Literal["finished", "undone"]
    answer: object = None


class Operations:
    """The verbs. They hold no state; whoever calls has taken the locks that `touched` names."""

    def __init__(
        self,
        resolver: Resolver,
        handlers: Mapping[HypervisorType, HypervisorHandler],
        engine: TransferEngine,
        clock: Callable[[], float],
    ) -> None: ...

    async def copy(self, call: Call, request: Copy) -> DataTO: ...

    async def create(self, call: Call, request: Create) -> DataTO: ...

    async def delete(self, call: Call, request: Delete) -> None: ...

    async def resize(self, call: Call, request: Resize) -> VolumeObjectTO: ...

    async def checksum(self, call: Call, request: ComputeChecksum) -> str: ...

    async def storage_stats(self, call: Call, request: GetStorageStats) -> Usage: ...

    async def volume_stats(self, call: Call, request: GetVolumeStats) -> dict[str, VolumeStats]: ...

    async def create_pool(self, call: Call, request: CreatePool) -> PoolInfo: ...

    async def modify_pool(self, call: Call, request: ModifyPool) -> PoolInfo: ...

    async def delete_pool(self, call: Call, request: DeletePool) -> None: ...

    async def list_objects(self, call: Call, request: ListObjects) -> Listing: ...

    def explain(self, hypervisor: HypervisorType, request: Copy | AttachIso) -> Explanation: ...

    async def recover(self, hypervisor: HypervisorType, request: Request, token: str) -> Recovered: ...
