"""What a transport is to the daemon, and what the daemon is to a transport."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from agent.commands import Answer, Command, Event, State
from agent.dispatcher import DispatcherStatus


class Transport(Protocol):
    """A way in for commands. Owns its listeners."""

    async def start(self) -> None:
        """Listen. Whoever connects is served when this returns. `SecuritySetup` where that cannot be done as configured."""
        ...

    async def stop(self) -> None:
        """Accept nobody any more, end what waits or streams, give back the listeners. Commands go on. Idempotent."""
        ...


class CommandService(Protocol):
    """The dispatcher, as transports see it. Errors and promises are written there (`agent.dispatcher`)."""

    async def submit(self, command: Command) -> Answer: ...

    async def get(self, command_id: str) -> Answer: ...

    async def wait(self, command_id: str, seconds: float) -> Answer: ...

    async def cancel(self, command_id: str) -> Answer: ...

    def events(self, command_id: str) -> AsyncIterator[Event]: ...

    async def list(self, *, state: State | None = None, limit: int = 100) -> list[Answer]: ...

    def under_way(self, command_id: str) -> bool: ...

    def drain(self, draining: bool) -> None: ...

    async def idle(self, seconds: float) -> bool: ...

    def status(self) -> DispatcherStatus: ...


class HostPoolStatus(BaseModel):
    """A pool of hosts as it was found when it was last needed; `coordinator` is the one that the agent is logged in at."""

    model_config = ConfigDict(frozen=True)

    name: str
    coordinator: str | None
    problem: str | None  # why it is logged in at none


class AgentStatus(BaseModel):
    """The agent at this moment, for people and for monitoring."""

    model_config = ConfigDict(frozen=True)

    version: str
    hypervisor: str
    started_at: float  # seconds since the epoch
    ready: bool  # takes commands now
    accepting: bool  # false from the moment the agent is told to stop
    draining: bool  # emptied for maintenance
    journal_usable: bool
    waiting: int  # commands accepted and not yet running
    running: int
    queue_limit: int
    concurrency: int
    host_pools: tuple[HostPoolStatus, ...] = ()
