"""Trying again what failed for the moment.

Tried again is what asks or opens: `stat`, `list`, `usage`, the beginning of `present`, `write` and `upload`, and the idempotent
`delete` and `discard`. Not tried again is anything inside an opened presentation or a begun write: readers go on by themselves
at the byte where they were (that is their contract), and data that a write has consumed is gone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from stores.contract import DataStore, Kind, ObjectInfo, PendingUpload, PendingWrite, Presentation, Usage
from stores.errors import ObjectChanged, Retry, StorageError
from stores.wrappers.base import WrapperStore

T = TypeVar("T")


def may_succeed_later(error: StorageError) -> bool:
    """Whether the same call can succeed. A changed object stays changed for a call that is pinned to the old version."""
    return error.retry is Retry.YES and not isinstance(error, ObjectChanged)


def delay(attempt: int, chance: float, *, first: float, longest: float) -> float:
    """Seconds to wait after the failed `attempt` (1, 2, ...): doubled each time up to `longest`, of which `chance` (0 to 1)
    decides the second half, so that those who failed together do not come back together."""
    full = min(longest, first * 2.0 ** min(attempt - 1, 60))
    return full * (0.5 + chance / 2)


class RetryingStore(WrapperStore):
    """`attempts` in all, then the last error, with `attempts` in its details."""

    def __init__(
        self,
        inner: DataStore,
        *,
        attempts: int = 5,
        first_delay: float = 0.2,
        longest_delay: float = 10.0,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(inner)
        self._attempts = attempts
        self._first_delay = first_delay
        self._longest_delay = longest_delay
        self._sleep = sleep
        self._chance = chance

    async def stat(self, ref: str) -> ObjectInfo:
        return await self._retried(partial(self.inner.stat, ref))

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        async with AsyncExitStack() as stack:
            yield await self._retried(lambda: stack.enter_async_context(self.inner.present(info, kind)))

    @asynccontextmanager
    async def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AsyncIterator[PendingWrite]:
        async with AsyncExitStack() as stack:
            yield await self._retried(
                lambda: stack.enter_async_context(self.inner.write(ref, kind, token=token, size=size, replace=replace))
            )

    @asynccontextmanager
    async def upload(
        self, ref: str, source: Path, *, token: str, replace: bool = False
    ) -> AsyncIterator[PendingUpload]:
        async with AsyncExitStack() as stack:
            yield await self._retried(
                lambda: stack.enter_async_context(self.inner.upload(ref, source, token=token, replace=replace))
            )

    async def discard(self, ref: str, *, token: str) -> None:
        await self._retried(partial(self.inner.discard, ref, token=token))

    async def delete(self, ref: str) -> None:
        await self._retried(partial(self.inner.delete, ref))

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Goes on behind the last ref it gave, which the order of listings allows. Each ref given counts as progress."""
        last: str | None = None
        failures = 0
        while True:
            try:
                async for info in self.inner.list(prefix):
                    if last is None or info.ref > last:
                        last, failures = info.ref, 0
                        yield info
                return
            except StorageError as error:
                failures += 1
                await self._pause_or_give_up(error, failures)

    async def usage(self) -> Usage:
        return await self._retried(self.inner.usage)

    async def _retried(self, call: Callable[[], Awaitable[T]]) -> T:
        failures = 0
        while True:
            try:
                return await call()
            except StorageError as error:
                failures += 1
                await self._pause_or_give_up(error, failures)

    async def _pause_or_give_up(self, error: StorageError, attempt: int) -> None:
        if not may_succeed_later(error):
            raise error
        if attempt >= self._attempts:
            error.details["attempts"] = attempt
            raise error
        await self._sleep(delay(attempt, self._chance(), first=self._first_delay, longest=self._longest_delay))
