"""A process that is killed before a chosen step of what it does in a pool of XenServer hosts.

Steps are what changes something there, or in its own directories, and some moments of each transfer and of waiting for a task.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from hypervisors.images.parsing import SECTOR
from hypervisors.xen.hosts import Host
from hypervisors.xen.wire import Exchange
from hypervisors.xen.xapi import Xapi
from tests.doubles.dying import watch_files

FILES = ("rename", "replace", "link", "unlink")
"""Of directories: what is not under its name does not count after a crash."""

_LOGIN = "session."
_EVENTS = "event.from"


def watch(count: Callable[[], None]) -> None:
    """`count` is called before each step."""
    watch_files(count, FILES, ())
    _watch_calls(count)
    _watch_transfers(count)


def _watch_calls(count: Callable[[], None]) -> None:
    """What reads changes nothing; waiting for what goes on by itself is one step."""
    call, going_on = Xapi.call, False

    async def counted(self: Xapi, host: Host, method: str, params: list[Any], *, timeout_s: float) -> Any:
        nonlocal going_on
        waits = going_on and (method == _EVENTS or method.startswith("task.get_"))
        changes = ".get_" not in method and method != _EVENTS and not method.startswith(_LOGIN)
        if changes or waits:
            count()
        going_on = method.startswith("Async.") or (going_on and not waits)
        return await call(self, host, method, params, timeout_s=timeout_s)

    setattr(Xapi, "call", counted)  # noqa: B010  mypy would not have it


def _watch_transfers(count: Callable[[], None]) -> None:
    """Each frame, in whatever order they go, and each piece that comes."""
    put, receive, end = Exchange.put, Exchange.receive, Exchange.end
    turn = threading.Lock()

    def sent(self: Exchange, *parts: bytes | memoryview) -> None:
        if sum(map(len, parts)) >= SECTOR:
            with turn:
                count()
        put(self, *parts)

    def received(self: Exchange, view: memoryview) -> int:
        with turn:
            count()
        return receive(self, view)

    async def ended(self: Exchange) -> None:
        count()
        await end(self)

    for name, counted in (("put", sent), ("receive", received), ("end", ended)):
        setattr(Exchange, name, counted)
