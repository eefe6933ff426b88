"""Objects on HTTP/1.1 servers as presentations: `HttpRangeReader` for servers with ranges, `HttpByteStream` for the rest."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from stores.contract import Ahead, BlockingCalls, ByteStream, KiB, ObjectInfo, RangeReader
from stores.errors import IntegrityError, StorageError, Unavailable
from stores.streams import read_one
from stores.transfer.answers import check_range, check_version, may_be_stale, retry_after_s, status_error, strong_etag
from stores.transfer.engine import TransferEngine
from stores.transfer.target import HttpPatience, HttpTarget
from stores.transfer.wire import Answer, Body, Connection, ConnectionFailed

__all__ = ["HttpByteStream", "HttpPatience", "HttpRangeReader", "HttpTarget"]

TargetSource = Callable[[], Awaitable[HttpTarget]]
"""Gives where to GET from now: called at the start, and again when a server refuses the target or cannot be reached."""

PROGRESS = 64 * KiB
"""Bytes that an attempt must bring to count as progress; a connection that dies after less counts as a failure in a row."""


@dataclass(slots=True)
class _Outcome:
    """How the use of one connection ended. `failure` is what kept it from going on; `fresh_target` and `wait_s` say what
    could help, `stale` that a kept connection turned out closed, by which nothing is lost, `done` that all was read."""

    moved: int = 0
    failure: StorageError | None = None
    fresh_target: bool = False
    wait_s: float = 0.0
    stale: bool = False
    done: bool = False
    reusable: bool = False


class _Wanted:
    """What is still to be read, over as many connections as it takes: see `RangeReader.read_each`."""

    def __init__(
        self,
        take: Callable[[], tuple[int, memoryview] | None],
        put: Callable[[int, memoryview], None],
        ahead: Ahead,
    ) -> None:
        self._take = take
        self._put = put
        self._ahead = ahead
        self._present: tuple[int, memoryview] | None = None
        self._filled = 0

    def rest(self) -> tuple[int, memoryview] | None:
        """Offset and buffer of what comes next; None at the end."""
        if self._present is None:
            self._present, self._filled = self._take(), 0
        if self._present is None:
            return None
        offset, buffer = self._present
        return offset + self._filled, buffer[self._filled :]

    def until(self, end: int) -> int:
        """Where reading on from `end`, that of the present buffer, without a gap will end."""
        for offset, length in self._ahead():
            if offset != end:
                break
            end += length
        return end

    def received(self, count: int) -> None:
        """So many more bytes are in the buffer of `rest`."""
        assert self._present is not None
        offset, buffer = self._present
        self._filled += count
        if self._filled == len(buffer):
            self._put(offset, buffer)
            self._present = None


class _Source:
    """One object on one server: its target, its connections, and the patience with both."""

    def __init__(
        self,
        engine: TransferEngine,
        info: ObjectInfo,
        target: TargetSource,
        patience: HttpPatience,
        sleep: Callable[[float], Awaitable[object]],
        spread: Callable[[], float],
    ) -> None:
        self.engine = engine
        self.info = info
        self.patience = patience
        self._source = target
        self._target: HttpTarget | None = None
        self._refresh = asyncio.Lock()
        self._sleep = sleep
        self._spread = spread

    async def target(self, *, instead_of: HttpTarget | None) -> HttpTarget:
        """The present target, or a fresh one where the present one is `instead_of`: readers that meet the same refusal
        at the same time share one refresh."""
        async with self._refresh:
            if self._target is None or self._target is instead_of:
                self._target = await self._source()
            return self._target

    async def pause(self, failures: int, at_least_s: float) -> None:
        await self._sleep(max(at_least_s, self.patience.wait_s(failures, self._spread())))

    def what(self, target: HttpTarget) -> str:
        return f"{self.info.ref} on {target.host}"

    def request(self, target: HttpTarget, **more: str) -> bytes:
        """A GET pinned to the object's version where that is something a server can check."""
        etag = strong_etag(self.info.version)
        return target.request(**({"If_Match": etag} if etag else {}), **more)

    async def connect(self, target: HttpTarget) -> Connection:
        patience = self.patience
        return await self.engine.connections.take(
            target, connect_timeout_s=patience.connect_timeout_s, read_timeout_s=patience.read_timeout_s
        )

    def refused(self, connection: Connection, answer: Answer, what: str) -> _Outcome:
        """An answer without content."""
        return _Outcome(
            failure=status_error(answer, what),
            fresh_target=may_be_stale(answer.status),
            wait_s=retry_after_s(answer, datetime.now(UTC)),
            reusable=connection.drop_body(answer),
        )


class HttpRangeReader(RangeReader):
    """Any range of one object, received straight into the caller's buffers: by a GET of its own, or many buffers by one GET
    (`read_each`), whose answer waits on the connection whenever there is no buffer for it.

    Broken connections are resumed at the byte where they broke, transient answers are tried again after a pause
    (`HttpPatience`), a refused target is asked for afresh once. Every answer is checked against `info`.
    """

    def __init__(
        self,
        engine: TransferEngine,
        info: ObjectInfo,
        target: TargetSource,
        *,
        patience: HttpPatience = HttpPatience(),  # noqa: B008 - frozen
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        spread: Callable[[], float] = random.random,
    ) -> None:
        """`sleep` and `spread` (random numbers in [0, 1)) are arguments for tests."""
        self.info = info
        self._source = _Source(engine, info, target, patience, sleep, spread)
        self.parallel = patience.connections
        self._connections = asyncio.Semaphore(patience.connections)
        self._threads = engine.network.of(self)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await read_one(self, offset, buffer, self._threads)

    async def read_each(
        self,
        take: Callable[[], tuple[int, memoryview] | None],
        put: Callable[[int, memoryview], None],
        threads: BlockingCalls,
        *,
        ahead: Ahead = lambda: (),
    ) -> None:
        # The place among the connections is kept over breaks and pauses: what was taken can always be finished, also while
        # others wait for just that.
        async with self._connections:
            await self._read(_Wanted(take, put, ahead), threads)

    async def _read(self, wanted: _Wanted, threads: BlockingCalls) -> None:
        failures = 0
        refreshed: HttpTarget | None = None
        while True:
            target = await self._source.target(instead_of=refreshed)
            outcome = await self._use_connection(target, wanted, threads)
            if outcome.done:
                return
            if outcome.moved >= PROGRESS:
                failures, refreshed = 0, None
            if outcome.stale or outcome.failure is None:
                continue
            if outcome.fresh_target and refreshed is None:
                refreshed = target
                continue
            failures += 1
            if not isinstance(outcome.failure, Unavailable) or failures >= self._source.patience.attempts:
                raise outcome.failure
            await self._source.pause(failures, outcome.wait_s)

    async def _use_connection(self, target: HttpTarget, wanted: _Wanted, threads: BlockingCalls) -> _Outcome:
        try:
            connection = await self._source.connect(target)
        except Unavailable as error:
            return _Outcome(failure=error, fresh_target=True)
        outcome = _Outcome()
        try:
            outcome = await threads.run(partial(self._exchange, connection, target, wanted), abort=connection.abort)
        finally:
            if outcome.reusable:
                self._source.engine.connections.give(target, connection)
            else:
                connection.close()
        return outcome

    def _exchange(self, connection: Connection, target: HttpTarget, wanted: _Wanted) -> _Outcome:
        """Runs in a thread: request after request over one connection, for as long as both last."""
        what = self._source.what(target)
        moved = 0
        rest = wanted.rest()
        while rest is not None:
            offset, buffer = rest
            refused = self._begin(connection, target, what, offset, wanted.until(offset + len(buffer)) - offset)
            if isinstance(refused, _Outcome):
                refused.moved = moved
                return refused
            answer, length = refused
            end = offset + length
            while rest is not None and rest[0] == offset < end:
                view = rest[1][: end - offset]
                count = connection.receive(view)
                moved += count
                offset += count
                wanted.received(count)
                if count < len(view):
                    why = connection.trouble or "the server closed the connection"
                    return _Outcome(moved, Unavailable(f"reading {what} broke off after {offset} bytes: {why}"))
                rest = wanted.rest()
            if offset < end or not answer.keep_alive:
                return _Outcome(moved, done=rest is None)
            connection.reused = True
        return _Outcome(moved, done=True, reusable=True)

    def _begin(
        self, connection: Connection, target: HttpTarget, what: str, offset: int, length: int
    ) -> tuple[Answer, int] | _Outcome:
        """One request, up to the body of its answer: the answer and how much it brings; or why it brings nothing."""
        size = self.info.size
        if size is not None and offset + length > size:
            error = IntegrityError(f"{what} has {size} bytes, asked for {offset}-{offset + length - 1}")
            return _Outcome(failure=error)
        try:
            answer = connection.exchange(self._source.request(target, Range=f"bytes={offset}-{offset + length - 1}"))
            if answer.status not in (200, 206):
                return self._source.refused(connection, answer, what)
            return answer, check_range(answer, offset, length, self.info, what)
        except ConnectionFailed as error:
            return _Outcome(failure=Unavailable(f"reading {what} failed: {error}"), stale=connection.reused)
        except ssl.SSLCertVerificationError as error:
            return _Outcome(failure=target.untrusted(error))
        except StorageError as error:
            return _Outcome(failure=error)


class HttpByteStream(ByteStream):
    """The whole object over one connection, for servers without ranges.

    When the connection breaks and the server gives the object a strong ETag, the object is asked for again and what was
    delivered already is read and dropped; without one nobody could tell whether it is still the same, so that it fails
    with `Unavailable`. A body that ends before its announced length is never taken for whole.
    """

    def __init__(
        self,
        engine: TransferEngine,
        info: ObjectInfo,
        target: TargetSource,
        *,
        patience: HttpPatience = HttpPatience(),  # noqa: B008 - frozen
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self.info = info
        self._source = _Source(engine, info, target, patience, sleep, spread)

    async def __aiter__(self) -> AsyncGenerator[memoryview, None]:
        engine = self._source.engine
        buffer = await engine.buffers.acquire(self)
        try:
            delivered = failures = 0
            refreshed: HttpTarget | None = None
            while True:
                target = await self._source.target(instead_of=refreshed)
                before = delivered
                download = _Download(self._source, target, self)
                try:
                    async with aclosing(download.pieces(buffer, skip=delivered)) as pieces:
                        async for piece in pieces:
                            delivered += len(piece)
                            yield piece
                    return
                except StorageError as error:
                    if download.refused.fresh_target and refreshed is None:
                        refreshed = target
                        continue
                    failures = 1 if delivered - before >= PROGRESS else failures + 1
                    resumable = delivered == 0 or strong_etag(self.info.version) is not None
                    if (
                        not isinstance(error, Unavailable)
                        or failures >= self._source.patience.attempts
                        or not resumable
                    ):
                        raise
                await self._source.pause(failures, download.refused.wait_s)
        finally:
            engine.buffers.release(self, buffer)


class _Download:
    """One GET of a whole object."""

    def __init__(self, source: _Source, target: HttpTarget, owner: object) -> None:
        self.refused = _Outcome()
        self._source = source
        self._target = target
        self._owner = owner
        self._what = source.what(target)

    async def pieces(self, buffer: memoryview, *, skip: int) -> AsyncGenerator[memoryview, None]:
        """The body after its first `skip` bytes, each piece in `buffer`."""
        try:
            connection = await self._source.connect(self._target)
        except Unavailable:
            self.refused.fresh_target = True
            raise
        threads = self._source.engine.network.of(self._owner)
        try:
            body = await threads.run(partial(self._open, connection), abort=connection.abort)
            passed = 0
            while not body.complete:
                wanted = buffer[: min(len(buffer), skip - passed)] if passed < skip else buffer
                count = await threads.run(partial(self._fill, body, wanted), abort=connection.abort)
                passed += count
                if passed > skip and count:
                    yield buffer[:count]
            size = self._source.info.size
            if passed < skip or (size is not None and passed != size):
                raise IntegrityError(f"{self._what} ended after {passed} bytes, it was said to have {size}")
        finally:
            connection.close()

    def _open(self, connection: Connection) -> Body:
        """Runs in a thread of the engine's network pool."""
        connection.reused = False
        try:
            answer = connection.exchange(self._source.request(self._target))
        except ConnectionFailed as error:
            raise Unavailable(f"reading {self._what} failed: {error}") from error
        except ssl.SSLCertVerificationError as error:
            raise self._target.untrusted(error) from error
        if answer.status != 200:
            self.refused = self._source.refused(connection, answer, self._what)
            raise self.refused.failure or Unavailable(self._what)
        check_version(answer, self._source.info, self._what)
        return Body(connection, answer)

    def _fill(self, body: Body, view: memoryview) -> int:
        """Runs in a thread of the engine's network pool."""
        try:
            return body.receive(view)
        except ConnectionFailed as error:
            raise Unavailable(f"reading {self._what} broke off: {error}") from error
