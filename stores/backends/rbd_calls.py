"""Calls to Ceph's own Python modules, each by a process that does one at a time (`rbd_worker`).

A tool of Ceph's takes 60 ms to find its cluster and to leave it again, and a clone takes twenty questions; a worker stays
connected, and answers most of them in a few ms. What a call has done that is cancelled or late, nobody knows: its worker is
killed, as a tool would be.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stores.contract import MiB
from stores.errors import StorageError, Unavailable
from stores.tools.process import RunningTool, ToolFailed, ToolLimits, ToolMissing, ToolRunner
from stores.uninterrupted import uninterrupted

_PYTHON = "/usr/bin/python3"
_WORKER = Path(__file__).with_name("rbd_worker.py")

_IDLE_S = 60.0
"""Then a worker ends by itself; it is not asked any more long before."""

_KEPT = 2
"""Workers that wait for the next call, at most."""

_LIMITS = ToolLimits(address_space=None)
"""librados reserves much more address space than it uses."""

_LONGEST = 64 * MiB
"""Bytes of an answer: what changed in a large image is a long text."""

_DEATH_S = 5.0
"""How long after its socket the end of a worker shows at most."""

_OF_IMAGES = frozenset({errno.ENOENT, errno.EEXIST, errno.EBUSY, errno.ENOTEMPTY, errno.EINVAL, errno.EROFS})
"""What is wrong with what was asked for. With all others, the worker's connection may be what is wrong."""


class CallFailed(Exception):
    """What Ceph says; `number` (errno) is None where it gives none. `connecting`: nothing was asked for yet."""

    def __init__(self, said: str, number: int | None, *, connecting: bool) -> None:
        super().__init__(said)
        self.said = said
        self.number = number
        self.connecting = connecting


@dataclass(frozen=True, slots=True)
class _Worker:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    process: RunningTool
    ending: AsyncExitStack

    async def ask(self, name: str, arguments: Mapping[str, object]) -> Any:
        self.writer.write(json.dumps([name, arguments]).encode() + b"\n")
        return await _answer(self.reader, self.process, connecting=False)


class RbdCalls:
    def __init__(self, tools: ToolRunner) -> None:
        self._tools = tools
        self._waiting: list[tuple[float, _Worker]] = []

    async def call(
        self, cluster: Sequence[str], name: str, arguments: Mapping[str, object], deadline_s: float | None
    ) -> Any:
        """What the worker's method `name` returns. `cluster`: its configuration, the user, the pool; always the same.

        `CallFailed`; TimeoutError after `deadline_s`; `ToolFailed` if the worker dies; `ToolMissing`.
        """
        async with asyncio.timeout(deadline_s), self._worker(cluster) as worker:
            return await worker.ask(name, arguments)

    async def aclose(self) -> None:
        """Idempotent. No call is under way."""
        while self._waiting:
            await self._waiting.pop()[1].ending.aclose()

    @asynccontextmanager
    async def _worker(self, cluster: Sequence[str]) -> AsyncIterator[_Worker]:
        """One that waits, or a new one. It waits again once it has answered."""
        worker = await self._taken() or await self._started(cluster)
        answered = False
        try:
            yield worker
            answered = True
        except CallFailed as error:
            answered = error.number in _OF_IMAGES
            raise
        finally:
            if answered and len(self._waiting) < _KEPT:
                self._waiting.append((asyncio.get_running_loop().time(), worker))
            else:
                await uninterrupted(worker.ending.aclose())

    async def _taken(self) -> _Worker | None:
        while self._waiting:
            since, worker = self._waiting.pop()
            if asyncio.get_running_loop().time() - since < _IDLE_S / 2 and not worker.reader.at_eof():
                return worker
            await uninterrupted(worker.ending.aclose())
        return None

    async def _started(self, cluster: Sequence[str]) -> _Worker:
        async with AsyncExitStack() as stack:
            ours, theirs = socket.socketpair()
            with theirs:
                stack.callback(ours.close)
                reader, writer = await asyncio.open_connection(sock=ours, limit=_LONGEST)
                stack.push_async_callback(_closed, writer)
                argv = [_PYTHON, "-I", str(_WORKER), str(theirs.fileno()), str(_IDLE_S), *cluster]
                running = self._tools.running(argv, limits=_LIMITS, pass_fds=[theirs.fileno()])
                process = await stack.enter_async_context(running)
            await _answer(reader, process, connecting=True)
            return _Worker(reader, writer, process, stack.pop_all())


async def _answer(reader: asyncio.StreamReader, process: RunningTool, *, connecting: bool) -> Any:
    try:
        line = await reader.readline()
    except ConnectionError:
        line = b""
    if not line.endswith(b"\n"):
        raise _ended(await process.ended(_DEATH_S))
    told = json.loads(line)
    if "said" in told:
        raise CallFailed(told["said"], told["errno"], connecting=connecting)
    return told["value"]


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


def _ended(failure: ToolFailed | None) -> StorageError:
    if failure is None:
        return Unavailable("a process that calls Ceph does not answer any more; try again")
    if "ModuleNotFoundError" in str(failure.details.get("stderr")):
        return ToolMissing(
            f"Ceph's Python modules are needed for {_PYTHON}, and not installed: install the package python3-rbd",
            tool="python3-rbd",
            package="python3-rbd",
        )
    return failure
