"""Carries out what the upload queue has decided: looks at the ledgers, begins attempts, and writes down what came of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog

from stores.cache.cache import key_of
from stores.cache.claims import Gone
from stores.cache.database import Transaction
from stores.cache.errors import LeaseLost
from stores.cache.health import PoolSick
from stores.cache.ladder import Turn
from stores.cache.ledger import Entry, uploads
from stores.cache.ledger.uploads import Finished, Upload
from stores.cache.pool import Pool
from stores.cache.schema import UploadState
from stores.cache.settings import WritebackSettings
from stores.cache.writeback.attempt import Attempt
from stores.cache.writeback.credentials import Credentials
from stores.cache.writeback.errors import UploadCancelled
from stores.cache.writeback.order import Breaker, BreakerState, Candidate, choose, interleaved, judge, pause_s
from stores.contract import DataStore, ObjectInfo
from stores.errors import Retry, StorageError, StoreError
from stores.to import DataStoreTO
from stores.uninterrupted import uninterrupted

KEEP_ENDED_S = 7 * 24 * 3600.0
"""How long an upload that has ended, and was not to be announced, is there for whoever asks for it again."""

_log = structlog.get_logger(__name__)


class UploadCrashed(StoreError):
    """An attempt to upload failed in a way that nobody foresaw; the log has the traceback. It is tried again."""

    retry = Retry.YES


@dataclass(slots=True)
class Done:
    """What happened since the process began; bytes of content."""

    attempts: int = 0
    failures: int = 0
    stored: int = 0
    sent_bytes: int = 0
    resumed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Look:
    """What there is to do in one pool."""

    stores: set[str]
    due: tuple[Upload, ...]
    next_due_s: float | None


class Worker:
    """`run` until cancelled. `turn` wakes those who wait for an upload or for its room."""

    def __init__(
        self,
        pools: Sequence[Pool],
        settings: WritebackSettings,
        *,
        credentials: Credentials,
        open_store: Callable[[DataStoreTO], DataStore],
        staging: Collection[str],
        turn: Turn,
        clock: Callable[[], float],
        spread: Callable[[], float],
        tick_s: float,
    ) -> None:
        self.done = Done()
        self.running: dict[str, Attempt] = {}
        self._pools = pools
        self._settings = settings
        self._credentials = credentials
        self._open_store = open_store
        self._staging = staging
        self._turn = turn
        self._clock = clock
        self._spread = spread
        self._tick_s = tick_s
        self._breakers: dict[str, Breaker] = {}
        self._woken = asyncio.Event()
        self._dropping = asyncio.Lock()

    def wake(self) -> None:
        """There may be something to do."""
        self._woken.set()

    def breakers(self) -> dict[str, BreakerState]:
        """Of the stores that have failed since they last did not."""
        now = self._clock()
        return {store: breaker.state(now) for store, breaker in self._breakers.items()}

    def probe(self, store: str) -> None:
        """Try that store now, although it is being left alone."""
        if store in self._breakers:
            self._breakers[store] = self._breakers[store].probed_now(self._clock())

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._woken.clear()
                pause_s = await self._round(tasks)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._woken.wait()

    async def drop_copies(self, pool: Pool) -> None:
        """Removes the bytes of what was cancelled and is not being sent: they are gone when this returns. What is begun is
        finished, even when cancelled."""
        async with self._dropping:
            await uninterrupted(self._drop_copies(pool))

    async def _drop_copies(self, pool: Pool) -> None:
        def work(tx: Transaction) -> tuple[Entry, ...]:
            uploads.reclaim(tx, pool.name, owner=pool.lease.owner, at_work={*self.running, *self._staging})
            return uploads.drop_copies(tx, pool.name, owner=pool.lease.owner)

        await pool.remove(await pool.transact(work), Gone.CANCELLED, remember=False)

    # ----------------------------------------------------------------------------------------------------- one round

    async def _round(self, tasks: asyncio.TaskGroup) -> float:
        """Begins what is due. Seconds until there may be more to do."""
        await self._take_new_credentials()
        seen = self._credentials.changes
        looks: list[tuple[Pool, _Look]] = []
        for pool in self._pools:
            with suppress(PoolSick, LeaseLost):
                await self.drop_copies(pool)
                looks.append((pool, await pool.transact(partial(self._look, pool=pool.name))))
        if len(looks) == len(self._pools):
            await self._forget_stores(set().union(*(look.stores for _, look in looks)), seen)
        await self._begin([(pool, look.due) for pool, look in looks], tasks)
        return self._pause_s([look.next_due_s for _, look in looks])

    async def _take_new_credentials(self) -> None:
        try:
            changed = await self._credentials.save()
        except StorageError as error:
            _log.warning("upload credentials not saved", why=error.message)
            return
        for store in changed:
            for pool in self._pools:
                with suppress(PoolSick):
                    await pool.transact(partial(uploads.retry, pool=pool.name, refused_by=store))

    async def _forget_stores(self, needed: set[str], seen: int) -> None:
        """All but those that uploads wait for."""
        self._breakers = {store: breaker for store, breaker in self._breakers.items() if store in needed}
        try:
            await self._credentials.sweep(needed, seen=seen)
        except StorageError as error:
            _log.warning("upload credentials not removed", why=error.message)

    def _look(self, tx: Transaction, pool: str) -> _Look:
        uploads.forget_ended(tx, pool, age_s=KEEP_ENDED_S)
        stores = uploads.stores_waiting(tx, pool)
        due: list[Upload] = []
        for store in stores:
            if self._most(store) and self._credentials.get(store) is not None:
                due += uploads.due(
                    tx,
                    pool,
                    store,
                    horizon_s=self._settings.last_retry_s,
                    large=self._settings.large,
                    some=self._settings.concurrency,
                    without=set(self.running),
                )
        due.sort(key=lambda upload: upload.number)
        return _Look(stores, tuple(due), uploads.next_due_s(tx, pool))

    async def _begin(self, due: Sequence[tuple[Pool, Sequence[Upload]]], tasks: asyncio.TaskGroup) -> None:
        attempts = {upload.id: Attempt(pool, upload) for pool, queue in due for upload in queue}
        chosen = choose(
            interleaved([[attempts[upload.id].candidate for upload in queue] for _, queue in due]),
            [attempt.candidate for attempt in self.running.values()],
            slots=self._settings.concurrency,
            large=self._settings.large,
            most=self._most,
        )
        for each in chosen:
            await self._begin_one(attempts[each.id], each, tasks)

    async def _begin_one(self, attempt: Attempt, candidate: Candidate, tasks: asyncio.TaskGroup) -> None:
        pool = attempt.pool
        self.running[candidate.id] = attempt  # before the ledger says so: see `reclaim`
        claimed = None
        try:
            with suppress(PoolSick, LeaseLost):
                claimed = await pool.transact(
                    lambda tx: uploads.claim(tx, pool.name, candidate.id, owner=attempt.owner)
                )
        finally:
            if claimed is None:
                self._ended(attempt)
        if claimed is not None:
            attempt.upload = claimed
            tasks.create_task(self._carry_out(attempt), name=f"upload-{candidate.id[:12]}-watch")

    def _most(self, store: str) -> int:
        slots = self._settings.concurrency
        return self._breakers.get(store, Breaker()).most(self._clock(), slots)

    def _pause_s(self, dues_s: Sequence[float | None]) -> float:
        now = self._clock()
        probes = [each.until - now for each in self._breakers.values() if each.until is not None and each.until > now]
        return min([self._tick_s, *probes, *(due_s for due_s in dues_s if due_s is not None)])

    # --------------------------------------------------------------------------------------------------- one attempt

    async def _carry_out(self, attempt: Attempt) -> None:
        """To the ledger, whatever comes of it; but for what the ledger says is not ours any more, and when this is cancelled:
        then the next who looks finds that nobody is at it."""
        try:
            with suppress(PoolSick, LeaseLost, UploadCancelled):
                try:
                    await self._attempt(attempt)
                except (PoolSick, LeaseLost, UploadCancelled):
                    raise
                except StorageError as error:
                    await self._failed(attempt, error)
                except Exception:  # noqa: BLE001 - it is told, and tried again
                    _log.error("upload crashed", upload=attempt.upload.id, store=attempt.upload.store, exc_info=True)
                    crash = UploadCrashed(f"the upload of {attempt.upload.ref} crashed; the log says how and where")
                    await self._failed(attempt, crash)
        finally:
            self._ended(attempt)

    def _ended(self, attempt: Attempt) -> None:
        del self.running[attempt.upload.id]
        attempt.over.set()
        self.done.sent_bytes += attempt.sent - attempt.resumed
        self.done.resumed_bytes += attempt.resumed
        self._turn.freed()
        self.wake()

    async def _attempt(self, attempt: Attempt) -> None:
        upload = attempt.upload
        to = self._credentials.get(upload.store)
        assert to is not None  # see `_look`: they are kept for as long as there is an upload
        attempt.to = to
        store = self._open_store(to)
        if upload.state is UploadState.CANCELLING:
            await self._discard(attempt, store)
            return
        self.done.attempts += 1
        info = await attempt.send(store)
        await uninterrupted(self._finish(attempt, store.id, info))

    async def _finish(self, attempt: Attempt, store: str, info: ObjectInfo) -> None:
        pool, upload = attempt.pool, attempt.upload
        self._breakers.pop(upload.store, None)
        key = None if info.version is None else key_of(store, info)

        def work(tx: Transaction) -> Finished:
            self._note(tx, attempt)
            return uploads.finish(tx, pool.name, upload.id, owner=attempt.owner, key=key, version=info.version)

        finished = await pool.transact(work)
        self.done.stored += 1
        _log.info(
            "upload stored",
            upload=upload.id,
            store=upload.store,
            ref=upload.ref,
            size=upload.size,
            attempts=upload.attempts,
            age_s=round(finished.upload.age_s, 3),
        )
        if finished.leaving is not None:
            await pool.remove([finished.leaving], Gone.UPLOADED, remember=False)

    async def _discard(self, attempt: Attempt, store: DataStore) -> None:
        """What the store has of an upload that was cancelled."""
        pool, upload = attempt.pool, attempt.upload
        await store.discard(upload.ref, token=upload.id)
        self._breakers.pop(upload.store, None)
        await pool.transact(lambda tx: uploads.cancelled(tx, pool.name, upload.id, owner=attempt.owner))
        _log.info("upload cancelled", upload=upload.id, store=upload.store, ref=upload.ref)

    async def _failed(self, attempt: Attempt, error: StorageError) -> None:
        pool, upload = attempt.pool, attempt.upload
        verdict = judge(error)
        state, after_s = verdict.state, pause_s(upload.attempts, self._spread(), self._settings)
        if verdict.speaks_against_store:
            self._count_against(upload.store, error)
        else:
            self._breakers.pop(upload.store, None)
        if state is UploadState.REFUSED and self._credentials.get(upload.store) != attempt.to:
            state, after_s = UploadState.WAITING, 0.0  # others have come meanwhile
        self.done.failures += 1
        _log.warning(
            "upload failed",
            upload=upload.id,
            store=upload.store,
            ref=upload.ref,
            kind=error.kind,
            why=error.message,
            attempts=upload.attempts,
            state=state.value,
            next_s=round(after_s, 3),
        )

        def work(tx: Transaction) -> None:
            self._note(tx, attempt)
            told = {"kind": error.kind, "message": error.message, "details": error.details}
            uploads.put_back(tx, pool.name, upload.id, owner=attempt.owner, state=state, after_s=after_s, error=told)

        await uninterrupted(pool.transact(work))

    def _note(self, tx: Transaction, attempt: Attempt) -> None:
        uploads.note(
            tx,
            attempt.pool.name,
            attempt.upload.id,
            owner=attempt.owner,
            sent=attempt.sent,
            resumed=attempt.resumed,
        )

    def _count_against(self, store: str, error: StorageError) -> None:
        now, before = self._clock(), self._breakers.get(store, Breaker())
        after = self._breakers[store] = before.failed(now, self._settings)
        if after.state(now) is BreakerState.OPEN and before.state(now) is not BreakerState.OPEN:
            assert after.until is not None
            _log.warning("store left alone", store=store, why=error.message, probe_s=round(after.until - now, 3))
