"""A process that is killed before a chosen step of what it does in a pool of XenServer hosts.

Steps are what changes something there, or in its own directories, and some moments of each transfer and of waiting for a task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypervisors.xen.hosts import Host
from hypervisors.xen.wire import Exchange
from hypervisors.xen.xapi import Xapi
from stores.contract import MiB
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
    """Each time that the next MiB begins."""
    send, receive, end = Exchange.send, Exchange.receive, Exchange.end
    passed: dict[Exchange, int] = {}

    def passing(exchange: Exchange, length: int) -> None:
        before = passed.get(exchange, -1)
        passed[exchange] = max(0, before) + length
        if before // MiB != passed[exchange] // MiB:
            count()

    async def sent(self: Exchange, data: bytes | bytearray | memoryview) -> None:
        passing(self, len(data))
        await send(self, data)

    async def received(self: Exchange) -> bytes:
        piece = await receive(self)
        passing(self, len(piece))
        return piece

    async def ended(self: Exchange) -> None:
        count()
        await end(self)

    for name, counted in (("send", sent), ("receive", received), ("end", ended)):
        setattr(Exchange, name, counted)
