"""One image of an RBD pool: what its storage does by itself, and how a new one comes to be."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from stores.backends.rbd_cluster import Cluster
from stores.contract import Kind, NetworkImage, ObjectInfo, StorageSide
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
    """Also one that does not have its name yet. `user`: as whom `cluster` was entered."""

    snapshots = True

    def __init__(self, cluster: Cluster, user: str, name: str, info: ObjectInfo) -> None:
        self.name = name
        self._cluster = cluster
        self._user = user
        self._info = info

    def presented(self, tag: str | None = None) -> NetworkImage:
        """qemu reads user and key from the same files as the tools."""
        options: dict[str, object] = {
            "driver": "rbd",
            "pool": self._cluster.pool,
            "image": self.name,
            "conf": str(self._cluster.conf),
            "user": self._user,
            **({"snapshot": tag} if tag is not None else {}),
        }
        return NetworkImage(options, self._info, Kind.RBD_IMAGE, storage=self)

    async def used(self) -> int | None:
        found = await self._asked("du", self._spec())
        return sum(int(each["used_size"]) for each in found["images"])

    async def in_use(self) -> bool:
        return bool((await self._asked("status", self._spec()))["watchers"])

    async def resize(self, size: int) -> None:
        await self._rbd("resize", "--no-progress", "--allow-shrink", "--size", f"{size}B", self._spec())

    # --------------------------------------------------------------------------------------------------- snapshots

    async def tags(self) -> frozenset[str]:
        return frozenset(each["name"] for each in await self._asked("snap", "ls", self._spec()))

    async def freeze(self, tag: str) -> None:
        try:
            await uninterrupted(self._rbd("snap", "create", "--no-progress", self._spec(tag)))
        except AlreadyExists:
            return  # an earlier try made it

    async def forget(self, tag: str) -> None:
        """Images that share its blocks get them for themselves before."""
        found = await self._snapshot(tag)
        if found is None:
            return
        if found.get("protected") == "true":
            for child in await self._asked("children", self._spec(tag)):
                spec = f"{child['pool']}/{child['image']}"
                await self._rbd("flatten", "--no-progress", spec, long=True)
            await self._rbd("snap", "unprotect", self._spec(tag))
        await uninterrupted(self._rbd("snap", "rm", "--no-progress", self._spec(tag), long=True))

    async def rewind(self, tag: str) -> None:
        await uninterrupted(self._rbd("snap", "rollback", "--no-progress", self._spec(tag), long=True))

    def frozen(self, tag: str) -> NetworkImage:
        return self.presented(tag)

    async def changed(self, since: str, until: str | None) -> Sequence[tuple[int, int]]:
        found = await self._asked("diff", "--from-snap", since, self._spec(until), long=True)
        return [(int(each["offset"]), int(each["length"])) for each in found]

    # ------------------------------------------------------------------------------------------------------- clones

    async def cloned(self, tag: str | None, name: str) -> None:
        """A clone called `name` of what the image is now, or was at `tag`."""
        base = tag if tag is not None else await self._moment()
        found = await self._snapshot(base)
        if found is None:
            raise NotFound(f"{self._info.ref} has no snapshot {base}", ref=self._info.ref)
        if found.get("protected") != "true":
            await self._rbd("snap", "protect", self._spec(base))
        await uninterrupted(self._rbd("clone", self._spec(base), self._cluster.spec(name)))

    async def remove(self) -> None:
        """With its snapshots; idempotent."""
        try:
            if await self.in_use():
                raise Unavailable(f"{self._info.ref} is in use; detach it first, or wait", ref=self._info.ref)
            for tag in sorted(await self.tags()):
                await self.forget(tag)
            await uninterrupted(self._rbd("rm", "--no-progress", self._spec(), long=True))
        except NotFound:
            return

    async def abandon(self) -> None:
        """The same of an image that has no name yet: a tool of ours that was killed still counts as using it for a while
        (osd_client_watch_timeout), unless the cluster is told that it is gone."""
        try:
            watchers = (await self._asked("status", self._spec()))["watchers"]
            for watcher in watchers:
                await self._cluster.shut_out(str(watcher["address"]))
            await uninterrupted(self._rbd("rm", "--no-progress", self._spec(), long=True))
        except NotFound:
            return

    async def _moment(self) -> str:
        """A snapshot of what the image is now: the last one that clones were made from, where nothing was written since."""
        made = sorted(tag for tag in await self.tags() if tag.startswith(_LINKED))
        if made and not await self._asked("diff", "--whole-object", "--from-snap", made[-1], self._spec(), long=True):
            return made[-1]
        tag = f"{_LINKED}{len(made):06}"
        await self.freeze(tag)
        return tag

    async def _snapshot(self, tag: str) -> dict[str, Any] | None:
        found: list[dict[str, Any]] = await self._asked("snap", "ls", self._spec())
        return next((each for each in found if each["name"] == tag), None)

    def _spec(self, tag: str | None = None) -> str:
        return self._cluster.spec(self.name, tag)

    async def _rbd(self, *argv: str, long: bool = False) -> bytes:
        return await self._cluster.rbd(*argv, ref=self._info.ref, long=long)

    async def _asked(self, *argv: str, long: bool = False) -> Any:
        return await self._cluster.asked(*argv, ref=self._info.ref, long=long)


class PendingRbdImage:
    kind: ClassVar[Kind] = Kind.RBD_IMAGE
    blank = True

    def __init__(self, cluster: Cluster, user: str, ref: str, *, token: str, replace: bool) -> None:
        self._cluster = cluster
        self._user = user
        self._ref = ref
        self._replace = replace
        self._made: RbdImage | None = None
        self._name = unfinished_name(ref, token)

    async def make(self, size: int) -> NetworkImage:
        image = await self._begin(size)
        await uninterrupted(
            self._cluster.rbd("create", "--size", f"{size}B", self._cluster.spec(self._name), ref=self._ref)
        )
        return image.presented()

    async def derive(self, image: NetworkImage, tag: str | None) -> NetworkImage:
        made, info = await self._begin(None), image.info
        source = RbdImage(self._cluster, self._user, name_of(info.ref), info)
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
        self._made = RbdImage(self._cluster, self._user, self._name, ObjectInfo(self._ref, size))
        await self._made.abandon()  # what an earlier try left
        return self._made

    async def _commit(self, made: RbdImage) -> ObjectInfo:
        target = self._cluster.spec(name_of(self._ref))
        try:
            await self._cluster.rbd("rename", self._cluster.spec(made.name), target, ref=self._ref)
        except AlreadyExists as error:
            if not self._replace:
                raise
            raise StoreUnsupported(
                f"an image of RBD does not take the place of another in one step: delete {self._ref} before",
                ref=self._ref,
            ) from error
        self._made = None
        found = await self._cluster.asked("info", target, ref=self._ref)
        return ObjectInfo(self._ref, int(found["size"]), version=found["id"])
