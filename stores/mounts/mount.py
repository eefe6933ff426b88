"""One export at one directory: mounted when somebody needs it, asked whether it answers before it is used, counted while it is.

A server that does not answer costs whoever needs the mount a refusal in bounded time, and nobody else anything: every call that
could hang is made in threads of the mount's own, which can be left behind (`stores.touches`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from stores.errors import DeviceFault, StorageError, Unavailable
from stores.mounts.export import Export
from stores.mounts.table import Mounted, read
from stores.os_errors import translate
from stores.touches import Touches

P = ParamSpec("P")
T = TypeVar("T")

PROBE_S = 5.0
"""How long a server has to answer."""
TRUST_S = 2.0
"""How long an answer counts, and how long its absence does."""
CALL_S = 300.0
"""How long a call on a mount may take whose server answers: fsync of a large file over a slow line."""
THREADS = 8
ENOUGH = 4
"""So many calls that hang say more than one more probe, which would hang as well."""


class MountHangs(Unavailable):
    """The server of a mount does not answer. Whoever needs the mount is refused; nothing else is held up. Details: `directory`,
    `export`."""


class MountInUse(Unavailable):
    """The mount stays: commands, or programs such as a guest's, have files on it open. Details: `directory`."""


class MountFailed(Unavailable):
    """The export could not be mounted, or not be unmounted. Details: `directory`, `export`."""


class Mounter(Protocol):
    """Who may mount. Both calls end in bounded time and raise errors of `stores.errors`."""

    async def mount(self, export: Export, at: Path) -> None:
        """The export is mounted at the directory, which is made where it is missing. Durable until the host restarts."""
        ...

    async def unmount(self, at: Path) -> None:
        """Nothing is mounted there any more, and the directory is gone if it was empty. `MountInUse`."""
        ...


class Mount:
    """See the module. `table` tells what is mounted, `clock` seconds that only grow."""

    def __init__(
        self,
        export: Export,
        at: Path,
        mounter: Mounter,
        *,
        table: Callable[[], Mapping[Path, Mounted]] = read,
        clock: Callable[[], float] = time.monotonic,
        probe: Callable[[Path], object] = os.statvfs,
        probe_s: float = PROBE_S,
    ) -> None:
        self.export = export
        self.at = at
        self.users = 0
        self.made = False  # by this process
        self.idle_since = clock()
        self._mounter = mounter
        self._table = table
        self._clock = clock
        self._probe = probe
        self._probe_s = probe_s
        self._lock = asyncio.Lock()
        self._touches = Touches(f"mount-{at.name}", THREADS, late=self._hangs)
        self._judged_until = -1.0
        self._judgement: StorageError | None = None

    @property
    def hanging(self) -> int:
        """Threads that are stuck in it: at most `THREADS`."""
        return self._touches.hanging

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        """Mounted, and its server answers; nobody unmounts it before the context ends.

        `MountHangs` within `PROBE_S`; whatever the `Mounter` raises; `DeviceFault` where something else is mounted there, or
        where the server has forgotten the export (ESTALE) and a new mount does not help.
        """
        self.users += 1  # from now on, so that nobody unmounts what is just being mounted
        try:
            await self._usable()
            yield
        finally:
            self.users -= 1
            self.idle_since = self._clock()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A blocking call on the mount, in a thread of its own. `MountHangs` as soon as the server is found silent while it
        runs: the call is left behind then. When cancelled, it is waited for as long as the server answers."""
        return await self._touches.run(partial(function, *args, **kwargs), deadline_s=CALL_S, still=self._answers)

    async def release(self) -> None:
        """Unmount what is mounted of this export. Idempotent. `MountInUse` while somebody uses it."""
        async with self._lock:
            if self.users:
                raise MountInUse(
                    f"{self.at} is in use by {self.users} commands; try again when they have ended",
                    directory=str(self.at),
                )
            found = self._table().get(self.at)
            if found is not None and found.source == self.export.source:
                self._judged_until = -1.0
                await self._mounter.unmount(self.at)
                self.made = False

    def close(self) -> None:
        """Ends the threads that do not hang. What is mounted stays."""
        self._touches.close()

    async def _usable(self) -> None:
        async with self._lock:
            if self._clock() >= self._judged_until:
                self._judgement = await self._judged()
                self._judged_until = self._clock() + TRUST_S
            if self._judgement is not None:
                raise self._judgement

    async def _judged(self) -> StorageError | None:
        """Why it cannot be used; None when it can."""
        try:
            await self._mounted()
            try:
                await self._ask()
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
                await self._mounter.unmount(
                    self.at
                )  # once: the server has forgotten what we hold, and may know it anew
                await self._mounted()
                await self._ask()
        except OSError as error:
            return translate(error, f"the mount {self.at}", directory=str(self.at), export=self.export.source)
        except StorageError as error:
            return error
        return None

    async def _mounted(self) -> None:
        found = self._table().get(self.at)
        if found is None:
            await self._mounter.mount(self.export, self.at)
            self.made = True
        elif found.source != self.export.source:
            raise DeviceFault(
                f"{self.at} is needed for {self.export.source}, and {found.source} is mounted there; unmount that first",
                directory=str(self.at),
                export=self.export.source,
                found=found.source,
            )

    async def _ask(self) -> None:
        """`OSError` as statvfs(3) has it: NFS asks the server each time."""
        if self.hanging >= ENOUGH:
            raise self._hangs(f"{self.hanging} calls hang in it")
        await self._touches.run(partial(self._probe, self.at), deadline_s=self._probe_s)

    async def _answers(self) -> None:
        """`MountHangs`; any other answer is one."""
        with suppress(OSError):
            await self._ask()

    def _hangs(self, what: str) -> MountHangs:
        return MountHangs(
            f"{self.export.source}, mounted at {self.at}, does not answer ({what}); see whether its server is up",
            directory=str(self.at),
            export=self.export.source,
        )
