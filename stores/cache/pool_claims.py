"""What others do with a pool: look an object up, hold it, fill it, let it go. Every step is claimed in the ledger before it is
made on disk, and given back on disk before the ledger hears of it: what is on disk always has its room.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import structlog

from stores.cache import ledger
from stores.cache.bound import capacity_of
from stores.cache.claims import Fill, Following, Found, Gone, Held, Missing
from stores.cache.database import Transaction
from stores.cache.description import Description
from stores.cache.errors import LeaseLost
from stores.cache.health import PoolSick
from stores.cache.ledger import Answer, Entry, Facts, WrongState, charge_of, is_staged
from stores.cache.policy import Decision, Evict, Grant, Hold, Refuse, Wait
from stores.cache.pool_base import PoolBase, new_id
from stores.cache.schema import EntryState
from stores.errors import NotFound
from stores.transfer.ranges import Ranges
from stores.uninterrupted import uninterrupted

T = TypeVar("T")
LEAVING_PAUSE_S = 0.02
_log = structlog.get_logger(__name__)


class PoolClaims(PoolBase):
    """All methods raise `PoolSick` while the pool is sick, or when it turns so, but for those that only give back: what they
    cannot give back now goes when the pool is taken back, or when the lease has run out. When cancelled,
    nothing stays claimed.
    """

    # --------------------------------------------------------------------------------------------------- looking up

    async def find(self, key: str, reason: str) -> Found:
        """What there is under `key`. `Held`: a hit, pinned for `reason`, which proved itself as far as a look tells. `Fill`: an
        abandoned fill that is the caller's now. With the others nothing is claimed. Raises `LeaseLost`."""
        until = time.monotonic() + self.settings.call_s
        while time.monotonic() < until:
            found = await self._look(key, reason)
            if found is not None:
                return found
        raise PoolSick(f"{key} does not leave the cache pool {self.name}: whoever removes it hangs", pool=self.name)

    async def _look(self, key: str, reason: str) -> Found | None:
        pin, owner = new_id(), self.lease.owner

        def work(tx: Transaction) -> tuple[ledger.Found, str | None]:
            before = ledger.filling(tx, self.name, key)
            found = ledger.look(tx, self.name, key, owner=owner, pin=pin, reason=reason)
            return found, None if before is None else before.owner

        try:
            found, filler = await self.access.transact(work)
        except BaseException:
            await self._give_back(lambda: self._unpin(pin))
            raise
        match found:
            case ledger.Hit(entry):
                return await self._proven(entry, pin, reason)
            case ledger.Follow(filling):
                path = self.access.entries.path_of_fill(filling.id)
                return Following(filling, path, _parts(filling.parts))
            case ledger.TakeOver(filling):
                return await self._take_over(filling, filler or "", reason)
            case ledger.Leaving(entry, True):
                await self.remove([entry], Gone.LEFT)
                return None
            case ledger.Leaving():
                await asyncio.sleep(LEAVING_PAUSE_S)
                return None
            case ledger.Miss():
                return Missing()

    async def _proven(self, entry: Entry, pin: str, reason: str) -> Held | None:
        held = Held(self.access.entries.path_of(entry), entry, pin, reason)
        self._held[pin] = held
        try:
            fault = await self.access.touch(lambda: self.access.entries.prove(entry))
        except BaseException:
            await self.unpin(held)
            raise
        if fault is None:
            return held
        await self.refuse(held, fault)
        return None

    async def _take_over(self, filling: ledger.Reservation, filler: str, reason: str) -> Found | None:
        """The fill of an owner who is gone. Its file is gone on with only where it is sure that nobody writes into it any more:
        a process that was merely silent may come back."""
        fill = Fill(
            key=filling.key or "",
            reservation=filling.id,
            owner=filling.owner,
            path=self.access.entries.path_of_fill(filling.id),
            size=capacity_of(filling.charge),
            charge=filling.charge,
            whole=_parts(filling.parts),
        )
        self._fills[fill.reservation] = fill
        try:
            adopted = await self.adopt(filling, reason)
            if adopted is not None:
                del self._fills[fill.reservation]
                return adopted
            if await self.access.touch(lambda: self._can_go_on(filling.id, filler)):
                self.counts.taken_over += 1
                return fill
        except BaseException:
            await self.abandon(fill)
            raise
        await self.abandon(fill)
        return None

    def _can_go_on(self, fill: str, filler: str) -> bool:
        return not self.access.directory.lives(filler) and self.access.entries.has_fill(fill)

    async def adopt(self, filling: ledger.Reservation, reason: str) -> Held | None:
        """Publish what an earlier process had finished but for the ledger. The reservation must be this process's. Not what it
        was to stage: nobody was told that it is safe."""
        if filling.key is None or is_staged(filling.key):
            return None
        key, fill = filling.key, filling.id
        facts = await self.access.touch(lambda: self.access.entries.finished(key, fill))
        if facts is None:
            return None
        held = await self._published(fill, facts, filling.owner, reason)
        self.counts.adopted += 1
        return held

    # ------------------------------------------------------------------------------------------------------ filling

    async def reserve(self, key: str, size: int, *, waiter: str | None = None) -> Fill | Wait | Refuse:
        """Room for `size` bytes of the object `key`, evicting what may go, and the empty file.

        `waiter`: the caller's place from `join_queue`, which is left when the answer is a `Fill`.

        Raises `AlreadyExists` when somebody else fills that key since the caller looked: look again. `LeaseLost`.
        """
        self.lease.require()
        charge, reservation, owner = charge_of(size), new_id(), self.lease.owner
        place = waiter or new_id()

        def work(tx: Transaction, free: int) -> Answer:
            return ledger.request(
                tx,
                self.name,
                charge,
                reservation=reservation,
                owner=owner,
                key=key,
                waiter=place,
                wait_s=self.settings.call_s,
                free_limit=self._available(tx, free),
                min_age_s=self.settings.min_age_s,
            )

        async def undo() -> None:
            await self._release(key, reservation, owner)
            if waiter is None:
                await self.leave_queue(place)

        try:
            answer = await self._ask(work)
        except BaseException:
            await self._give_back(undo)
            raise
        if not isinstance(answer, Grant):
            if waiter is None:
                await self.leave_queue(place)
            return self._refusal(answer, charge)
        fill = Fill(key, reservation, owner, self.access.entries.path_of_fill(reservation), size, charge)
        self._fills[reservation] = fill
        try:
            await self.access.touch(lambda: self.access.entries.create(reservation))
        except BaseException:
            await self.abandon(fill)
            raise
        return fill

    async def grow(self, fill: Fill, size: int) -> Wait | Refuse | None:
        """Room for `size` bytes in all. None: granted, and `fill.size` is that. Raises `LeaseLost`."""
        self._require(fill)
        more = charge_of(size) - fill.charge
        if more > 0:

            def work(tx: Transaction, free: int) -> Answer:
                return ledger.grow(
                    tx,
                    fill.reservation,
                    more,
                    owner=fill.owner,
                    free_limit=self._available(tx, free),
                    min_age_s=self.settings.min_age_s,
                )

            answer = await self._ask(work)
            if not isinstance(answer, Grant):
                return self._refusal(answer, more)
            fill.charge += more
        fill.size = max(fill.size, size)
        return None

    async def join_queue(self, size: int, wait_s: float) -> str:
        """A place among those who wait for room, for at most `wait_s` seconds. Raises `LeaseLost`."""
        place, owner = new_id(), self.lease.owner

        def work(tx: Transaction) -> None:
            ledger.wait_in_line(tx, self.name, charge_of(size), waiter=place, owner=owner, wait_s=wait_s)

        try:
            await self.access.transact(work)
        except BaseException:
            await self.leave_queue(place)
            raise
        return place

    async def leave_queue(self, waiter: str) -> None:
        """Idempotent."""

        async def leave() -> None:
            await self.access.transact(lambda tx: ledger.leave(tx, waiter))

        await self._give_back(leave)

    async def note(self, fill: Fill, whole: Sequence[tuple[int, int]]) -> None:
        """These parts are written: makes them durable, and then known to followers and to whoever may take over. Raises
        `LeaseLost`."""
        self._require(fill)
        parts = Ranges(whole)
        await self.access.touch(lambda: self.access.entries.sync_fill(fill.reservation), size=fill.size)
        await self.access.transact(
            lambda tx: ledger.note_progress(
                tx, fill.reservation, owner=fill.owner, arrived=parts.total, parts=str(parts)
            )
        )

    async def publish(
        self, fill: Fill, *, store: str, ref: str, version: str | None, size: int, digest: str | None, reason: str
    ) -> Held:
        """The file becomes an entry of `size` bytes, durably, pinned for the filler for `reason`. `digest`: `{ALGORITHM}hex` of
        what was written.

        Raises `IntegrityError` when the file has another size, `LeaseLost`: abandon the fill then, as after any failure.
        """
        self._require(fill)
        made = Description(
            key=fill.key, fill=fill.reservation, store=store, ref=ref, version=version, size=size, digest=digest
        )
        facts = await self.access.touch(lambda: self.access.entries.publish(made), size=size)
        self._require(fill)
        held = await self._published(fill.reservation, facts, fill.owner, reason)
        self._fills.pop(fill.reservation, None)
        self.changed()
        return held

    async def abandon(self, fill: Fill) -> None:
        """Removes the file, then gives back its room. Idempotent."""
        fill.lost = True
        if self._fills.pop(fill.reservation, None) is not None:
            await self._give_back(lambda: self._release(fill.key, fill.reservation, fill.owner))

    # ------------------------------------------------------------------------------------------------------ entries

    async def unpin(self, held: Held) -> None:
        """Idempotent."""
        if self._held.pop(held.pin, None) is not None:
            await self._give_back(lambda: self._unpin(held.pin))

    async def unpin_id(self, pin: str) -> None:
        """For who has pinned by the ledger alone. Idempotent."""
        await self._give_back(lambda: self._unpin(pin))

    async def refuse(self, held: Held, fault: str) -> None:
        """It did not prove itself: quarantined, never served again, not held any more. Its key is free for a better copy."""
        await self.quarantine(held.entry, fault)
        await self.unpin(held)

    async def quarantine(self, entry: Entry, fault: str) -> None:
        """Never serve this copy again. Idempotent; whoever removes it at the same time wins."""

        def work(tx: Transaction) -> bool:
            before = ledger.entry_by_id(tx, self.name, entry.id)
            ledger.quarantine(tx, self.name, entry.id)
            return before is not None and before.state is not EntryState.QUARANTINED

        with suppress(NotFound, WrongState):
            if await self.access.transact(work):
                self.counts.quarantined += 1
                _log.warning("cache entry quarantined", pool=self.name, ref=entry.ref, file=entry.file, fault=fault)
            await self.access.touch(lambda: self.access.entries.set_aside(entry))

    async def evict(self, entry: Entry) -> Hold | None:
        """Let one entry go because somebody says so. A `Hold`: it may not go now. Raises `NotFound` and `LeaseLost`."""
        chosen = await self.access.transact(lambda tx: ledger.evict(tx, self.name, entry.id, owner=self.lease.owner))
        if isinstance(chosen, Hold):
            return chosen
        await self.remove([chosen], Gone.ASKED, remember=False)
        return None

    # ------------------------------------------------------------------------------------------------------ helpers

    async def _ask(self, work: Callable[[Transaction, int], Answer]) -> Grant | Wait | Refuse:
        """Asks for room, and makes it, until the answer is final. What was chosen to go goes even when cancelled."""
        while True:
            free = await self.access.touch(self.access.directory.free)
            answer = await uninterrupted(self._ask_once(work, free))
            if not isinstance(answer, Evict):
                return answer

    async def _ask_once(self, work: Callable[[Transaction, int], Answer], free: int) -> Decision:
        answer = await self.access.transact(lambda tx: work(tx, free))
        await self.remove(answer.evict, Gone.ROOM)
        return answer.decision

    def _refusal(self, answer: Wait | Refuse, charge: int) -> Wait | Refuse:
        """Final only where the pool itself is too small: what others fill the disk with may go."""
        if isinstance(answer, Refuse) and charge <= self.settings.limits.limit:
            return Wait(f"{answer.reason}, while files of others fill its file system")
        return answer

    def _require(self, fill: Fill) -> None:
        self.lease.require()
        if fill.lost:
            raise LeaseLost(f"the fill of {fill.key} is lost: abandon it", pool=self.name, key=fill.key)

    async def _published(self, fill: str, facts: Facts, owner: str, reason: str) -> Held:
        pin = new_id()

        def work(tx: Transaction) -> Entry:
            return ledger.publish(tx, fill, facts, owner=owner, pin=pin, reason=reason)

        try:
            entry = await self.access.transact(work)
        except BaseException:
            await self._give_back(lambda: self._unpin(pin))
            raise
        held = Held(self.access.entries.path_of(entry), entry, pin, reason)
        self._held[pin] = held
        return held


def _parts(text: str) -> tuple[tuple[int, int], ...]:
    """What the ledger says of a fill's whole parts; nothing where that makes no sense."""
    with suppress(ValueError):
        return tuple(Ranges.parse(text))
    return ()
