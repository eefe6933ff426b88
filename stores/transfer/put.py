"""PUTs of large bodies on blocking sockets: from a file straight out of the page cache, from memory, or from a reader.

The event loop decides (where to, whether again), a thread of the network's sends. What an answer means, beyond that it may
be worth another try, is for whoever knows the protocol on top.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

from stores.contract import KiB, MiB, RangeReader
from stores.errors import Unavailable
from stores.transfer.answers import is_transient, retry_after_s
from stores.transfer.engine import TransferEngine
from stores.transfer.pieces import known_size
from stores.transfer.readahead import ReadAhead
from stores.transfer.source import SourceFile
from stores.transfer.target import HttpPatience, HttpTarget
from stores.transfer.wire import HEAD_LIMIT, Answer, Body, Connection, ConnectionFailed

STEP = 1 * MiB
"""How much is sent between two looks for an early answer."""

ENCRYPTED_STEP = 256 * KiB
"""The same over TLS. All of it has to go out within the timeout, since nobody sees how much of a call has done so yet."""


REREAD_WIDTH = 2
"""Buffers with which a body is read anew: one is sent while the other is read."""


class Sendable(Protocol):
    """What is PUT by one blocking call: may be sent again and again."""

    length: int

    def send(self, connection: Connection, buffer: memoryview | None) -> bool:
        """Blocking. False where it ended early, since the server has answered before all was sent."""
        ...


class FileRange:
    """Bytes `start` to `end` of a file."""

    def __init__(self, source: SourceFile, start: int, end: int) -> None:
        self.length = end - start
        self._source = source
        self._start = start
        self._end = end

    def send(self, connection: Connection, buffer: memoryview | None) -> bool:
        at = self._start
        while at < self._end:
            if connection.answered():
                return False
            step = min(_step(connection), self._end - at)
            if buffer is None:
                step = connection.send_file(self._source.descriptor, at, step)
                if not step:
                    raise self._source.cut_short(at)
            else:
                self._source.read(at, buffer[:step])
                connection.send(buffer[:step])
            at += step
        return True


class Views:
    """Pieces of memory, one after the other."""

    def __init__(self, views: Sequence[memoryview]) -> None:
        self.length = sum(len(view) for view in views)
        self._views = views

    def send(self, connection: Connection, buffer: memoryview | None) -> bool:
        for view in self._views:
            for start in range(0, len(view), _step(connection)):
                if connection.answered():
                    return False
                connection.send(view[start : start + _step(connection)])
        return True


class Reread:
    """All of `reader`, read anew for every attempt, through a few of the engine's buffers."""

    def __init__(self, engine: TransferEngine, reader: RangeReader) -> None:
        self.length = known_size(reader)
        self._buffers = engine.buffers
        self._reader = reader

    def pieces(self) -> AsyncGenerator[memoryview, None]:
        """In order. Each is valid until the next one is asked for."""
        return ReadAhead(self._buffers, self._reader, width=min(self._reader.parallel, REREAD_WIDTH)).pieces()


def _step(connection: Connection) -> int:
    return ENCRYPTED_STEP if connection.encrypted else STEP


@dataclass(frozen=True, slots=True)
class PutAnswer:
    """What the server said in the end: the answer, the beginning of its body, and at which try it came, from 1:
    from the second on, an earlier one may have been carried out."""

    answer: Answer
    content: bytes
    tries: int

    @property
    def status(self) -> int:
        return self.answer.status


@dataclass(slots=True)
class _Attempt:
    answer: Answer | None = None
    content: bytes = b""
    failure: Unavailable | None = None
    stale: bool = False
    reusable: bool = False


class Putter:
    """PUTs to one server. `sleep` and `spread` (random numbers in [0, 1)) are arguments for tests.

    An attempt that gets no answer, or one that may change (`is_transient`), is followed by another after a pause, up to
    `patience.attempts`; each has a target of its own, so that nothing signed grows old. A kept connection that turns out
    closed costs no attempt.
    """

    def __init__(
        self,
        engine: TransferEngine,
        patience: HttpPatience,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._engine = engine
        self._patience = patience
        self._threads = engine.network.of(self)
        self._sleep = sleep
        self._spread = spread

    async def put(
        self,
        body: Sendable | Reread,
        target: Callable[[], Awaitable[HttpTarget]],
        what: str,
        again: Callable[[PutAnswer], bool] = lambda answer: False,
    ) -> PutAnswer:
        """The last answer, whatever its status. `again`: which others are worth another try. `what` names the object for the
        operator.

        `Unavailable` where no attempt was answered, `TlsFailed` where the server is not trusted, whatever the body's reader
        raises. Once this has ended, cancelled
        or not, nobody reads from `body` any more, and no half-used connection is kept.
        """
        failures = tries = 0
        while True:
            there = await target()
            attempt = await self._attempt(body, there, what)
            tries += 1
            if attempt.stale:
                continue
            failures += 1
            wait_s = 0.0
            if attempt.answer is not None:
                answer = PutAnswer(attempt.answer, attempt.content, tries)
                wanted = is_transient(answer.status) or again(answer)
                if not wanted or failures >= self._patience.attempts:
                    return answer
                wait_s = retry_after_s(attempt.answer, datetime.now(UTC))
            elif failures >= self._patience.attempts:
                assert attempt.failure is not None
                attempt.failure.details["tries"] = tries
                raise attempt.failure
            await self._sleep(max(wait_s, self._patience.wait_s(failures, self._spread())))

    async def _attempt(self, body: Sendable | Reread, target: HttpTarget, what: str) -> _Attempt:
        patience = self._patience
        try:
            connection = await self._engine.connections.take(
                target, connect_timeout_s=patience.connect_timeout_s, read_timeout_s=patience.read_timeout_s
            )
        except Unavailable as error:
            return _Attempt(failure=error)
        attempt = _Attempt()
        exchange = _Exchange(connection, target, body.length, what)
        try:
            attempt = await (self._pass_on(exchange, body) if isinstance(body, Reread) else self._send(exchange, body))
        finally:
            if attempt.reusable:
                self._engine.connections.give(target, connection)
            else:
                connection.close()
        return attempt

    async def _send(self, exchange: _Exchange, body: Sendable) -> _Attempt:
        connection = exchange.connection
        buffer: memoryview | None = None
        try:
            if connection.encrypted:
                buffer = await self._engine.buffers.acquire(self)
            return await self._threads.run(partial(exchange.run, body, buffer), abort=connection.abort)
        finally:
            if buffer is not None:
                self._engine.buffers.release(self, buffer)

    async def _pass_on(self, exchange: _Exchange, body: Reread) -> _Attempt:
        abort = exchange.connection.abort
        async with aclosing(body.pieces()) as pieces:
            async for piece in pieces:
                if not await self._threads.run(partial(exchange.send, Views([piece]), None), abort=abort):
                    break
        return await self._threads.run(exchange.end, abort=abort)


class _Exchange:
    """One PUT and its answer. Blocking; for one thread at a time."""

    def __init__(self, connection: Connection, target: HttpTarget, length: int, what: str) -> None:
        """`length`: bytes of the body."""
        self.connection = connection
        self._target = target
        self._length = length
        self._what = what
        self._begun = False
        self._whole = True
        self._broken: ConnectionFailed | None = None

    def run(self, body: Sendable, buffer: memoryview | None) -> _Attempt:
        """All of it."""
        self.send(body, buffer)
        return self.end()

    def send(self, body: Sendable, buffer: memoryview | None) -> bool:
        """The body, or the next of it. False where the rest need not follow."""
        try:
            if not self._begun:
                self._begun = True
                self.connection.begin(self._target.request("PUT", Content_Length=str(self._length)))
            self._whole = body.send(self.connection, buffer)
        except ConnectionFailed as broken:
            self._broken, self._whole = broken, False
        except ssl.SSLCertVerificationError as error:
            raise self._target.untrusted(error) from error
        return self._whole

    def end(self) -> _Attempt:
        """The answer."""
        connection = self.connection
        try:
            answer = self._answer()
            content = Body(connection, answer)
            view = memoryview(bytearray(HEAD_LIMIT))
            text = bytes(view[: content.receive(view)])
            return _Attempt(answer, text, reusable=self._whole and content.complete and answer.keep_alive)
        except ConnectionFailed as error:
            failure = Unavailable(
                f"writing {self._what} on {self._target.host} broke off: {error}", host=self._target.host
            )
            return _Attempt(failure=failure, stale=connection.reused)

    def _answer(self) -> Answer:
        try:
            return self.connection.answer()
        except ConnectionFailed as error:
            # A server that will not have the rest answers and closes: what it said was still there to be read, if anything.
            raise (self._broken or error) from None
