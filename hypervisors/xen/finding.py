"""Which storage repository of which pool a primary store is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hypervisors.xen.errors import HANDLE_INVALID, XapiFailure
from hypervisors.xen.pool import XenPool
from hypervisors.xen.repository import Repository
from stores.errors import InvalidReference, NotFound, StorageError


class Finder:
    """The SR that a primary store's `name` means, in one of several pools: by its uuid, else by its name, as CloudStack names
    them."""

    def __init__(self, name: str, pools: Sequence[XenPool]) -> None:
        self.name = name
        self._pools = pools
        self._found: Repository | None = None
        self._turn = asyncio.Lock()

    async def found(self) -> Repository:
        """`NotFound` says which there are; `InvalidReference` if several have that name. A pool that cannot be asked is an
        error only where no other has it."""
        async with self._turn:
            if self._found is None or not await self._is_there(self._found):
                self._found = await self._find()
            return self._found

    async def _is_there(self, sr: Repository) -> bool:
        """Whether XAPI still knows it by that reference: with an SR that was introduced anew, no VDI would be in it."""
        try:
            return str(await sr.pool.call("SR.get_uuid", sr.handle)) == sr.uuid
        except XapiFailure as problem:
            if problem.code != HANDLE_INVALID:
                raise
            return False

    def forget(self) -> None:
        self._found = None

    async def _find(self) -> Repository:
        problem: StorageError | None = None
        others: list[str] = []
        for pool in self._pools:
            try:
                known: dict[str, dict[str, Any]] = await pool.call("SR.get_all_records")
            except StorageError as error:
                problem = error
                continue
            for wanted in ("uuid", "name_label"):
                named = [handle for handle, record in known.items() if record[wanted] == self.name]
                if len(named) > 1:
                    raise InvalidReference(
                        f"{len(named)} SRs of pool {pool.settings.name} are called {self.name}; name the one by its uuid",
                        seen=[known[handle]["uuid"] for handle in named],
                    )
                for handle in named:
                    return Repository.of(pool, handle, known[handle])
            others += [f"{record['name_label']} ({record['uuid']})" for record in known.values()]
        if problem is not None:
            raise problem
        raise NotFound(
            f"no configured pool has an SR with the uuid or name {self.name}; there are: {', '.join(sorted(others)) or 'none'}",
            sr=self.name,
        )
