"""All mounts of this agent, by their directories below one root.

A pool stays mounted until it is deleted: guests have its volumes open. An image store is mounted while commands use it, and for
a while longer. What an earlier process mounted is taken over where it is needed, and unmounted where nobody wants it.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import structlog

from stores.errors import StorageError
from stores.mounts.export import Export, allowed, export
from stores.mounts.mount import Mount, Mounter, MountInUse
from stores.mounts.table import Mounted, read

LINGER_S = 300.0
PACE_S = 30.0
_OURS = re.compile(r"nfs-[0-9a-f]{16}")
"""Names of the directories of image stores."""
_log = structlog.get_logger(__name__)


class Mounts:
    """One per process. `options` come before those of a command, `exports` are the ones that may be mounted (empty: all)."""

    def __init__(
        self,
        mounter: Mounter,
        root: Path,
        *,
        options: Sequence[str] = (),
        exports: Sequence[str] = (),
        table: Callable[[], Mapping[Path, Mounted]] = read,
        clock: Callable[[], float] = time.monotonic,
        probe: Callable[[Path], object] = os.statvfs,
        linger_s: float = LINGER_S,
    ) -> None:
        self._mounter = mounter
        self._root = root
        self._options = tuple(options)
        self._exports = tuple(exports)
        self._table = table
        self._clock = clock
        self._probe = probe
        self._linger_s = linger_s
        self._pools: dict[Path, Mount] = {}
        self._images: dict[Path, Mount] = {}
        self._strays: dict[Path, float] = {}  # mounted by an earlier process, and since when that is known

    def pool(self, uuid: str, host: str, path: str, options: Sequence[str] = ()) -> Mount:
        """The mount of a pool. Contacts nothing. Raises as `export` and `allowed`."""
        wanted = export(host, path, (*self._options, *options))
        allowed(wanted, self._exports)
        at = self._root / uuid
        known = self._pools.get(at)
        if known is None or known.export != wanted:
            if known is not None:
                known.close()
            known = self._pools[at] = self._mount(wanted, at)
        return known

    def image_store(self, host: str, path: str, options: Sequence[str] = ()) -> Mount:
        """The same of an image store, below a name that is its export's."""
        wanted = export(host, path, (*self._options, *options))
        allowed(wanted, self._exports)
        at = self._root / wanted.name
        if at not in self._images:
            self._images[at] = self._mount(wanted, at)
        return self._images[at]

    @property
    def hanging(self) -> Mapping[str, int]:
        """Calls that hang now, by directory; at most `THREADS` of each."""
        return {str(mount.at): mount.hanging for mount in self._known() if mount.hanging}

    async def run(self, *, pace_s: float = PACE_S) -> None:
        """`tidy` again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(pace_s)
            await self.tidy()

    async def tidy(self) -> None:
        """Unmounts image stores that nobody has used for so long. What cannot be unmounted stays, and is tried again."""
        now, table = self._clock(), self._table()
        for at, mount in list(self._images.items()):
            if at in table and not mount.users and now - mount.idle_since >= self._linger_s:
                await self._quietly(mount.release(), at)
        strays = {at for at, found in table.items() if self._is_stray(at, found)}
        self._strays = {at: self._strays.get(at, now) for at in strays}
        for at, since in self._strays.items():
            if now - since >= self._linger_s:
                await self._quietly(self._mounter.unmount(at), at)

    async def undo(self) -> None:
        """Unmounts what this process has mounted: for one that only looks, and ends."""
        for mount in self._known():
            if mount.made:
                await self._quietly(mount.release(), mount.at)

    def close(self) -> None:
        """Ends threads, but for those that hang. Everything stays mounted."""
        for mount in self._known():
            mount.close()

    def _mount(self, wanted: Export, at: Path) -> Mount:
        return Mount(wanted, at, self._mounter, table=self._table, clock=self._clock, probe=self._probe)

    async def _quietly(self, unmounting: Awaitable[None], at: Path) -> None:
        try:
            await unmounting
        except MountInUse:
            pass  # a guest reads an ISO there
        except StorageError as error:
            _log.warning("not unmounted", directory=str(at), error=error.message)

    def _is_stray(self, at: Path, found: Mounted) -> bool:
        return (
            at.parent == self._root
            and _OURS.fullmatch(at.name) is not None
            and found.type.startswith("nfs")
            and at not in self._images
        )

    def _known(self) -> Sequence[Mount]:
        return [*self._pools.values(), *self._images.values()]
