"""Volumes are active while somebody here uses them.

Where one host alone has the group, they stay so: a guest that starts later finds its disk, and the host itself activates all
of them when it starts. Where hosts share the group, a volume is this host's alone while it is active, and is let go of when the
last use of it ends; unless a guest has it open by then, whose it stays.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from stores.backends.lvm_calls import Lvm
from stores.errors import NotFound, Unavailable
from stores.uninterrupted import uninterrupted


class Activation:
    """Of one volume group. `shared`: by hosts."""

    def __init__(self, lvm: Lvm, *, shared: bool) -> None:
        self._lvm = lvm
        self._shared = shared
        self._uses: Counter[str] = Counter()
        self._turn = asyncio.Lock()

    def uses(self, name: str) -> int:
        """How many contexts there are in which it is active."""
        return self._uses[name]

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[Path]:
        """The volume's device. `Unavailable` while another host has it."""
        self._uses[name] += 1
        try:
            async with self._turn:
                device = await self._lvm.activate(name)
            yield device
        finally:
            await uninterrupted(self._used(name))

    async def _used(self, name: str) -> None:
        async with self._turn:
            self._uses -= Counter((name,))
            if self._shared and not self._uses[name]:
                with suppress(Unavailable, NotFound):  # open by a guest, or removed and renamed meanwhile
                    await self._lvm.deactivate(name)
