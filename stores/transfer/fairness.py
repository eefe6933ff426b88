"""Sharing a fixed number of things (buffers, threads) among transfers, so that none starves and none waits for ever."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Hashable


def may_take(*, held: int, free: int, owners: int, limit: int) -> bool:
    """Whether an owner that holds `held` of `limit` may take one more while `free` are left and `owners` want some.

    Whoever has nothing gets the next free one. Beyond the first, an owner stays within an equal share, and a quarter of all
    is kept for those who come later: slow transfers that fill their share cannot keep a new one from beginning.
    """
    if held == 0:
        return free > 0
    return free > limit // 4 and held < max(1, limit // owners)


class FairShare:
    """`limit` permits for any number of owners, first come first served among those who may take (`may_take`).

    No owner waits for a second permit while it is the only way to give back its first: whoever holds one can finish with it.
    For the event loop's thread, but for `pressed`.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError("there must be something to share")
        self._limit = limit
        self._held: Counter[Hashable] = Counter()
        self._waiting: deque[tuple[Hashable, asyncio.Future[None]]] = deque()
        self._quota: int | None = None

    def pressed(self, owner: Hashable) -> bool:
        """Whether others wait while `owner` holds more than an equal share: it should give one back soon. From any thread."""
        quota = self._quota
        return quota is not None and self._held[owner] > quota

    @property
    def taken(self) -> int:
        return self._held.total()

    async def acquire(self, owner: Hashable) -> None:
        """Waits for a permit. Cancelled, it holds none."""
        if not self._waiting and self._grantable(owner, owners=len(self._held.keys() | {owner})):
            self._held[owner] += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((owner, turn))
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(owner)
            else:
                self._grant()  # drops the cancelled turn; one owner less may mean a larger share for the others
            raise

    def release(self, owner: Hashable) -> None:
        """Gives one permit back."""
        self._held[owner] -= 1
        if self._held[owner] == 0:
            del self._held[owner]
        self._grant()

    def _grantable(self, owner: Hashable, *, owners: int) -> bool:
        return may_take(held=self._held[owner], free=self._limit - self.taken, owners=owners, limit=self._limit)

    def _grant(self) -> None:
        """Hands free permits to whoever waits, in order, passing over owners that have their share."""
        if not self._waiting:
            return
        owners = len(self._held.keys() | {owner for owner, turn in self._waiting if not turn.done()})
        still: deque[tuple[Hashable, asyncio.Future[None]]] = deque()
        for owner, turn in self._waiting:
            if turn.done():
                continue
            if self._grantable(owner, owners=owners):
                self._held[owner] += 1
                turn.set_result(None)
            else:
                still.append((owner, turn))
        self._waiting = still
        self._quota = max(1, self._limit // owners) if still else None
