"""READ FIRST. What a store is, and the forms in which it hands out an object.

A store *offers* some presentations of an object; whoever needs the object *accepts* some, in order of preference. One
place compares the two (`stores.resolver`), much as HTTP negotiates content. Nobody asks what class a store is.

Units are bytes throughout. Offsets count from the first byte of the object.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol, TypeAlias, TypeVar

from stores.errors import StoreError, StoreUnsupported
from stores.secret import Secret

T = TypeVar("T")

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB


class Kind(StrEnum):
    """The presentations by name: what offers and acceptances are made of."""

    LOCAL_PATH = "LocalPath"
    NBD_EXPORT = "NbdExport"
    HTTP_URL = "HttpUrl"
    RBD_IMAGE = "RbdImage"
    NFS_FILE = "NfsFile"
    ISCSI_LUN = "IscsiLun"
    BLOCK_DEVICE = "BlockDevice"
    RANGE_READER = "RangeReader"
    BYTE_STREAM = "ByteStream"
    MANAGED_DISK = "ManagedDisk"
    UPLOAD = "Upload"  # only a way to write


DEVICES = (Kind.RBD_IMAGE, Kind.ISCSI_LUN, Kind.BLOCK_DEVICE)
"""Disks of raw bytes that are no files: their size is known before anything is in them. Presented as `NetworkImage`, written as
`PendingImage`."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store says about one object at one moment.

    `version` changes whenever the content does (ETag, or inode, size and mtime); a presentation opened with this info
    fails with `ObjectChanged` rather than mix two versions. `size` is None only where a server does not tell.
    """

    ref: str
    size: int | None
    version: str | None = None
    modified: float | None = None  # seconds since the epoch
    ranges: bool = True  # whether this object can be read at random
    is_dir: bool = False  # only in listings
    upload: str | None = None
    """Only of what was just written: not in the store yet, but safe on this host, and the upload of this id brings it there."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes that is either data or known to read as zeroes."""

    offset: int
    length: int
    zero: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """Room in a store. `capacity` is None where the store has no such number (object stores)."""

    used: int
    capacity: int | None


# ---------------------------------------------------------------------------------------------- presentations


@dataclass(frozen=True, slots=True)
class LocalPath:
    """A file's path on a local file system. Valid until the context that gave it ends."""

    path: Path
    info: ObjectInfo
    kind: ClassVar[Kind] = Kind.LOCAL_PATH


@dataclass(frozen=True, slots=True)
class NbdExport:
    """The object's bytes, served read-only at random over NBD on a unix socket."""

    socket: Path
    export: str
    info: ObjectInfo
    failure: Callable[[], StoreError | None] = field(default=lambda: None, repr=False, compare=False)
    """Why the first read of this export that failed did, if one did. A tool only says "Input/output error": whoever ran
    it over this export raises this instead."""
    kind: ClassVar[Kind] = Kind.NBD_EXPORT


@dataclass(frozen=True, slots=True)
class HttpUrl:
    """A plain URL that answers HEAD and ranges, without credentials, and may therefore appear in an argv."""

    url: str
    info: ObjectInfo
    kind: ClassVar[Kind] = Kind.HTTP_URL


class StorageSide:
    """What the storage does by itself with one image that others read and write. What it cannot do keeps its default here.

    Snapshots are inside the image, and are named by tags. All is idempotent, so that a recovery can repeat it, and durable when
    it returns.
    """

    async def size(self) -> int | None:
        """Bytes that a guest sees. None: qemu is to be asked."""
        return None

    async def used(self) -> int | None:
        """Bytes that it takes there. None: as many as it has."""
        return None

    async def in_use(self) -> bool:
        """Whether somebody has it open for writing, as far as the storage knows: False where it does not."""
        return False

    async def resize(self, size: int) -> None:
        """Of at least `size` bytes, larger or smaller; what is new reads as zeroes."""
        raise self._unsupported("be resized")

    snapshots: bool = False
    """Whether it has snapshots; without them, none of what follows."""

    async def tags(self) -> frozenset[str]:
        """Of all its snapshots."""
        return frozenset()

    async def freeze(self, tag: str) -> None:
        """A snapshot of what it is now. One that is there already stays as it is."""
        raise self._unsupported("have snapshots")

    async def forget(self, tag: str) -> None:
        """The snapshot is gone. Images that were derived from it stay, and may come to stand for themselves by this."""
        raise self._unsupported("have snapshots")

    async def rewind(self, tag: str) -> None:
        """The image has the content and the size of the snapshot, which stays."""
        raise self._unsupported("have snapshots")

    def frozen(self, tag: str) -> NetworkImage:
        """The snapshot, to be read."""
        raise self._unsupported("have snapshots")

    async def changed(self, since: str, until: str | None) -> Sequence[tuple[int, int]]:
        """(offset, length) of what is different at the snapshot `until`, or now, from what was at `since`, in order and apart:
        perhaps more, never less."""
        raise self._unsupported("have snapshots")

    def _unsupported(self, what: str) -> StoreUnsupported:
        return StoreUnsupported(f"an image of this storage cannot {what}", operation=what)


@dataclass(frozen=True, slots=True)
class NetworkDisk:
    """Where a disk is, for virtual machines, which open it by themselves: qemu's `protocol` (rbd, iscsi), and the `name` in it
    (POOL/IMAGE, TARGET/LUN). `hosts`: names or addresses, and ports. `user`, `secret`: None where the storage asks for none."""

    protocol: str
    name: str
    hosts: tuple[tuple[str, int], ...]
    user: str | None = None
    secret: Secret | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class NetworkImage:
    """A disk that qemu opens by itself, over the network or as a device of this host. `options` are qemu block-layer options
    for the protocol node, `objects` what `--object` has to say for them: both appear in argv, and name secrets' files at most.
    """

    options: dict[str, object]
    info: ObjectInfo
    kind: Kind
    objects: tuple[str, ...] = ()
    storage: StorageSide = field(default=StorageSide(), compare=False)
    network: NetworkDisk | None = None
    """None for devices of this host, and for what machines are not to have."""


@dataclass(frozen=True, slots=True)
class ManagedDisk:
    """A disk that its hypervisor keeps where no file or device of this host shows it. `id` is its name there, and stays the
    disk's; only that hypervisor's handler can open it."""

    id: str
    info: ObjectInfo
    kind: ClassVar[Kind] = Kind.MANAGED_DISK


class BlockingCalls(Protocol):
    """Threads for blocking calls. `stores.transfer.threads` has them."""

    async def run(self, call: Callable[[], T], *, abort: Callable[[], None] | None = None) -> T:
        """What `call` returns or raises, from a thread. When cancelled: makes a running call end by `abort`, where there is
        such a way, and waits for its end."""
        ...


Ahead: TypeAlias = Callable[[], Iterable[tuple[int, int]]]
"""Offset and length of ranges that will be asked for next, in order. Nobody is bound by it."""


class RangeReader(abc.ABC):
    """Any range, by many readers at once."""

    kind: ClassVar[Kind] = Kind.RANGE_READER
    info: ObjectInfo
    parallel: int = 4  # how many reads are worth having under way at once; more of them wait for one another

    @abc.abstractmethod
    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole `buffer` with the object's bytes from `offset`.

        Many calls may be under way. Raises `IntegrityError` when the object ends early, `ObjectChanged` when its version
        moved, `Unavailable` when its own attempts to go on failed. When this call ends, cancelled or not, nobody writes
        into `buffer` any more.
        """

    async def read_each(
        self,
        take: Callable[[], tuple[int, memoryview] | None],
        put: Callable[[int, memoryview], None],
        threads: BlockingCalls,
        *,
        ahead: Ahead = lambda: (),
    ) -> None:
        """For bulk: as `read_into`, for one offset and buffer after another, as `take` names them, until it gives None. Each
        goes to `put` when it is filled. `ahead` tells what will be taken next, in order, as far as that is known: a
        reader whose requests cost something asks at once for what of it lies right behind the buffer that was taken last.

        `take`, `put` and `ahead` may block and are called in `threads`, one at a time. A reader that itself works by blocking
        calls overrides this to do all of it in one thread, without a change of threads for every buffer.
        """
        wanted = await threads.run(take)
        while wanted is not None:
            await self.read_into(*wanted)

            def put_and_take(offset: int, buffer: memoryview) -> tuple[int, memoryview] | None:
                put(offset, buffer)
                return take()

            wanted = await threads.run(partial(put_and_take, *wanted))

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Data and holes of that range, in order, without gaps. Unknown means data."""
        return [Extent(offset, length, zero=False)]

    async def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` as a new object; for headers, not for bulk."""
        data = bytearray(length)
        with memoryview(data) as view:
            await self.read_into(offset, view)
        return bytes(data)


class ByteStream(abc.ABC):
    """The whole object once, in order. Iterating twice is an error."""

    kind: ClassVar[Kind] = Kind.BYTE_STREAM
    info: ObjectInfo

    @abc.abstractmethod
    def __aiter__(self) -> AsyncIterator[memoryview]:
        """Pieces of at most 4 MiB. A piece is valid only until the next one is asked for."""


Presentation: TypeAlias = LocalPath | NbdExport | HttpUrl | NetworkImage | RangeReader | ByteStream | ManagedDisk


# ---------------------------------------------------------------------------------------------------- writing


class PendingFile(Protocol):
    """A file under a temporary name in the destination's directory, to be filled by whoever asked for `LocalPath`."""

    kind: ClassVar[Kind] = Kind.LOCAL_PATH
    path: Path

    async def commit(self) -> ObjectInfo:
        """fsync the file, rename it to its name, fsync the directory. Durable when it returns.
        `AlreadyExists` if the name was taken meanwhile and this write was not told to replace."""
        ...


class PendingStream(Protocol):
    """An object being sent in order: by `write` from memory that the caller has, or read straight into the store's."""

    kind: ClassVar[Kind] = Kind.BYTE_STREAM

    def rereads(self, source: RangeReader) -> None:
        """What will be given, from the first byte on, is all of `source`, which can be read until all was given: a store that
        needs some of it twice, and has no memory to keep it, reads it there. Before the first byte, or never."""
        ...

    async def write(self, data: memoryview) -> None:
        """Takes `data` in order, behind all rooms, which are filled; the buffer may be reused when this returns."""
        ...

    async def room(self, most: int) -> memoryview:
        """Memory for the next bytes, behind those of earlier rooms: at least one byte, and at most `most`, which the object
        has for certain. It is the caller's until it is `filled`, or the context ends: nobody writes into it afterwards.

        Many may be out at once. Waits where the store can give no more before earlier ones are filled, so that this and
        `filled` are for different tasks, or for one room at a time.
        """
        ...

    async def filled(self, room: memoryview) -> None:
        """All of `room`, the earliest that is out, holds the object's bytes. Of an object whose size is known the last one may
        take as long as all of it takes to the store, so that the commit, which is not interrupted, does not."""
        ...

    async def commit(self) -> ObjectInfo:
        """Finish; returns only after the store confirmed size and checksum. Never before: stored means stored. A room that
        was not filled is no part of the object."""
        ...


class PendingCopy(Protocol):
    """An object that the store has made of another one, and that nobody sees yet."""

    async def commit(self) -> ObjectInfo:
        """Durable when it returns. `AlreadyExists` if the name was taken meanwhile and this copy was not told to replace."""
        ...


class PendingDisk(Protocol):
    """A disk of the hypervisor's own, to be made, in one of two ways, and then filled by whoever asked for `ManagedDisk`."""

    kind: ClassVar[Kind] = Kind.MANAGED_DISK

    async def make(self, size: int) -> ManagedDisk:
        """An empty disk of at least `size` bytes, which reads as zeroes."""
        ...

    async def derive(self, disk: ManagedDisk, *, frozen: bool) -> ManagedDisk:
        """A disk with the content that `disk` has now, sharing its blocks: one that nobody writes to (`frozen`), or a clone."""
        ...

    async def commit(self) -> ObjectInfo:
        """Gives the disk its name. Durable when it returns. `AlreadyExists` if the name was taken meanwhile and this write was
        not told to replace; else the disk that had the name is gone, and what is known of it is known of this one."""
        ...


class PendingImage(Protocol):
    """A disk of raw bytes that is no file, to be made, in one of two ways, and then filled by whoever asked for one of
    `DEVICES`."""

    @property
    def kind(self) -> Kind: ...

    @property
    def blank(self) -> bool:
        """Whether all of it reads as zeroes when it was made; else it may hold anything."""
        ...

    async def make(self, size: int) -> NetworkImage:
        """Of at least `size` bytes. `StoreUnsupported` where disks are made elsewhere and this one is smaller."""
        ...

    async def derive(self, image: NetworkImage, tag: str | None) -> NetworkImage:
        """With the content that `image` of the same store has now, or has in its snapshot `tag`, sharing its blocks.
        `StoreUnsupported` where the storage cannot: then the bytes go by `make`."""
        ...

    async def commit(self) -> ObjectInfo:
        """Gives the disk its name. Durable when it returns. `AlreadyExists` if the name was taken meanwhile and this write was
        not told to replace; else the disk that had the name is gone."""
        ...


PendingWrite: TypeAlias = PendingFile | PendingStream | PendingDisk | PendingImage


class PendingUpload(Protocol):
    """An object being sent from a local file, in parts and in any order. What was sent outlives this process."""

    kind: ClassVar[Kind] = Kind.UPLOAD
    parts: int
    """How many there are, numbered from 1."""
    parallel: int
    """How many are worth sending at once."""

    def length(self, number: int) -> int:
        """Bytes of that part."""
        ...

    async def send(self, number: int) -> bool:
        """The store has confirmed that part when this returns. False where it had the part already, from an earlier try, and
        its checksum is that of the file: then nothing was sent. Idempotent."""
        ...

    async def commit(self) -> ObjectInfo:
        """Every part was sent; makes them the object. Returns only after the store confirmed size and checksum. Idempotent,
        also over processes: succeeds where an earlier commit was carried out and its answer lost."""
        ...


# ------------------------------------------------------------------------------------------------------ store


class DataStore(abc.ABC):
    """Where objects live. Implementations: `stores/backends/`. Wrappers (`stores/wrappers/`) are stores around stores.

    `ref` names an object inside the store: a relative path or key without a leading slash. Constructors open nothing;
    the first call does. All methods may be cancelled and then leave nothing behind.
    """

    id: str
    """Stable identity across restarts and hosts, free of secrets: the first part of lock names and cache keys."""

    writes: frozenset[Kind] = frozenset()
    """The ways in which this store can be written."""

    given: bool = False
    """Whether its disks are made and removed elsewhere, and are there before anything of ours is in them: what they hold is
    known by our records alone."""

    @abc.abstractmethod
    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        """Presentations of that object; with None, of objects in general (used where nothing may be contacted)."""

    def network(self, ref: str) -> NetworkDisk | None:
        """Where virtual machines find that disk on the network, but not by which secret; None where they do not. Contacts
        nothing, and so tells machines' disks apart while the storage cannot be reached."""
        return None

    @abc.abstractmethod
    async def stat(self, ref: str) -> ObjectInfo:
        """`NotFound` if there is no such object."""

    @abc.abstractmethod
    def present(self, info: ObjectInfo, kind: Kind) -> AbstractAsyncContextManager[Presentation]:
        """The object in that form, pinned to `info.version`, until the context ends. Only kinds from `offers(info)`."""

    def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AbstractAsyncContextManager[PendingWrite]:
        """A new object that becomes visible at `commit`, as a whole, or not at all: leaving the context without commit
        removes what was written. `token` names the writer (a command id); `discard` finds a dead writer's leftovers by it.
        `size` is the final size where known. `AlreadyExists` if `ref` is taken, unless `replace`: then the new object takes
        its place in one step."""
        raise self._unsupported("write")

    def upload(
        self, ref: str, source: Path, *, token: str, replace: bool = False
    ) -> AbstractAsyncContextManager[PendingUpload]:
        """As `write`, but sends the file `source`, which nobody changes meanwhile, and may be gone on with: what an earlier
        process sent with the same `token` counts, once it is verified. Leaving the context without commit keeps what was
        sent in the store, invisible, until `discard` removes it. Only where `writes` has `Kind.UPLOAD`."""
        raise self._unsupported("upload")

    def copy(
        self, source: ObjectInfo, ref: str, *, token: str, replace: bool = False
    ) -> AbstractAsyncContextManager[PendingCopy]:
        """As `write`, of what has the content of `source` when the context begins. This store holds `source`, which has to be
        unchanged, and makes the copy itself: no byte comes here. `StoreUnsupported` where it cannot do that: then the bytes
        go by `present` and `write`."""
        raise self._unsupported("copying by itself")

    async def discard(self, ref: str, *, token: str) -> None:
        """Remove what an interrupted `write(ref, token=...)` or `upload` of a process that is gone left behind. Idempotent.
        Touches nothing that is not provably of that write."""

    async def delete(self, ref: str) -> None:
        """Idempotent: a missing object is success."""
        raise self._unsupported("delete")

    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Every object whose ref starts with `prefix` as a whole path component, in order of ref."""
        raise self._unsupported("list")

    async def usage(self) -> Usage:
        raise self._unsupported("usage")

    async def let_go(self) -> None:
        """This host shall not use the store any more: what was done to reach it, a mount perhaps, is undone. What is in it
        stays. Idempotent."""

    async def aclose(self) -> None:
        """Give back connections. Idempotent."""

    def _unsupported(self, what: str) -> Exception:
        return StoreUnsupported(f"store {self.id} does not support {what}", store=self.id, operation=what)


class Progress(Protocol):
    """Where long work says how far it is. Never blocks, never raises."""

    def phase(self, name: str, total: int | None = None) -> None:
        """A new phase begins; `total` bytes are expected in it."""
        ...

    def advance(self, count: int) -> None:
        """`count` more bytes of the present phase are done."""
        ...


class Silent:
    """Progress for callers who do not look."""

    def phase(self, name: str, total: int | None = None) -> None: ...

    def advance(self, count: int) -> None: ...
