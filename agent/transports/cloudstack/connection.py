"""Commands and answers over one channel: sequence numbers, one writer at a time, and who watches."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from agent.transports.cloudstack import json_codec, wire
from agent.transports.cloudstack.contract import Watcher
from agent.transports.cloudstack.errors import ContentRefused
from agent.transports.cloudstack.json_codec import Decoded
from agent.transports.cloudstack.models import Envelope
from agent.transports.cloudstack.tls import TlsChannel
from agent.transports.cloudstack.wire import Flag, Message
from stores.contract import KiB

_LARGE = 128 * KiB  # what takes so long to compress or to parse that pings should not wait for it

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Received:
    """What a message said. `message` is without its text, which may hold secrets and be large; `size` is that text in bytes."""

    message: Message
    items: Sequence[Decoded]
    size: int


class Connection:
    """One task receives; any may send."""

    def __init__(self, channel: TlsChannel, watcher: Watcher) -> None:
        self._channel = channel
        self._watcher = watcher
        self._sequences = itertools.count()
        self._writing = asyncio.Lock()

    @property
    def local_address(self) -> str:
        return self._channel.local_address

    async def request(self, commands: Sequence[Envelope], host_id: int) -> None:
        """Ask the server. Its answer comes out of `receive`. LinkLost."""
        content = json_codec.encode(commands)
        flags = Flag.REQUEST | Flag.STOP_ON_ERROR
        await self._send(Message(next(self._sequences), flags, content, agent_id=host_id, via=host_id), commands)

    async def answer(self, request: Message, answers: Sequence[Envelope]) -> None:
        """LinkLost."""
        await self._send(request.answer(json_codec.encode(answers)), answers)

    async def receive(self) -> Received | None:
        """The next message; None when the server closed. LinkError, and ContentRefused for a text that is no array of commands:
        after either the connection cannot be read on."""
        while (data := await self._channel.receive()) is not None:
            received = await _beside(len(data), read, data)
            if received is not None:
                self._watcher.received(received.message, received.items)
                return received
        return None

    async def close(self) -> None:
        """Idempotent."""
        await self._channel.close()

    async def _send(self, message: Message, items: Sequence[Envelope]) -> None:
        data = await _beside(len(message.content), wire.encode, message)
        async with self._writing:
            self._watcher.sent(message, items)
            await self._channel.send(data)


def read(data: bytearray) -> Received | None:
    """What a message says; None for one that is dropped. `data` is emptied: it, the text and what that says need not be in
    memory together. LinkProtocolError, ContentRefused."""
    message = wire.decode(data)
    data.clear()
    if message is None:
        return None
    size = len(message.content)
    try:
        text = message.content.decode()
    except UnicodeDecodeError:
        raise ContentRefused("a message needs to be text in UTF-8") from None
    message = dataclasses.replace(message, content=b"")
    return Received(message, json_codec.decode_text(text), size)


async def _beside(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Large work in a thread."""
    return await asyncio.to_thread(work, *args, **kwargs) if size >= _LARGE else work(*args, **kwargs)
