"""One image of an RBD pool: what its storage does by itself, and how a new one comes to be."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from stores.backends.rbd_cluster import Cluster
from stores.backends.rbd_place import RbdLogin
from stores.contract import Kind, NetworkDisk, NetworkImage, ObjectInfo, StorageSide
from stores.errors import AlreadyExists, NotFound, StoreUnsupported, Unavailable
from stores.uninterrupted import uninterrupted

UNFINISHED = "+"
"""What names of images that are being written begin with. No other image of ours is called so: it is quoted in refs."""

_LINKED = "linked-"
"""What snapshots are called that clones of an image as it was at that moment are made from."""


def name_of(ref: str) -> str:
    """An image's name in its pool. Those of CloudStack's images are as they are; `/` and `@` would have a meaning."""
    return quote(ref, safe="")


def unfinished_name(ref: str, token: str) -> str:
    return UNFINISHED + hashlib.sha256(f"{ref}\0{token}".encode()).hexdigest()[:32]


class RbdImage(StorageSide):
    """Also one that does not have its name yet. `login`: as whom `cluster` was entered."""

    snapshots = True

    def __init__(self, cluster: Cluster, login: RbdLogin, name: str, info: ObjectInfo) -> None:
        self.name = name
        self._cluster = cluster
        self._login = login
        self._info = info

    def presented(self, tag: str | None = None) -> NetworkImage:
        """qemu reads user and key from the same files as the tools."""
        options: dict[str, object] = {
            "driver": "rbd",
            "pool": self._cluster.pool,
            "image": self.name,
            "conf": str(self._cluster.conf),
            "user": self._login.user,
            **({"snapshot": tag} if tag is not None else {}),
        }
        return NetworkImage(
            options, self._info, Kind.RBD_IMAGE, storage=self, network=self._network() if tag is None else None
        )

    async def size(self) -> int:
        size: int = (await self._call("info"))["size"]
        return size

    async def used(self) -> int:
        used: int = await self._call("used")
        return used

    async def in_use(self) -> bool:
        return bool(await self._call("watchers"))

    async def resize(self, size: int) -> None:
        await self._call("resize", size=size)

    # --------------------------------------------------------------------------------------------------- snapshots

    async def tags(self) -> frozenset[str]:
        return frozenset(await self._call("tags"))

    async def freeze(self, tag: str) -> None:
        try:
            await uninterrupted(self._call("freeze", tag=tag))
        except AlreadyExists:
            return  # an earlier try made it

    async def forget(self, tag: str) -> None:
        """Images that share its blocks get them for themselves before."""
        await self._call("unshare", tag=tag, long=True)
        await uninterrupted(self._call("forget", tag=tag, long=True))

    async def rewind(self, tag: str) -> None:
        await uninterrupted(self._call("rewind", tag=tag, long=True))

    def frozen(self, tag: str) -> NetworkImage:
        return self.presented(tag)

    async def changed(self, since: str, until: str | None) -> Sequence[tuple[int, int]]:
        found = await self._call("changed", since=since, until=until, long=True)
        return [(offset, length) for offset, length in found]

    # ------------------------------------------------------------------------------------------------------- clones

    async def cloned(self, tag: str | None, name: str) -> None:
        """A clone called `name` of what the image is now, or was at `tag`."""
        base = tag if tag is not None else await self._moment()
        await uninterrupted(self._call("clone", tag=base, to=name))

    async def remove(self) -> None:
        """With its snapshots; idempotent."""
        try:
            if await self.in_use():
                raise Unavailable(f"{self._info.ref} is in use; detach it first, or wait", ref=self._info.ref)
            for tag in sorted(await self.tags()):
                await self.forget(tag)
            await uninterrupted(self._call("remove", long=True))
        except NotFound:
            return

    async def abandon(self) -> None:
        """The same of an image that has no name yet: a process of ours that was killed still counts as using it for a while
        (osd_client_watch_timeout), unless the cluster is told that it is gone."""
        try:
            for address in await self._call("watchers"):
                await self._cluster.call("shut_out", address=address, ref=self._info.ref)
            await uninterrupted(self._call("remove", long=True))
        except NotFound:
            return

    async def _moment(self) -> str:
        """A snapshot of what the image is now: the last one that clones were made from, where nothing was written since."""
        made = sorted(tag for tag in await self.tags() if tag.startswith(_LINKED))
        if made and not await self._call("is_changed", since=made[-1], long=True):
            return made[-1]
        tag = f"{_LINKED}{len(made):06}"
        await self.freeze(tag)
        return tag

    def _network(self) -> NetworkDisk:
        cluster, login = self._cluster, self._login
        return NetworkDisk("rbd", f"{cluster.pool}/{self.name}", cluster.hosts, login.user, login.key)

    async def _call(self, name: str, *, long: bool = False, **arguments: object) -> Any:
        return await self._cluster.call(name, image=self.name, ref=self._info.ref, long=long, **arguments)


class PendingRbdImage:
    kind: ClassVar[Kind] = Kind.RBD_IMAGE
    blank = True

    def __init__(self, cluster: Cluster, login: RbdLogin, ref: str, *, token: str, replace: bool) -> None:
        self._cluster = cluster
        self._login = login
        self._ref = ref
        self._replace = replace
        self._made: RbdImage | None = None
        self._name = unfinished_name(ref, token)

    async def make(self, size: int) -> NetworkImage:
        image = await self._begin(size)
        await uninterrupted(self._cluster.call("create", image=self._name, size=size, ref=self._ref))
        return image.presented()

    async def derive(self, image: NetworkImage, tag: str | None) -> NetworkImage:
        made, info = await self._begin(None), image.info
        source = RbdImage(self._cluster, self._login, name_of(info.ref), info)
        await source.cloned(tag, self._name)
        return made.presented()

    async def commit(self) -> ObjectInfo:
        if self._made is None:
            raise ValueError(f"nothing was made for {self._ref}")
        return await uninterrupted(self._commit(self._made))

    async def leave(self) -> None:
        """Removes it unless it was committed."""
        if self._made is not None:
            await self._made.abandon()

    async def _begin(self, size: int | None) -> RbdImage:
        self._made = RbdImage(self._cluster, self._login, self._name, ObjectInfo(self._ref, size))
        await self._made.abandon()  # what an earlier try left
        return self._made

    async def _commit(self, made: RbdImage) -> ObjectInfo:
        try:
            found = await self._cluster.call("rename", image=made.name, to=name_of(self._ref), ref=self._ref)
        except AlreadyExists as error:
            if not self._replace:
                raise
            raise StoreUnsupported(
                f"an image of RBD does not take the place of another in one step: delete {self._ref} before",
                ref=self._ref,
            ) from error
        self._made = None
        return ObjectInfo(self._ref, found["size"], version=found["id"])
