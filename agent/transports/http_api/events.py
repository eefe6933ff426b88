"""Progress of one command as server-sent events (WHATWG HTML, section 9.2).

`progress` events carry an `Event`, the closing `end` event carries the whole `Answer`. Each says everything that is known, so
that a client which reconnects has missed nothing it needs: `Last-Event-ID` is accepted and makes no difference.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from aiohttp import web

from agent.commands import Event
from agent.transports.contract import CommandService

HEARTBEAT_S = 15.0  # shorter than the usual idle limits of proxies and firewalls
_RECONNECT = b"retry: 2000\n\n"  # milliseconds
_HEARTBEAT = b": alive\n\n"

_Send = Callable[[bytes], Coroutine[Any, Any, None]]


async def stream(
    request: web.Request,
    commands: CommandService,
    command_id: str,
    *,
    closing: asyncio.Event,
    heartbeat_s: float,
    write_timeout_s: float,
) -> web.StreamResponse:
    """Answer with the command's events until it ends, the client goes away, or `closing` is set.

    A client that does not read for `write_timeout_s` is dropped. `UnknownCommand` before anything is sent.
    """
    await commands.get(command_id)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await response.prepare(request)

    async def send(data: bytes) -> None:
        async with asyncio.timeout(write_timeout_s):
            await response.write(data)

    try:
        await send(_RECONNECT)
        await _send_events(commands, command_id, send, closing, heartbeat_s)
        await response.write_eof()
    except (TimeoutError, ConnectionError):
        if request.transport is not None:
            request.transport.abort()
    return response


async def _send_events(
    commands: CommandService, command_id: str, send: _Send, closing: asyncio.Event, heartbeat_s: float
) -> None:
    events = commands.events(command_id)
    stop = asyncio.ensure_future(closing.wait())
    # There is always a pending step, so that cancelling it is what ends the iterator, wherever this function is left.
    step = _step(events)
    number = 0
    try:
        while not closing.is_set():
            await _first(step, stop, timeout_s=heartbeat_s)
            if not step.done():
                await send(_HEARTBEAT)
                continue
            try:
                event = step.result()
            except StopAsyncIteration:
                return
            step = _step(events)
            number += 1
            if event.state.final:
                await send(_frame("end", number, (await commands.get(command_id)).wire()))
                return
            await send(_frame("progress", number, event.model_dump_json(exclude_none=True)))
    finally:
        await _gone(step)
        await _gone(stop)


def _step(events: AsyncIterator[Event]) -> asyncio.Future[Event]:
    async def following() -> Event:
        return await anext(events)

    return asyncio.ensure_future(following())


async def _first(*futures: asyncio.Future[Any], timeout_s: float) -> None:
    await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


async def _gone(future: asyncio.Future[Any]) -> None:
    """Cancel, wait until it has ended, and take its result, which nobody wants any more."""
    future.cancel()
    await asyncio.wait({future})
    if not future.cancelled():
        future.exception()


def _frame(name: str, number: int, data: str) -> bytes:
    """One event. JSON has no bare line ends, so that `data` is a single line."""
    return f"event: {name}\nid: {number}\ndata: {data}\n\n".encode()
