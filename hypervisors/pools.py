"""The verbs on whole stores: pools come and go, are measured and listed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from hypervisors.context import Context
from hypervisors.documents import HIDDEN
from hypervisors.narrowing import as_pending_device, as_pending_disk, as_pending_stream
from hypervisors.verbs import Call, DeletePool, GetStorageStats, ListObjects, named
from stores.contract import DEVICES, DataStore, Kind, ObjectInfo, Usage
from stores.errors import NotFound, StoreUnsupported
from stores.to import PrimaryDataStoreTO


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """A pool that was found usable. Bytes; None where the pool's kind has no such number."""

    uuid: str
    capacity: int | None
    available: int | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a listing. `path` is a ref; `modified` is seconds since the epoch, 0 where unknown."""

    name: str
    path: str
    is_dir: bool
    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class Listing:
    path_exists: bool
    count: int  # of all entries, whatever the page
    entries: tuple[Entry, ...]


def probe_ref(token: str) -> str:
    return f"{HIDDEN}/probe/{token}"


async def connect(ctx: Context, call: Call, to: PrimaryDataStoreTO, *, make: bool) -> PoolInfo:
    await ctx.handler(call.hypervisor).provide(to, make=make)
    store = ctx.pool(call.hypervisor, to).store
    with suppress(StoreUnsupported):  # such as a library of ISOs, which is there to be read
        await _require_writable(ctx, store, call.token)
    usage = await store.usage()
    return PoolInfo(
        uuid=to.uuid,
        capacity=usage.capacity,
        available=usage.capacity - usage.used if usage.capacity is not None else None,
    )


async def _require_writable(ctx: Context, store: DataStore, token: str) -> None:
    """Writes a byte, or makes a disk, where nobody looks, and leaves without committing it."""
    kinds = (*DEVICES, Kind.BYTE_STREAM, Kind.MANAGED_DISK)
    async with ctx.resolver.create(store, probe_ref(token), kinds, token=token, size=1) as pending:
        if pending.kind in DEVICES:
            await as_pending_device(pending).make(1)
        elif pending.kind is Kind.MANAGED_DISK:
            await as_pending_disk(pending).make(1)
        else:
            await as_pending_stream(pending).write(memoryview(b"\0"))


async def disconnect(ctx: Context, call: Call, request: DeletePool) -> None:
    if request.everywhere:
        await ctx.handler(call.hypervisor).release(request.pool)
    store = ctx.pool(call.hypervisor, request.pool).store
    await store.let_go()
    await store.aclose()


async def storage_stats(ctx: Context, call: Call, request: GetStorageStats) -> Usage:
    return await ctx.store(call.hypervisor, request.store).usage()


async def list_objects(ctx: Context, call: Call, request: ListObjects) -> Listing:
    store = ctx.store(call.hypervisor, request.store)
    path = named(request.path).rstrip("/")
    entries: dict[str, Entry] = {}
    try:
        async for info in store.list(path):
            entry = _entry(info) if request.recursive else entry_below(path, info)
            # A directory may be listed by itself and shows in every ref below it; the first one stands for all.
            entries.setdefault(entry.path, entry)
    except NotFound:
        return Listing(path_exists=False, count=0, entries=())
    page = list(entries.values())[request.start_index : request.start_index + request.page_size]
    return Listing(path_exists=bool(entries) or not path, count=len(entries), entries=tuple(page))


def _entry(info: ObjectInfo) -> Entry:
    name = info.ref.rpartition("/")[2]
    return Entry(name, info.ref, is_dir=info.is_dir, size=info.size or 0, modified=info.modified or 0.0)


def entry_below(path: str, info: ObjectInfo) -> Entry:
    """What `info` looks like one level below `path`: itself, or the directory that it is in."""
    below = info.ref[len(path) + 1 :] if path and info.ref != path else info.ref
    name, slash, _ = below.partition("/") if info.ref != path else (info.ref.rpartition("/")[2], "", "")
    if slash:
        return Entry(name, f"{path}/{name}" if path else name, is_dir=True, size=0, modified=0.0)
    return _entry(info)
