"""A primary store with what we know of its images."""

from __future__ import annotations

from dataclasses import dataclass

from hypervisors.documents import Documents, StoreDocuments
from hypervisors.records import Records, scratch_ref
from hypervisors.snapshot_records import SnapshotRecords, frozen_ref
from stores.contract import DEVICES, DataStore


@dataclass(frozen=True, slots=True)
class Pool:
    store: DataStore
    documents: Documents

    @property
    def records(self) -> Records:
        return Records(self.documents)

    @property
    def snapshots(self) -> SnapshotRecords:
        return SnapshotRecords(self.documents)

    @property
    def devices(self) -> bool:
        """Whether its images are disks of raw bytes, and no files."""
        return on_devices(self.store)

    async def discard(self, ref: str, parent: str | None, *, token: str) -> None:
        """Remove what a dead command left half written of an image: itself, its record, its scratch file. Idempotent."""
        await self.store.discard(ref, token=token)
        await self.records.discard(ref, parent, token=token)
        await self.store.discard(scratch_ref(token), token=token)

    async def discard_snapshot(self, volume: str, name: str, *, token: str) -> None:
        """The same of a snapshot."""
        await self.snapshots.discard(volume, name, token=token)
        await self.store.discard(frozen_ref(volume, name), token=token)


def on_devices(store: DataStore) -> bool:
    """Whether images are written there as disks of raw bytes, and not as files."""
    return not store.writes.isdisjoint(DEVICES)


def pool_of_store(store: DataStore) -> Pool:
    """Where images are objects of the store, and our documents are, beside them."""
    return Pool(store, StoreDocuments(store))
