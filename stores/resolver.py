"""From a `DataStoreTO` to a store, and from what a store offers to what somebody accepts.

The only module of `stores` that names concrete stores. Imports of backends wait until their first use, so that a start
does not pay for libraries of stores that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum

from stores.contract import DataStore, Kind, ObjectInfo, PendingWrite, Presentation
from stores.errors import RequirementNotMet
from stores.settings import StoreSettings
from stores.to import DataStoreTO
from stores.transfer.engine import TransferEngine


class Via(StrEnum):
    """How a presentation comes about."""

    NATIVE = "native"
    BRIDGE = "bridge"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why one accepted kind was chosen or passed over."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Negotiation:
    """The outcome of comparing an offer with an acceptance. `chosen` is None when nothing fits."""

    store_id: str
    accepted: tuple[Kind, ...]
    offered: frozenset[Kind]
    chosen: Kind | None
    via: Via | None
    reasons: tuple[Reason, ...]

    def refusal(self) -> RequirementNotMet:
        """The error for a negotiation that chose nothing."""
        raise AssertionError


def negotiate(store_id: str, offered: frozenset[Kind], accepted: Sequence[Kind], *, ranges: bool) -> Negotiation:
    """Pure. The first accepted kind that is offered; else the bridge, if `NbdExport` is accepted and there are ranges."""
    raise AssertionError


class Resolver:
    """Stores by what the commands say of them."""

    def __init__(self, settings: StoreSettings, engine: TransferEngine) -> None:
        self._settings = settings
        self._engine = engine

    def store(self, to: DataStoreTO) -> DataStore:
        """The store that `to` means; the same object for the same identity and credentials. Contacts nothing."""
        raise AssertionError

    async def stat(self, to: DataStoreTO, ref: str) -> ObjectInfo:
        return await self.store(to).stat(ref)

    def open(
        self, store: DataStore, info: ObjectInfo, kinds: Sequence[Kind]
    ) -> AbstractAsyncContextManager[Presentation]:
        """The object in the first form that fits; `RequirementNotMet` before any byte moves."""
        raise AssertionError

    def create(
        self,
        store: DataStore,
        ref: str,
        kinds: Sequence[Kind],
        *,
        token: str,
        size: int | None = None,
        replace: bool = False,
    ) -> AbstractAsyncContextManager[PendingWrite]:
        """`store.write` in the first of `kinds` in which the store can be written; `RequirementNotMet` if there is none."""
        raise AssertionError

    async def aclose(self) -> None:
        """Close every store handed out so far. Idempotent."""
