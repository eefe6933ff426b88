"""The connection to one pool of hosts: everything that calls, waits and transfers, opened when it is first needed."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from hypervisors.contract import HostPool
from hypervisors.xen.config import XenPoolSettings
from hypervisors.xen.events import TaskWaiter, watching
from hypervisors.xen.hosts import Trust
from hypervisors.xen.session import PoolClient
from hypervisors.xen.streams import DiskStreams
from hypervisors.xen.wire import Patience
from hypervisors.xen.xapi import Xapi
from stores.errors import Unavailable
from stores.transfer.threads import Threads

_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Connection:
    client: PoolClient
    tasks: TaskWaiter
    streams: DiskStreams


@dataclass(frozen=True, slots=True)
class _Kept:
    """A connection, and the task that has it open until `closing` is set."""

    keeper: asyncio.Task[None]
    opened: asyncio.Future[Connection]
    closing: asyncio.Event


class XenPool:
    """Any number of tasks may use it. `aclose` logs out; what is called later opens it again.

    `life` names this process: tasks of the same originator and another life are those of a dead one. `clock` gives seconds
    since the epoch, `fresh` names that are unique everywhere.
    """

    def __init__(
        self,
        settings: XenPoolSettings,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        fresh: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.sleep = sleep
        self.fresh = fresh
        self.life = fresh()
        self.busy: set[str] = set()
        """What this process is about: ids of locks and of disks that are being made. All others of our originator are a dead
        process's."""
        self._kept: _Kept | None = None

    @property
    def task_label(self) -> str:
        """The name of this process's tasks; those of all processes of this originator begin alike."""
        return f"{self.task_prefix}{self.life}"

    @property
    def task_prefix(self) -> str:
        return f"storage-agent {self.settings.originator} "

    @property
    def found(self) -> HostPool:
        """As its hosts were found last."""
        opened = self._kept.opened if self._kept is not None else None
        if opened is None or not opened.done() or opened.exception() is not None:
            return HostPool(self.settings.name, None, None)
        client = opened.result().client
        coordinator, problem = client.coordinator, client.problem
        return HostPool(
            self.settings.name,
            str(coordinator) if coordinator is not None else None,
            problem.message if problem is not None else None,
        )

    async def connection(self) -> Connection:
        """`TlsFailed` where the CA file cannot be read. Nothing is said to any host by this alone."""
        if self._kept is None or self._kept.keeper.done():
            opened = asyncio.get_running_loop().create_future()
            closing = asyncio.Event()
            keeper = asyncio.create_task(self._keep(opened, closing), name=f"xen pool {self.settings.name}")
            self._kept = _Kept(keeper, opened, closing)
        return await asyncio.shield(self._kept.opened)

    async def call(self, method: str, *params: Any) -> Any:
        """As `PoolClient.call`."""
        return await (await self.connection()).client.call(method, *params)

    async def surely(self, method: str, *params: Any) -> Any:
        """As `call`, for what may be done twice: made again while nobody knows whether it was."""
        for attempt in range(1, _ATTEMPTS):
            try:
                return await self.call(method, *params)
            except Unavailable:
                await self.sleep(attempt * self.settings.pause_s)
        return await self.call(method, *params)

    async def aclose(self) -> None:
        """Idempotent. Whatever is under way fails."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.closing.set()
            await asyncio.wait([kept.keeper])

    async def _keep(self, opened: asyncio.Future[Connection], closing: asyncio.Event) -> None:
        told = self.settings
        try:
            trust = await _trust(told)
            async with (
                Xapi(trust, connect_timeout_s=told.connect_timeout_s) as xapi,
                PoolClient(
                    xapi,
                    told.hosts,
                    told.user,
                    told.password,
                    originator=told.originator,
                    timeout_s=told.call_timeout_s,
                    pause_s=told.pause_s,
                    sleep=self.sleep,
                ) as client,
                watching(client, pause_s=told.pause_s, sleep=self.sleep) as tasks,
            ):
                patience = Patience(told.connect_timeout_s, told.head_timeout_s, told.stall_timeout_s)
                streams = DiskStreams(
                    client, tasks, trust, label=self.task_label, patience=patience, grace_s=told.grace_s
                )
                opened.set_result(Connection(client, tasks, streams))
                await closing.wait()
        except Exception as error:
            if opened.done():
                raise
            opened.set_exception(error)


async def _trust(settings: XenPoolSettings) -> Trust:
    threads = Threads("xen-trust", 1)
    try:
        return await threads.run(lambda: Trust(settings.ca_file))
    finally:
        threads.close()
