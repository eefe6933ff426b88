"""Sharing a fixed number of things (buffers, threads) among transfers, so that none starves and none waits for ever."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Hashable


def quota(*, share: int, owners: int) -> int:
    """How many each of `owners` may hold when `share` are to be divided among them: equal parts, at least one."""
    return max(1, share // max(1, owners))


def may_take(*, held: int, free: int, limit: int, quota: int) -> bool:
    """Whether an owner that holds `held` of `limit` may take one more while `free` are left.

    Whoever has nothing gets the next free one. Beyond the first, an owner stays within its quota, and a quarter of all is
    kept for those who come later: slow transfers that fill their share cannot keep a new one from beginning.
    """
    if held == 0:
        return free > 0
    return free > limit // 4 and held < quota


class FairShare:
    """`limit` permits for any number of owners, first come first served among those who may take (`may_take`).

    An owner is never refused its first for the sake of another's second. For the event loop's thread, but for `pressed`.
    """

    def __init__(self, limit: int, *, share: int | None = None) -> None:
        """`share`: how many the owners divide among themselves, where that is less than `limit`; beyond it each gets one."""
        if limit < 1:
            raise ValueError("there must be something to share")
        self._limit = limit
        self._share = min(limit, share or limit)
        self._held: Counter[Hashable] = Counter()
        self._waiting: deque[tuple[Hashable, asyncio.Future[None]]] = deque()
        self._quota = self._share

    def pressed(self, owner: Hashable) -> bool:
        """Whether `owner` holds more than its quota by now, and should give one back soon. From any thread."""
        return self._held[owner] > self._quota

    @property
    def taken(self) -> int:
        return self._held.total()

    async def acquire(self, owner: Hashable) -> None:
        """Waits for a permit. Cancelled, it holds none."""
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

    def _grant(self) -> None:
        """Hands free permits to whoever waits, in order, passing over owners that have their quota."""
        waiting = [(owner, turn) for owner, turn in self._waiting if not turn.done()]
        owners = self._held.keys() | {owner for owner, _ in waiting}
        self._quota = quota(share=self._share, owners=len(owners))
        self._waiting.clear()
        for owner, turn in waiting:
            free = self._limit - self.taken
            if may_take(held=self._held[owner], free=free, limit=self._limit, quota=self._quota):
                self._held[owner] += 1
                turn.set_result(None)
            else:
                self._waiting.append((owner, turn))
