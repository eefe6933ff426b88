"""Emptying the agent for maintenance: it takes nothing new, ends what it has begun, and uploads what no store has yet.

Nothing of this is kept: after a restart the agent takes commands again. What is not uploaded by then is safe all the same, and
is gone on with.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from agent.dispatcher import DispatcherStatus
from agent.upload_models import Drained
from agent.upload_service import BLOCKED, UploadService


class Intake(Protocol):
    """The dispatcher, as far as it matters here."""

    def drain(self, draining: bool) -> None: ...

    async def idle(self, seconds: float) -> bool: ...

    def status(self) -> DispatcherStatus: ...


class Drain:
    """Holds no state of its own."""

    def __init__(self, commands: Intake, uploads: UploadService) -> None:
        self._commands = commands
        self._uploads = uploads

    def begin(self) -> None:
        """Idempotent."""
        self._commands.drain(True)

    def end(self) -> None:
        """Take commands again. Idempotent."""
        self._commands.drain(False)
        self._uploads.resume()

    async def status(self, wait_s: float) -> Drained:
        """How far it is: when it is over, when only an operator can help what is left, or after `wait_s` seconds. Without a
        drain, as things stand now. `PoolSick` while nobody can say what a pool still holds."""
        clock = asyncio.get_running_loop().time
        late = clock() + wait_s
        if self._commands.status().draining and await self._commands.idle(wait_s):
            await self._uploads.emptied(max(0.0, late - clock()))
        left, now = await self._uploads.left(), self._commands.status()
        commands = now.accepted + now.running
        return Drained(
            draining=now.draining,
            stored=not left and not commands,
            commands=commands,
            uploads=len(left),
            bytes=sum(upload.size for upload in left),
            blocked=sum(upload.state in BLOCKED for upload in left),
        )
