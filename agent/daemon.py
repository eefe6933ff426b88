"""The process's life: recover, serve, and stop in good order.

Start: journal, cache, recovery, dispatcher, transports, and only then READY=1. Stop, on SIGTERM or SIGINT: accept nothing
more, give running commands their time, record every outcome, and only then close the transports, so that whoever waits gets
an answer, and the cache, which nobody uses any more. A call that hangs in a dead mount does not hold that up for ever: after
twice `agent.shutdown_s` the process ends as if it were killed, which the next start accounts for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiofiles.os
import structlog

from agent.config import Config
from agent.recovery import Report, recover
from agent.sdnotify import Notifier, listen_sockets
from agent.transports.contract import Transport
from agent.version import VERSION
from agent.wiring import Parts, build
from stores.errors import StorageError

_log = structlog.get_logger(__name__)

_SPARE_S = 2.0  # beyond what a stop in good order may take; together less than the unit's TimeoutStopSec
_SOCKETS_MODE = 0o755  # of the runtime directory, if systemd did not make it; each socket has its own permissions


def run(config: Config) -> None:
    """Serve until told to stop. StorageError says why it could not begin, or could not go on."""
    passed = [sock for sockets in listen_sockets().values() for sock in sockets]
    try:
        asyncio.run(
            serve(config, Notifier(), passed, stopping=lambda: _end_within(2 * config.agent.shutdown_s + _SPARE_S))
        )
    except BaseExceptionGroup as group:
        expected = group.subgroup(StorageError)
        if expected is None:
            raise
        raise _first(expected) from group


async def serve(
    config: Config,
    notifier: Notifier,
    passed: Sequence[socket.socket] = (),
    *,
    stopping: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT; when this returns, nothing runs and every outcome is recorded. `stopping` is called when
    that begins to end."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4, thread_name_prefix="agent-call"))
    await aiofiles.os.makedirs(config.agent.runtime_dir, _SOCKETS_MODE, exist_ok=True)
    stop = _stop_signal()
    async with contextlib.AsyncExitStack() as stack:
        parts = build(config)
        stack.push_async_callback(parts.aclose)
        await stack.enter_async_context(parts.journal)
        notifier.status("recovering")
        await _clear(config.agent.runtime_dir)
        await parts.leftovers.load()
        await stack.enter_async_context(parts.cache_in_use())
        report = await recover(parts.journal, parts.execution)
        dispatcher = await stack.enter_async_context(parts.dispatcher())
        await stack.enter_async_context(_listening(parts.transports(dispatcher, passed)))
        async with _in_background(parts, notifier):
            _announce(notifier, report)
            await stop.wait()
            _log.info("stopping", running=dispatcher.status().running)
            notifier.stopping()
            stopping()
            await dispatcher.shut_down(config.agent.shutdown_s)
    _log.info("stopped")


def _end_within(seconds: float) -> None:
    """The process is gone after that time, whatever still hangs. Python itself would wait for its threads."""
    timer = threading.Timer(seconds, _end)
    timer.name, timer.daemon = "agent-end", True
    timer.start()


def _end() -> None:
    _log.error("stop forced")
    os._exit(1)


def _announce(notifier: Notifier, report: Report) -> None:
    _log.info("ready", version=VERSION, recovered=str(report))
    notifier.ready(f"ready; {report}")


@contextlib.asynccontextmanager
async def _listening(transports: Sequence[Transport]) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for transport in transports:
            await transport.start()
            stack.push_async_callback(transport.stop)
        yield


@contextlib.asynccontextmanager
async def _in_background(parts: Parts, notifier: Notifier) -> AsyncIterator[None]:
    """The watchdog's keep-alives and what is measured, also while the agent stops."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(chore) for chore in (notifier.watchdog(), *parts.chores())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _clear(runtime_dir: Path) -> None:
    """Sockets of exports, and keys for tools of Ceph, that a killed agent left. The journal's lock is held: nobody else's are
    there."""
    for name in ("nbd", "rbd"):
        await asyncio.to_thread(shutil.rmtree, runtime_dir / name, ignore_errors=True)


def _first(group: BaseExceptionGroup[StorageError]) -> StorageError:
    error: StorageError | BaseExceptionGroup[StorageError] = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
