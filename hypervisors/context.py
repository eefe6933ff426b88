"""What all verbs work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hypervisors.contract import HypervisorHandler, HypervisorType, OperationUnsupported
from hypervisors.images.gate import GateLimits
from hypervisors.primary import Pool, pool_of_store
from stores.contract import DataStore, Usage
from stores.errors import NoSpace
from stores.resolver import Resolver
from stores.to import DataStoreTO
from stores.transfer.engine import TransferEngine


@dataclass(frozen=True, slots=True)
class Context:
    """The process's parts. `clock` gives seconds since the epoch."""

    resolver: Resolver
    handlers: Mapping[HypervisorType, HypervisorHandler]
    engine: TransferEngine
    clock: Callable[[], float]
    limits: GateLimits

    def handler(self, hypervisor: HypervisorType) -> HypervisorHandler:
        try:
            return self.handlers[hypervisor]
        except KeyError:
            known = ", ".join(sorted(self.handlers)) or "none"
            raise OperationUnsupported(
                f"this agent has no handler for {hypervisor}; it has: {known}", hypervisor=hypervisor.value
            ) from None

    def store(self, hypervisor: HypervisorType, to: DataStoreTO) -> DataStore:
        """The store that `to` means to that hypervisor."""
        return self.resolver.store(to) if to.storeType != "primary" else self.pool(hypervisor, to).store

    def pool(self, hypervisor: HypervisorType, to: DataStoreTO) -> Pool:
        """The primary store of `to` with what we know of its images. `OperationUnsupported` for an image store."""
        if to.storeType != "primary":
            raise OperationUnsupported(
                f"images are written to primary storage only, not to an image store of type {to.storeType}",
                storeType=to.storeType,
            )
        return self.handler(hypervisor).pool(to) or pool_of_store(self.resolver.store(to))


def require_room(usage: Usage, needed: int | None, store: str) -> None:
    """`NoSpace` when it is known that `needed` bytes do not fit. The file system itself has the last word while writing."""
    if needed is None or usage.capacity is None:
        return
    available = usage.capacity - usage.used
    if needed > available:
        raise NoSpace(
            f"store {store} has no room: {needed} bytes are needed and {available} are available;"
            " free space or use another pool",
            needed=needed,
            available=available,
            store=store,
        )
